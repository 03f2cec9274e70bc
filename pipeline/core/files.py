"""Files that are written whole or not at all, their checksums, JSON and CSV, and rows on stdout."""

import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.errors import PipelineError

_LEFTOVER = re.compile(r"([0-9a-f]{8})-(\d+)(\.old)?\.partial.*")  # SQLite appends endings of its own
_MANY_FILES = 64  # from which on they are not synced one by one
_FOREIGN_SECONDS = 24 * 3600.0  # until a temporary file of another machine or container counts as left behind


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file: `size` bytes from `offset` on."""

    path: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The bytes of the part."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def project_root() -> Path:
    """The root of the project: what DVC_ROOT names, else the nearest folder upwards with a dvc.yaml, else the working directory.

    Under `dvc exp run --temp` the working directory is a copy of the project, but DVC_ROOT still names the project itself.
    """
    if named := os.environ.get("DVC_ROOT"):
        return Path(named)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def cache_dir(room: str) -> Path:
    """The folder `.cache/<room>` of the project. It may be deleted at any time and is never an out."""
    return project_root() / ".cache" / room


def keep_caches_here() -> None:
    """Let libraries keep their caches in the project, in place of the user's home and /tmp. A folder that the user names wins."""
    for variable, room in {"MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "torchinductor"}.items():
        os.environ.setdefault(variable, str(cache_dir(room).resolve()))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It is renamed to `path` if the block succeeds and removed if it raises.

    What was written is on the disk before it gets its name, and the name before the block ends (fsync).
    """
    _clear(path)
    partial = _beside(path, "partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, with the promises of `atomic_file`."""
    _clear(path)
    partial, old = _beside(path, "partial"), _beside(path, "old.partial")
    partial.mkdir()
    try:
        yield partial
        _sync_all(partial)
        if path.exists():
            path.rename(old)  # removing it in place could be interrupted half-way
        partial.rename(path)
    finally:
        _remove(partial)
        _remove(old)
    _sync(path.parent)


def is_running(pid: int) -> bool:
    """Whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


@cache
def process_space() -> str:
    """Eight hex digits that name where process numbers are valid: this machine, since it booted, and this container."""
    parts = [platform.node()]
    with suppress(OSError):  # not on every system
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), str(Path("/proc/self/ns/pid").readlink())]
    return sha256_of("/".join(parts).encode())[:8]


def left_behind(folder: Path) -> list[Path]:
    """The temporary files in a folder of processes that were killed while they wrote, sorted. Of other machines only old ones."""
    found = [(path, _LEFTOVER.search(path.name)) for path in sorted(folder.glob(".*.partial*"))]
    return [path for path, match in found if match and _is_left_behind(path, match[1], int(match[2]))]


def _beside(path: Path, ending: str) -> Path:
    """A name beside `path` that no other process uses: all copies of a project share `.cache/`, also those in other containers."""
    return path.with_name(f".{path.name}.{process_space()}-{os.getpid()}.{ending}")


def _clear(path: Path) -> None:
    """Make the folder of `path`, and remove from it the temporary files of processes that were killed while they wrote `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}."
    for name in os.listdir(path.parent):  # noqa: PTH208 - no Path objects: the store may contain thousands of files
        match = _LEFTOVER.fullmatch(name, len(start)) if name.startswith(start) else None
        if match and _is_left_behind(path.parent / name, match[1], int(match[2])):
            _remove(path.parent / name)


def _is_left_behind(partial: Path, space: str, pid: int) -> bool:
    """Whether the process that wrote a temporary file is gone. Of other machines nothing is known, so their files must be old."""
    if space == process_space():
        return pid == os.getpid() or not is_running(pid)
    with suppress(FileNotFoundError):
        return time.time() - partial.stat().st_mtime > _FOREIGN_SECONDS
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    """Write a folder and all that is in it to the disk.

    Each fsync waits for the disk. Of many files, Linux's syncfs, which writes whatever the file system has, is a hundred times as fast.
    """
    import ctypes

    paths = [folder, *folder.rglob("*")]
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if len(paths) > _MANY_FILES and syncfs is not None:
        with _opened(folder) as descriptor:
            if syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    else:
        for path in paths:
            _sync(path)


def _sync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sha256_of(content: bytes) -> str:
    """The sha256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path | Slice) -> str:
    """The sha256 of the bytes of a file, or of a part of it, in hex."""
    if isinstance(path, Slice):
        return sha256_of(path.read_bytes())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_sums(sums: Mapping[str, str]) -> str:
    """The sha256 over the lines «sha256  path», sorted by path, of `path: sha256`."""
    return sha256_of("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())


def sha256_of_json(value: Any) -> str:
    """The sha256 of a value's canonical JSON (sorted keys, no spaces), in hex."""
    return sha256_of(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_value(path: Path, *keys: str) -> Any:
    """The value at these keys, one in the other, of a JSON file; None if the file or a key is missing, or if something else is there."""
    try:
        value = read_json(path)
        for key in keys:
            value = value[key]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. NaN raises ValueError: JSON does not have it."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def table_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, one after the other; every value is text."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; every value is text."""
    return list(table_rows(path))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as a CSV file with a header, whole or not at all."""
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        file.writelines(csv_line(columns, row) for row in ({name: name for name in columns}, *rows))


def csv_line(columns: Sequence[str], row: Mapping[str, object]) -> str:
    """A row as one line of CSV that ends with a line feed; separators and line breaks in a value are quoted."""
    line = io.StringIO()
    csv.DictWriter(line, columns).writerow(row)  # only with its default line end does it quote a lone CR
    return line.getvalue().removesuffix("\r\n") + "\n"


def output_path(here: Path, named: str) -> Path:
    """The file to write. Raises PipelineError if a folder, a device or the like has that name: it would be replaced."""
    path = here / named
    if path.exists() and not path.is_file():
        raise PipelineError(f"{named}: is not a regular file; choose another name")
    return path


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Turn an OSError of a write into a PipelineError. A closed pipe stays a BrokenPipeError, which ends the program."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelineError(f"{target}: {error.strerror}; fix it and run the command again") from None


@contextmanager
def row_stream(output: Path | None) -> Iterator[TextIO]:
    """Yield a text stream for rows: a file that is written whole or not at all, or stdout if `output` is None.

    UTF-8; file names that are not valid UTF-8 keep their bytes. Raises PipelineError if the rows cannot be written.
    """
    if output is not None:
        with writing(output), atomic_file(output) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    with writing("stdout"):
        yield sys.stdout
        sys.stdout.flush()
