"""The files of an archive or a folder: safe names, no two alike, within the limits."""

import lzma
import re
import tarfile
import textwrap
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from pydantic import PositiveFloat, PositiveInt

from pipeline.core.errors import PipelineError
from pipeline.core.params import Section


class Limits(Section):  # section `download.limits` of params.yaml
    """Bounds on a download and on what is unpacked of it; 1 gigabyte is 10⁹ bytes."""

    fetch_gigabytes: PositiveFloat  # of one file from the network
    fetch_hours: PositiveFloat  # for one file at one address, retries included
    files: PositiveInt
    gigabytes: PositiveFloat  # of all files, unpacked
    ratio: PositiveFloat  # unpacked bytes for each byte of the archive


Members = dict[str, Callable[[], bytes]]  # a file's name and how to read it
BLOCK = 1 << 20  # bytes; what is read at once, before the limits are looked at
_FILE_BYTES = 1 << 30  # of one file: a picture is far below it
_RATIO_FROM = 10_000_000  # bytes; up to here small flat pictures may shrink to nearly nothing
_NAME_BYTES, _PART_BYTES = 1000, 255  # what file systems take
_JUNK = re.compile(r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


class ArchiveEntry(NamedTuple):
    """What an archive says of one of its members: its name as it stands there, and how to read it, a block at a time."""

    name: str
    is_folder: bool
    blocks: Callable[[], Iterator[bytes]]


class Budget:
    """How much of the limits a source has used up, by what really came out of it; PipelineError where it is more.

    `title` names the source in messages. `packed_bytes`: the size of an archive; a folder has none, and no ratio.
    """

    def __init__(self, title: str, limits: Limits, packed_bytes: int | None = None) -> None:
        self.title = title
        self._limits, self._packed = limits, packed_bytes
        self._files = self._bytes = 0
        self._sizes: dict[str, int] = defaultdict(int)

    def add_file(self) -> None:
        """Count a file; folders and what is left out count too, since they take time."""
        self._files += 1
        if self._files > self._limits.files:
            raise PipelineError(f"{self.title}: holds more than {self._limits.files} files; raise download.limits.files if that is meant")

    def add_bytes(self, count: int) -> None:
        """Count bytes that came out."""
        self._bytes += count
        if self._bytes > self._limits.gigabytes * 1e9:
            raise self._exceeded(f"{self._limits.gigabytes:g} gigabytes", "gigabytes")
        if self._packed is not None and self._bytes > max(_RATIO_FROM, self._limits.ratio * self._packed):
            raise self._exceeded(f"{self._limits.ratio:g} times its size", "ratio")

    def reach(self, name: str, size: int) -> None:
        """Count a file's bytes up to `size`, but none of them twice, however often it is read."""
        if size > _FILE_BYTES:
            raise PipelineError(f"{self.title}: {shown(name)} is larger than 1 GiB, no picture; leave it out")
        self.add_bytes(max(0, size - self._sizes[name]))
        self._sizes[name] = max(size, self._sizes[name])

    def read(self, name: str, blocks: Iterable[bytes]) -> bytes:
        """A file's bytes, put together while they are counted."""
        content = bytearray()
        for block in blocks:
            content += block
            self.reach(name, len(content))
        return bytes(content)

    def _exceeded(self, bound: str, limit: str) -> PipelineError:
        verb = "holds" if self._packed is None else "unpacks to"
        return PipelineError(f"{self.title}: {verb} more than {bound}; raise download.limits.{limit} if that is meant")


def choose_members(entries: Iterable[ArchiveEntry], budget: Budget) -> Members:
    """The files among an archive's members by name, without what systems leave behind.

    Raises PipelineError on a name that is unsafe, or that clashes with another one on some file system.
    """
    members: Members = {}
    paths: dict[str, tuple[str, bool]] = {}
    for entry in entries:
        if entry.is_folder and entry.name in (".", "./"):  # so many a tar begins
            continue
        name = entry.name.removeprefix("./")
        if entry.is_folder:
            name = name.removesuffix("/")
        if fault := name_fault(name):
            raise PipelineError(f"{budget.title}: member {shown(entry.name)} {fault}; pack the archive again without it")
        if is_junk(name):
            continue
        if fault := _clash(name, entry.is_folder, paths):
            raise PipelineError(f"{budget.title}: {fault}")
        if not entry.is_folder:
            members[name] = partial(_read, name, entry, budget)
    return members


def is_junk(name: str) -> bool:
    """Whether a path is hidden or in a hidden folder, or what systems leave behind (`__MACOSX` and the like)."""
    return bool(_JUNK.search(name))


def name_fault(name: str) -> str | None:
    """What makes a path unfit to be written below a folder on some system, if anything."""
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in parts:
        return "climbs out of the archive"
    if "\\" in name or "\0" in name or {"", "."} & set(parts):
        return "has a name that is no plain path"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "has a name that is no UTF-8"
    if max(lengths) > _PART_BYTES or len(name.encode()) > _NAME_BYTES:
        return f"has a name of more than {_PART_BYTES} bytes in a part or {_NAME_BYTES} in all"
    return None


def shown(name: str | bytes) -> str:
    """A name as messages quote it: in one line, and not for ever."""
    return repr(name) if len(name) <= 100 else f"{name[:100]!r}…"


@contextmanager
def damage_named(title: str) -> Iterator[None]:
    """Turn what Python raises on a damaged archive into one PipelineError; what the system raises (a full disk) passes."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{title}: member {shown(error.object)} has a name that is no UTF-8; pack the archive again without it"
        ) from None
    except NotImplementedError as error:
        raise PipelineError(f"{title}: is packed in a way that is not read: {error}; pack it again as a plain zip or tar") from None
    except MemoryError:  # an xz may ask for 4 GiB
        raise PipelineError(f"{title}: takes more memory to unpack than there is; pack it again as a plain zip or tar") from None
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = textwrap.shorten(str(error) or "it ends too early", 300, placeholder=" …").rstrip(".")
        raise PipelineError(f"{title}: is damaged or no archive: {reason}; fetch it again") from None


def _read(name: str, entry: ArchiveEntry, budget: Budget) -> bytes:
    with damage_named(budget.title):
        return budget.read(name, entry.blocks())


def _clash(name: str, is_folder: bool, paths: dict[str, tuple[str, bool]]) -> str | None:
    """Note a path and the folders above it; what is wrong where one was there with another spelling or of another kind.

    `paths` maps each, regardless of case and Unicode form, to its spelling and whether it is a folder.
    """
    parts, key = name.split("/"), ""
    for depth, part in enumerate(parts, 1):
        key += "/" + unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())
        here = "/".join(parts[:depth]), depth < len(parts) or is_folder
        there = paths.setdefault(key, here)
        if there[0] != here[0]:
            return f"{shown(there[0])} and {shown(here[0])} differ by case or Unicode form alone; rename one and pack the archive again"
        if there[1] != here[1]:
            return f"{shown(here[0])} is a file and a folder at once; rename one and pack the archive again"
        if not here[1] and there is not here:  # it was noted before, not now
            return f"member {shown(name)} is there twice; pack the archive again without one"
    return None
