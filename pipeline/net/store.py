"""The store, `.cache/store`: downloaded files by their sha256, aliases of them, and partial downloads."""

import hashlib
import re
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pipeline.core.files import atomic_file, cache_dir, read_json, sha256_of, sha256_of_file, write_json

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
    try:
        note = read_json(_seen_note(url))
        validator, sha256 = note["validator"], note["sha256"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # missing, or not written by this module
        return None
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


def _seen_note(url: str) -> Path:
    return _store() / f"{sha256_of(url.encode())}.seen.json"


def _read_validator(note: Path) -> str:
    try:
        validator = read_json(note)["validator"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # missing, or not written by this class
        return ""
    return str(validator) if is_validator(validator) else ""


def _checksum_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _store() -> Path:
    store = cache_dir("store")
    store.mkdir(parents=True, exist_ok=True)
    return store
