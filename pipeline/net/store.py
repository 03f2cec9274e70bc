"""The store, `.cache/store`: downloaded files by their sha256, aliases of them, and partial downloads.

A process that uses the store holds a shared lock until it ends, so that what it fetched or found is not removed under its hands.
"""

import fcntl
import hashlib
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pipeline.core.files import atomic_file, cache_dir, left_behind, process_space, read_value, sha256_of, sha256_of_file, write_json

# A strong ETag or an HTTP date. It goes into a request header, so nothing else is accepted from a server or a file.
_VALIDATOR = re.compile(r'"[!#-~]{0,200}"|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT')


def stored(digest: str) -> Path | None:
    """The file with this sha256 or alias, after its checksum was verified, or None. A damaged file is deleted."""
    alias = _store() / f"{digest}.alias"
    digest = alias.read_text().strip() if alias.is_file() else digest
    path = _store() / digest
    if not path.is_file():
        return None
    if sha256_of_file(path) == digest:
        with suppress(PermissionError):  # of another user
            os.utime(path)  # when it was last used
        return path
    path.unlink()
    return None


def keep(path: Path, sha256: str) -> Path:
    """Move a file with this sha256 into the store and return its new path."""
    target = _store() / sha256
    with atomic_file(target) as partial:
        path.replace(partial)
    return target


def temporary_file() -> BinaryIO:
    """A file on the store's file system, which is deleted when it is closed. The system's own temporary folder may be in memory."""
    return tempfile.TemporaryFile(dir=_store())


@contextmanager
def temporary_path() -> Iterator[Path]:
    """An empty file on the store's file system, which is removed after the block unless it was kept."""
    descriptor, name = tempfile.mkstemp(f".{process_space()}-{os.getpid()}.partial", ".", _store())
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def checksum(path: Path, algorithm: str) -> str:
    """The checksum of a stored file by an algorithm, in hex."""
    return path.name if algorithm == "sha256" else _checksum_of(path, algorithm)


def alias(digest: str, path: Path) -> None:
    """Let `stored(digest)` return a stored file whose sha256 is different."""
    with atomic_file(_store() / f"{digest}.alias") as partial:
        partial.write_text(path.name)


def forget(digest: str) -> None:
    """Delete an alias."""
    (_store() / f"{digest}.alias").unlink(missing_ok=True)


def seen(url: str) -> tuple[str, Path] | None:
    """What a URL last provided, see `remember`, if the stored file is still there and intact."""
    validator, sha256 = (read_value(_seen_note(url), key) for key in ("validator", "sha256"))
    if not is_validator(validator) or not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    path = stored(sha256)
    return (validator, path) if path else None


def remember(url: str, validator: str, path: Path) -> None:
    """Let `seen(url)` return a validator and a stored file."""
    write_json(_seen_note(url), {"validator": validator, "sha256": path.name})


def is_validator(text: object) -> bool:
    """Whether this is a strong ETag or an HTTP date, short and safe to send."""
    return isinstance(text, str) and _VALIDATOR.fullmatch(text) is not None


class Partial:
    """The partial download of a URL: the bytes so far, and the server's validator, with which the rest can be requested.

    Both are files in the store, so that a later process can resume. They are deleted once the download is kept, and on
    exit if there is no validator. `size`: bytes so far; `validator`: "" if there is none; `resumed`: whether the bytes
    come from more than one response. `known`: the validator of a complete file that is stored already, "" if there is none.
    """

    known = ""

    def __init__(self, url: str) -> None:
        name = sha256_of(url.encode())
        self._path, self._note = _store() / f"{name}.partial", _store() / f"{name}.json"

    def __enter__(self) -> Self:
        self.validator, self.resumed = _read_validator(self._note), False
        self._file = self._path.open("a+b")
        if not self.validator:
            self._file.truncate(0)
        self._file.seek(0)
        self._sum = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        finally:
            if not (self.validator and self.size):
                self.discard()

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far, in hex."""
        return self._sum.hexdigest()

    def checksum(self, algorithm: str) -> str:
        """The checksum of the bytes so far, in hex. An algorithm other than sha256 reads the file again."""
        self._file.flush()
        return self.sha256 if algorithm == "sha256" else _checksum_of(self._path, algorithm)

    def append(self, content: bytes) -> None:
        """Add bytes. Raises OSError if the disk is full."""
        self._file.write(content)
        self._sum.update(content)
        self.size += len(content)

    def restart(self, validator: str) -> None:
        """Start again without bytes, for a file with this validator."""
        self._note.unlink(missing_ok=True)  # first, so that a kill never leaves it beside another file's bytes
        self._file.truncate(0)
        self._sum, self.size, self.validator, self.resumed = hashlib.sha256(), 0, validator, False
        if validator:
            write_json(self._note, {"validator": validator})

    def discard(self) -> None:
        """Delete the bytes and the validator."""
        self._note.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def keep(self) -> Path:
        """Move the complete file into the store and return its path there."""
        self._file.close()
        path = keep(self._path, self.sha256)
        self.discard()
        return path


@dataclass(frozen=True)
class StoredItem:
    """A file in the store with the notes about it, or a download that did not end.

    `name`: its sha256, or the name of the unfinished file; `size`: in bytes; `used`: when it was last fetched or found, in seconds since
    1970; `keys`: the sha256, the aliases, and the sha256 of the URLs under which the store finds it.
    """

    name: str
    is_complete: bool
    size: int
    used: float
    keys: frozenset[str]
    paths: tuple[Path, ...]

    def remove(self) -> None:
        """Remove the notes, then the file."""
        for path in reversed(self.paths):
            path.unlink(missing_ok=True)


def list_items() -> list[StoredItem]:
    """What the store contains, sorted by name. Files that this module did not write are not listed."""
    store = cache_dir("store")
    if not store.is_dir():
        return []
    paths = sorted(path for path in store.iterdir() if path.is_file() and not path.is_symlink())
    notes: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if re.fullmatch(r"[0-9a-f]{32,64}\.(alias|seen\.json)", path.name):
            notes[_target(path)].append(path)
    items = [_item(path, True, notes[path.name]) for path in paths if re.fullmatch("[0-9a-f]{64}", path.name)]
    for path in paths:
        if re.fullmatch(r"[0-9a-f]{64}\.partial", path.name):
            items.append(_item(path, False, [note for note in paths if note == path.with_suffix(".json")]))
    items += [_item(path, False, []) for path in left_behind(store)]
    return [item for item in items if item]


@contextmanager
def alone() -> Iterator[bool]:
    """Yield whether no other process uses the store. If so, none starts to before the block ends."""
    is_alone = False
    with suppress(OSError):  # another one has the lock, or the file system has no locks
        _lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_alone = True
    try:
        yield is_alone
    finally:
        with suppress(OSError):
            _lock(fcntl.LOCK_SH)


def _item(path: Path, is_complete: bool, notes: list[Path]) -> StoredItem | None:
    """An item, or None if another process has just moved it away."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    keys = frozenset(each.name.partition(".")[0] for each in (path, *notes))
    return StoredItem(path.name, is_complete, status.st_size, status.st_mtime, keys, (path, *notes))


def _target(note: Path) -> str:
    """The sha256 to which an alias or a note about a URL leads; empty if this module did not write it."""
    if note.suffix == ".json":
        return str(read_value(note, "sha256") or "")
    try:
        return note.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ValueError):
        return ""


def _seen_note(url: str) -> Path:
    return _store() / f"{sha256_of(url.encode())}.seen.json"


def _read_validator(note: Path) -> str:
    validator = read_value(note, "validator")
    return str(validator) if is_validator(validator) else ""


def _checksum_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _store() -> Path:
    store = cache_dir("store")
    store.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # a file system without locks
        _lock(fcntl.LOCK_SH)
    return store


_held: dict[Path, int] = {}  # the lock's file, open as long as this process lives


def _lock(mode: int) -> None:
    """Take the lock of the store, or change how it is held. Raises OSError."""
    path = cache_dir("locks") / "store.lock"
    if path not in _held:
        path.parent.mkdir(parents=True, exist_ok=True)
        for earlier in list(_held):  # of another project
            os.close(_held.pop(earlier))
        _held[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(_held[path], mode)
