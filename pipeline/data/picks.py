"""What a person points at: pictures, folders of pictures, lists of both."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.images import PICTURE_SUFFIXES
from pipeline.data.members import is_junk
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Pick:
    """A path as it was named, or as it lies below a folder that was named. `fault`: why no picture can be read there."""

    path: str
    fault: str = ""


def read_list(content: bytes, separator: bytes) -> list[str]:
    """The paths in a list that `find` and the like print. Raises PipelineError where it holds anything else."""
    if b"\0" in content and separator != b"\0":
        raise PipelineError("-: holds NUL bytes; give names of files, one a line, or parted by NUL with -0; a picture itself is no list")
    return [os.fsdecode(name) for name in content.split(separator) if name]


def find_pictures(names: Iterable[str], here: Path) -> Iterator[Pick]:
    """Each file that is named, and in place of a folder the pictures below it, sorted by name. Names start at `here`.

    In a folder a file is a picture by the ending of its name; what is hidden, what systems leave behind and links to
    folders are passed by.
    """
    for name in names:
        if name and os.path.isdir(here / name):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            below = _below(name, here)
            yield next(below, Pick(name, "holds no pictures"))
            yield from below
        else:
            yield Pick(name)


def file_fault(path: Path) -> str:
    """Why a path cannot be read as a file, or nothing. It never waits, as to open a pipe would."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no ordinary file"
        path.open("rb").close()
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _below(folder: str, here: Path) -> Iterator[Pick]:
    try:
        with os.scandir(here / folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield Pick(folder, error.strerror or str(error))
        return
    for entry in (entry for entry in entries if not is_junk(entry.name)):
        path = f"{folder.rstrip('/')}/{entry.name}"  # no Path: it would make -a.png of ./-a.png
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path, here)
        elif entry.name.lower().endswith(PICTURE_SUFFIXES):
            yield Pick(path)
