"""Whose run it is: a process that writes one holds a file lock, which the kernel takes back when the process is gone."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from pipeline.files import cache_dir, sha256_of
from pipeline.tracking.connection import tracking_uri


class OwnedByAnother(OSError):  # noqa: N818 - it says what the run is
    """A process that is alive writes the run."""


@contextmanager
def own(key: str, kind: str = "runs") -> Iterator[None]:
    """Own the run of that key on this server; runs of each `kind` are apart. To be begun under `one_at_a_time()`. Raises OwnedByAnother.

    The lock's file stays where the block fails: the run is still to be closed.
    """
    # Named by the key, which is known before the run: a process that is killed while it makes the run leaves its name too.
    path = cache_dir("locks") / kind / _server() / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OwnedByAnother("another process writes this run") from None
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        lock.release()


def abandoned(kind: str = "runs") -> Iterator[str]:
    """The keys of runs of a kind whose process is gone, each owned while it is looked at. To be asked under `one_at_a_time()`."""
    for path in sorted((cache_dir("locks") / kind / _server()).glob("*.lock")):
        with suppress(OwnedByAnother), own(path.stem, kind):
            yield path.stem


def _server() -> str:
    return sha256_of(tracking_uri().encode())[:16]
