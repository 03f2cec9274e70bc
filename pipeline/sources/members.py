"""The files of an archive or a folder: safe names, no two equal on any file system, within the limits."""

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
from pipeline.core.sections import Section

BLOCK = 1 << 20  # bytes that are read at once, before the limits are checked
_FILE_BYTES = 1 << 30  # of one file; a picture is far smaller
_RATIO_FROM = 10_000_000  # bytes; below, small pictures of few colours may be compressed without a bound
_NAME_BYTES, _PART_BYTES = 1000, 255  # what file systems accept
_SYSTEM_NAMES = {  # folders and files that systems add, in lower case; hidden ones need no entry
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "icon\r"),  # macOS
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *("@eadir", "#recycle", "#snapshot", "@sharebin", "@tmp"),  # Synology
    *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
    *("~snapshot", "lost+found"),  # NetApp, ext4
}
_SYSTEM_ENDINGS = (":zone.identifier", "@synoeastream", "@synoresource")  # of files beside a picture: Windows in WSL, Synology
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)

Members = dict[str, Callable[[], bytes]]  # a file's name, and how to read it
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(name: str) -> bool:
    """Whether `open_archive` reads files with the suffix of this name."""
    return name.lower().endswith(_ARCHIVE_SUFFIXES)


class Limits(Section):  # section `download.limits` of params.yaml
    """Limits on a download and on its unpacked content. 1 gigabyte is 10⁹ bytes."""

    fetch_gigabytes: PositiveFloat  # of one downloaded file
    fetch_hours: PositiveFloat  # for one file at one address, with all retries
    files: PositiveInt
    gigabytes: PositiveFloat  # of all files, unpacked
    ratio: PositiveFloat  # unpacked bytes per byte of the archive


class ArchiveEntry(NamedTuple):
    """A member of an archive, unchecked: its name as the archive spells it, and its content in blocks."""

    name: str
    is_folder: bool
    blocks: Callable[[], Iterator[bytes]]


class Budget:
    """How much of the limits a source has used. It counts the bytes that were read, not the sizes that headers claim.

    `title` names the source in messages. `packed_bytes`: the size of an archive; a folder has none, and no ratio. Every
    method raises PipelineError beyond the limits.
    """

    def __init__(self, title: str, limits: Limits, packed_bytes: int | None = None) -> None:
        self.title = title
        self._limits, self._packed = limits, packed_bytes
        self._files = self._bytes = 0
        self._sizes: dict[str, int] = defaultdict(int)

    def add_file(self) -> None:
        """Count a file. Folders and skipped files count too, since they take time."""
        self._files += 1
        if self._files > self._limits.files:
            raise self._exceeded(f"{self._limits.files} files", "files", "contains")

    def add_bytes(self, count: int) -> None:
        """Count bytes that were read."""
        self._bytes += count
        if self._bytes > self._limits.gigabytes * 1e9:
            verb = "contains" if self._packed is None else "unpacks to"
            raise self._exceeded(f"{self._limits.gigabytes:g} gigabytes", "gigabytes", verb)
        if self._packed is not None and self._bytes > max(_RATIO_FROM, self._limits.ratio * self._packed):
            raise self._exceeded(f"{self._limits.ratio:g} times its size", "ratio", "unpacks to")

    def reach(self, name: str, size: int) -> None:
        """Count a file's bytes up to `size`. A byte that is read again is not counted again."""
        if size > _FILE_BYTES:
            raise PipelineError(f"{self.title}: {shown(name)} is larger than 1 GiB, which no picture is; leave it out")
        self.add_bytes(max(0, size - self._sizes[name]))
        self._sizes[name] = max(size, self._sizes[name])

    def read(self, name: str, blocks: Iterable[bytes]) -> bytes:
        """A file's content, counted block by block."""
        content = bytearray()
        for block in blocks:
            content += block
            self.reach(name, len(content))
        return bytes(content)

    def _exceeded(self, bound: str, limit: str, verb: str) -> PipelineError:
        return PipelineError(f"{self.title}: {verb} more than {bound}; raise download.limits.{limit} if this is intended")


def choose_members(entries: Iterable[ArchiveEntry], budget: Budget) -> Members:
    """The files of an archive by name in Unicode's form NFC, without the files that systems add.

    Raises PipelineError on an unsafe name, and on two names that some file system takes for equal.
    """
    members: Members = {}
    paths: dict[str, tuple[str, bool]] = {}
    for entry in entries:
        if entry.is_folder and entry.name in (".", "./"):  # the first member of many tars
            continue
        spelt = entry.name.removeprefix("./")
        if entry.is_folder:
            spelt = spelt.removesuffix("/")
        name = unicodedata.normalize("NFC", spelt)
        if fault := name_fault(name):
            raise PipelineError(f"{budget.title}: member {shown(entry.name)} {fault}; pack the archive again without it")
        if is_junk(name):
            continue
        if fault := _clash(spelt, entry.is_folder, paths):
            raise PipelineError(f"{budget.title}: {fault}")
        if not entry.is_folder:
            members[name] = partial(_read, name, entry, budget)
    return members


def is_junk(name: str) -> bool:
    """Whether a path is hidden, or added by an operating or storage system, or in such a folder (`__MACOSX`, `@eaDir`)."""
    parts = [part.casefold() for part in name.split("/")]
    return any(part.startswith(".") or part in _SYSTEM_NAMES or part.endswith(_SYSTEM_ENDINGS) for part in parts)


def name_fault(name: str) -> str | None:
    """Why a path must not be written below a folder on some system, or None."""
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in parts:
        return "leads out of the archive"
    if "\\" in name or "\0" in name or {"", "."} & set(parts):
        return "does not have a plain path as its name"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if max(lengths) > _PART_BYTES or len(name.encode()) > _NAME_BYTES:
        return f"has a name of more than {_PART_BYTES} bytes in a part or {_NAME_BYTES} in all"
    return None


def shown(name: str | bytes) -> str:
    """A name as messages quote it: on one line, at most 100 characters."""
    return repr(name) if len(name) <= 100 else f"{name[:100]!r}…"


@contextmanager
def damage_named(title: str) -> Iterator[None]:
    """Turn Python's errors on a damaged archive into a PipelineError. Errors of the system (a full disk) pass unchanged."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{title}: member {shown(error.object)} has a name that is not UTF-8; pack the archive again without it"
        ) from None
    except NotImplementedError as error:
        raise PipelineError(f"{title}: is packed in an unsupported way: {error}; pack it again as a plain zip or tar") from None
    except MemoryError:  # an xz may ask for 4 GiB
        raise PipelineError(f"{title}: needs more memory to unpack than there is; pack it again as a plain zip or tar") from None
    except (*_DAMAGED, OSError) as error:
        # Only the system sets errno; gzip and bz2 raise OSError without it for damaged content.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = textwrap.shorten(str(error) or "it ends too early", 300, placeholder=" …").rstrip(".")
        raise PipelineError(f"{title}: is damaged or not an archive: {reason}; download it again") from None


def _read(name: str, entry: ArchiveEntry, budget: Budget) -> bytes:
    with damage_named(budget.title):
        return budget.read(name, entry.blocks())


def _clash(name: str, is_folder: bool, paths: dict[str, tuple[str, bool]]) -> str | None:
    """Record a path and the folders above it. Returns the fault if one of them is there in another spelling or kind.

    `paths`: from the folded path to its first spelling, and whether it is a folder.
    """
    parts, key = name.split("/"), ""
    for depth, part in enumerate(parts, 1):
        # Windows and macOS ignore case, macOS ignores how an accent is encoded. NFC comes before casefold, too: casefold
        # alone gives different results for some spellings that are canonically equal.
        key += "/" + unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())
        here = "/".join(parts[:depth]), depth < len(parts) or is_folder
        there = paths.setdefault(key, here)
        if there[0] != here[0]:
            return f"{shown(there[0])} and {shown(here[0])} differ only by case or Unicode form; rename one and pack the archive again"
        if there[1] != here[1]:
            return f"{shown(here[0])} is both a file and a folder; rename one and pack the archive again"
        if not here[1] and there is not here:  # an earlier member has this name
            return f"contains member {shown(name)} twice; pack the archive again without one"
    return None
