"""Files that are written whole or not at all, and their checksums."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.errors import PipelineError

_LEFT = re.compile(r"(\d+)(\.old)?\.partial.*")  # SQLite adds an ending of its own


def project_root() -> Path:
    """The folder that holds dvc.yaml: what DVC names, or the nearest one upwards, or the working directory.

    Under `dvc exp run --temp` the working directory is a copy, while DVC names the project itself.
    """
    if named := os.environ.get("DVC_ROOT"):
        return Path(named)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def cache_dir(room: str) -> Path:
    """The folder `.cache/<room>` of the project: what may be deleted at any time and is never an out."""
    return project_root() / ".cache" / room


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well and vanishes otherwise."""
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
    """A temporary folder beside `path`, which becomes `path` when the block ends well and vanishes otherwise."""
    _clear(path)
    partial, old = _beside(path, "partial"), _beside(path, "old.partial")
    partial.mkdir()
    try:
        yield partial
        for file in (partial, *partial.rglob("*")):
            _sync(file)
        if path.exists():
            path.rename(old)  # to remove it where it lies could be cut short half-way
        partial.rename(path)
    finally:
        _remove(partial)
        _remove(old)
    _sync(path.parent)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _beside(path: Path, ending: str) -> Path:
    """A name beside `path` for this process alone: `.cache/` is shared by all copies of a project."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def _clear(path: Path) -> None:
    """Make the folder of `path`, and remove from it what processes that were killed while they wrote `path` left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}."
    for name in os.listdir(path.parent):  # noqa: PTH208 - plain names: thousands of files may lie there, and each of them is written so
        if name.startswith(start) and (match := _LEFT.fullmatch(name, len(start))):
            pid = int(match[1])
            if pid == os.getpid() or not is_running(pid):
                _remove(path.parent / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(content: bytes) -> str:
    """The sha256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """The sha256 of a value's canonical JSON (sorted keys, no spaces), in hex."""
    return sha256_of(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. A NaN is refused, since no JSON reader need know it."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, every value as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as a CSV file with a header, whole or not at all."""
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        file.writelines(csv_line(columns, row) for row in ({name: name for name in columns}, *rows))


def csv_line(columns: Sequence[str], row: Mapping[str, object]) -> str:
    """A row as a line of CSV that ends with a line feed; what would part columns or lines is quoted."""
    line = io.StringIO()
    csv.DictWriter(line, columns).writerow(row)  # with its own line end it quotes a lone CR, with ours it would not
    return line.getvalue().removesuffix("\r\n") + "\n"


def output_path(here: Path, named: str) -> Path:
    """The file to write. Raises PipelineError where a folder, a device or the like is there: it would be replaced."""
    path = here / named
    if path.exists() and not path.is_file():
        raise PipelineError(f"{named}: is no ordinary file; name another")
    return path


@contextmanager
def writing(output_path: Path | str) -> Iterator[None]:
    """Turn what the system says of a write into a PipelineError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelineError(f"{output_path}: {error.strerror}; see to it and ask again") from None


@contextmanager
def row_stream(output: Path | None) -> Iterator[TextIO]:
    """A file that is written whole or not at all, or stdout. UTF-8; a file name that is none keeps its bytes.

    A reader of stdout that leaves early ends the program as it ends `cat`: quietly, with the code of SIGPIPE.
    """
    if output is not None:
        with writing(output), atomic_file(output) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        with writing("stdout"):
            yield sys.stdout
            sys.stdout.flush()
    except (BrokenPipeError, PipelineError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
        if isinstance(error, PipelineError):
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None
