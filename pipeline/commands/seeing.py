"""Pictures in, pictures out: what is seen in each is drawn into a folder, and a row tells of it."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.pictures import SOME_BROKEN, bar_title, picks, tell_broken
from pipeline.files import atomic_file
from pipeline.params import read_threads

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.data.picks import Pick
    from pipeline.serving.answers import Broken


def see(parsed: argparse.Namespace, title: str, header: str, look: "Callable[[str, str, Image.Image], str]") -> None:
    """Write the row of each picture, and tell by the exit code whether all could be read. Raises PipelineError.

    `look` takes the path of a picture, a name for what it draws, and the picture, and gives the row.
    """
    from pipeline.serving.answers import Broken
    from pipeline.serving.rows import row_stream

    names, broken = Names(), 0
    with row_stream(None) as stream:
        stream.write(header)
        for path, picture in _read(parsed, title):
            if isinstance(picture, Broken):
                tell_broken(picture)
                broken += 1
                continue
            stream.write(look(path, names.name(path), picture))
            stream.flush()
    if broken:
        raise SystemExit(SOME_BROKEN)


def _read(parsed: argparse.Namespace, title: str) -> Iterator[tuple[str, "Image.Image | Broken"]]:
    """The path of each picture as it was named and the picture, or why there is none; the next ones are decoded meanwhile."""
    from pipeline.data.images import decode
    from pipeline.data.loading import read_ahead
    from pipeline.serving.answers import read_pick

    def read(pick: "Pick") -> "tuple[str, Image.Image | Broken]":
        return pick.path, read_pick(pick, parsed.here, decode)

    for batch in read_ahead(picks(parsed), read, 1, read_threads(), bar_title(title, None)):
        yield from batch


class Names:
    """A name for each picture: that of its file, numbered where another has it, be it in capitals."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def name(self, path: str) -> str:
        """The name of a picture, without an ending."""
        stem = Path(path).stem
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(self._given) + 2))
        given = next(name for name in numbered if name.casefold() not in self._given)
        self._given.add(given.casefold())
        return given


def make_folder(here: Path, named: str) -> Path:
    """The folder in which the drawn pictures go. Raises PipelineError."""
    from pipeline.serving.rows import writing

    with writing(named):
        (here / named).mkdir(parents=True, exist_ok=True)
    return here / named


def write_picture(picture: "Image.Image", path: Path) -> None:
    """Write a PNG, whole or not at all. Raises PipelineError."""
    from pipeline.serving.rows import target, writing

    with writing(path), atomic_file(target(path.parent, path.name)) as partial:
        picture.save(partial, "PNG")
