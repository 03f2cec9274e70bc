"""The store, `.cache/store`: downloaded files by their sha256, aliases that lead to them, and partial downloads."""

import hashlib
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.core.files import atomic_file, cache_dir, read_json, sha256_of, sha256_of_file, write_json

# A strong ETag or an HTTP date. It goes into a request, so that nothing else is taken from a server or a file.
_VALIDATOR = re.compile(r'"[!#-~]{0,200}"|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT')


def stored(digest: str) -> Path | None:
    """The file in the store with that sha256 or that alias, its sum checked, or None. A damaged one is removed."""
    alias = _store() / f"{digest}.alias"
    digest = alias.read_text().strip() if alias.is_file() else digest
    path = _store() / digest
    if not path.is_file():
        return None
    if sha256_of_file(path) == digest:
        return path
    path.unlink()
    return None


def keep(path: Path, sha256: str) -> Path:
    """Move a file of that sha256 into the store and return its new path."""
    target = _store() / sha256
    with atomic_file(target) as partial:
        path.replace(partial)
    return target


def checksum(path: Path, algorithm: str) -> str:
    """The sum of a file of the store by an algorithm, in hex."""
    return path.name if algorithm == "sha256" else _sum_of(path, algorithm)


def alias(digest: str, path: Path) -> None:
    """Let `stored(digest)` find a file of the store that has another sha256."""
    with atomic_file(_store() / f"{digest}.alias") as partial:
        partial.write_text(path.name)


def forget(digest: str) -> None:
    """Take an alias back."""
    (_store() / f"{digest}.alias").unlink(missing_ok=True)


def is_validator(text: object) -> bool:
    """Whether this is a strong ETag or an HTTP date, short and safe to send."""
    return isinstance(text, str) and _VALIDATOR.fullmatch(text) is not None


class Partial:
    """A file that comes in from a URL: its bytes so far, and the server's validator, by which the rest may be asked for.

    Both lie in the store, so that a later process can go on, and vanish once the file is kept. Bytes without a validator
    vanish with the block. `size`: bytes so far. `validator`: "" where there is none. `resumed`: not all are of one answer.
    """

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
        """The sum of the bytes so far."""
        return self._sum.hexdigest()

    def checksum(self, algorithm: str) -> str:
        """The same by another algorithm, for which what came is read again."""
        self._file.flush()
        return self.sha256 if algorithm == "sha256" else _sum_of(self._path, algorithm)

    def append(self, content: bytes) -> None:
        """Add what came. Raises OSError where the disk is full."""
        self._file.write(content)
        self._sum.update(content)
        self.size += len(content)

    def restart(self, validator: str) -> None:
        """Begin again with no bytes, of a server's file that has this validator."""
        self._note.unlink(missing_ok=True)  # first, so that it never stands beside bytes of another file
        self._file.truncate(0)
        self._sum, self.size, self.validator, self.resumed = hashlib.sha256(), 0, validator, False
        if validator:
            write_json(self._note, {"validator": validator})

    def discard(self) -> None:
        """Delete what came."""
        self._note.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def keep(self) -> Path:
        """Move the file into the store, now that it is whole, and return its path there."""
        self._file.close()
        path = keep(self._path, self.sha256)
        self.discard()
        return path


def _read_validator(note: Path) -> str:
    try:
        found = read_json(note)["validator"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # what is no note of ours is none
        return ""
    return str(found) if is_validator(found) else ""


def _sum_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _store() -> Path:
    store = cache_dir("store")
    store.mkdir(parents=True, exist_ok=True)
    return store
