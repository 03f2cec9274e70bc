"""Objects in a cloud, by fsspec: one is fetched like a file of the web, all below a prefix are read several at a time.

Credentials and endpoints are where the provider's own tools look for them: `AWS_PROFILE`, `AWS_ENDPOINT_URL`, `HF_TOKEN` and so on.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import sha256_of
from pipeline.net.fetch import Bounds, Interrupted, Refused, TooLarge, Unchanged
from pipeline.net.store import Partial

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PROVIDERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface-hub"}  # scheme: package, and extra of the scheme's name
_BLOCK, _AHEAD_BYTES = 1 << 20, 1 << 24
_READERS = 16  # objects that are read at the same time; most are small, and each costs a round trip
_VERSIONS = ("ETag", "etag", "blob_id")  # where the file systems say which version of an object there is


def is_object(url: str) -> bool:
    """Whether this is the address of an object or a prefix in a cloud."""
    return re.match(rf"({'|'.join(PROVIDERS)})://", url, re.IGNORECASE) is not None


def receive_object(url: str, partial: Partial, bounds: Bounds, deadline: float) -> None:
    """Read what the partial lacks of an object and append it; the counterpart of `fetch.receive`, with the same promises."""
    bounds.check(partial.size, deadline)
    filesystem, path = _open(url)
    size, version = _look(filesystem, path)
    if version and version == partial.known and not partial.size:
        raise Unchanged
    bounds.check(size, deadline)
    if not version or version != partial.validator or partial.size > size:
        partial.restart(version)
    partial.resumed = partial.resumed or partial.size > 0
    with tqdm(desc="fetch", total=size, initial=partial.size, unit="B", unit_scale=True, disable=None) as bar:
        for block in _blocks(filesystem, path, partial.size):
            partial.append(block)
            bar.update(len(block))
            bounds.check(partial.size, deadline)
    if _look(filesystem, path) != (partial.size, version):
        partial.restart("")
        raise Interrupted("the object changed while it was read")


def list_objects(url: str) -> dict[str, int]:
    """`name: bytes` of the objects below a prefix, by their path in it. Raises PipelineError."""
    with _named(url):
        filesystem, root = _open_prefix(url)
        with _faults():
            found = filesystem.find(root, detail=True)
    return {name.removeprefix(f"{root}/"): int(info["size"]) for name, info in found.items() if info["type"] == "file"}


@contextmanager
def reading_objects(url: str, sizes: dict[str, int], bounds: Bounds) -> Iterator[Callable[[str], bytes]]:
    """Yield a function that reads an object below a prefix. Those that follow in the order of `sizes` are read in the background.

    `sizes`: as `list_objects` returned it. Raises PipelineError if the objects exceed the bounds or one changes.
    """
    deadline = time.monotonic() + bounds.hours * 3600
    with _named(url):
        filesystem, root = _open_prefix(url)
        bounds.check(sum(sizes.values()), deadline)

    def read(name: str) -> bytes:
        with _named(f"{url.rstrip('/')}/{name}"):
            bounds.check(0, deadline)
            with _faults():
                content = filesystem.cat_file(f"{root}/{name}")
            if len(content) != sizes[name]:
                raise Refused("changed while it was read", "run again")
            return bytes(content)

    with ThreadPoolExecutor(_READERS) as pool:
        try:
            yield _Ahead(pool, read, list(sizes))
        finally:
            pool.shutdown(cancel_futures=True)


class _Ahead:
    """Reads names in an order of its own in the background, and a name out of turn when it is asked for."""

    def __init__(self, pool: ThreadPoolExecutor, read: Callable[[str], bytes], names: Sequence[str]) -> None:
        self._pool, self._read, self._waiting = pool, read, iter(names)
        self._started: dict[str, Future[bytes]] = {}

    def __call__(self, name: str) -> bytes:
        while len(self._started) < 2 * _READERS and (following := next(self._waiting, None)) is not None:
            self._started[following] = self._pool.submit(self._read, following)
        future = self._started.pop(name, None)
        return future.result() if future else self._read(name)


def _open(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of an address and the path in it, without what it remembers of earlier looks."""
    import fsspec

    scheme = urlsplit(url).scheme.lower()
    if "::" in url:
        raise Refused("is a chain of addresses", "give the address of the object itself")
    with _faults():
        try:
            filesystem, path = fsspec.url_to_fs(url)
        except ImportError:
            raise Refused(f"needs the package {PROVIDERS[scheme]}", f"install it: pip install -e '.[{scheme}]'") from None
        filesystem.invalidate_cache()
    return filesystem, path


def _open_prefix(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a prefix, and the path of the prefix as the listing begins with it."""
    filesystem, path = _open(url)
    with _faults():
        info = filesystem.info(path)
    if info["type"] != "directory":
        raise Refused("is an object, but its name is not that of an archive or a Parquet file", "rename it")
    return filesystem, str(info["name"]).rstrip("/")


def _look(filesystem: "AbstractFileSystem", path: str) -> tuple[int, str]:
    """The size of an object, and its version as a validator of the store; "" if the provider states none."""
    with _faults():
        filesystem.invalidate_cache()
        info: dict[str, Any] = filesystem.info(path)
    if info["type"] != "file":
        raise Refused("is a folder, not an object")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return int(info["size"]), f'"{sha256_of(version.encode())}"' if version else ""


def _blocks(filesystem: "AbstractFileSystem", path: str, start: int) -> Iterator[bytes]:
    with _faults(), filesystem.open(path, "rb", block_size=_AHEAD_BYTES, cache_type="readahead") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            yield block


@contextmanager
def _faults() -> Iterator[None]:
    """Turn the errors of providers' packages, which have no class in common, into Refused or Interrupted."""
    try:
        yield
    except (Refused, Interrupted):
        raise
    except FileNotFoundError:
        raise Refused("does not exist") from None
    except Exception as error:
        said = without_password(" ".join(str(error).split())[:200].rstrip(".")) or type(error).__name__
        if isinstance(error, PermissionError) or "credential" in said.lower():
            raise Refused(f"access is refused: {said}", "set the credentials as the provider's own tools expect them") from None
        raise Interrupted(said) from None


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn Refused and Interrupted into a PipelineError that names the address."""
    try:
        yield
    except (Refused, Interrupted, TooLarge) as fault:
        cure = getattr(fault, "cure", "") or "check the address and the network, and run again"
        raise PipelineError(f"{without_password(url)}: {fault}; {cure}") from None
