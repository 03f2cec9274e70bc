"""Archives: read with suspicion, packed into one plain zip that is the same for the same content."""

import errno
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.files import sha256_of

Members = dict[str, Callable[[], bytes]]  # a file's name and how to read it

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_JUNK = re.compile(r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, NotImplementedError)


def is_archive(name: str) -> bool:
    """Whether a file name ends like an archive that `open_archive` reads."""
    return name.lower().endswith(_SUFFIXES)


@contextmanager
def open_archive(path: Path, title: str) -> Iterator[Members]:
    """The regular files of a zip or tar by name, without what systems leave behind (`.DS_Store` and the like).

    `title` names the archive in messages. Raises PipelineError on anything unsafe or damaged.
    """
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else _open_tar(path) as opened:
            listing = _zip_entries(opened, title) if isinstance(opened, zipfile.ZipFile) else _tar_entries(opened, title)
            yield _members(listing, title)
    except _DAMAGED as error:
        raise PipelineError(f"{title}: is damaged or no archive: {' '.join(str(error).split())}; fetch it again") from None


def folder_members(folder: Path) -> Members:
    """The regular files below a folder by their path in it, junk left out. Raises PipelineError on links."""
    members: Members = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _JUNK.search(name):
            continue
        if path.is_symlink():
            raise PipelineError(f"{folder}: {name!r} is a link; put the file itself there")
        if path.is_file():
            members[name] = path.read_bytes
    return members


def pack(members: Members, target: Path) -> str:
    """Write members as one zip (stored, sorted, fixed dates: same content, same bytes) and return `digest_of` them."""

    def write(name: str) -> bytes:
        content = members[name]()
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o644 << 16
        archive.writestr(info, content)
        return content

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        return digest_of({name: lambda name=name: write(name) for name in members})  # type: ignore[misc]


def digest_of(members: Members) -> str:
    """The digest of a set of files: sha256 over the lines «sha256  path» in the order of the paths."""
    lines = (f"{sha256_of(members[name]())}  {name}\n" for name in tqdm(sorted(members), "pack", disable=None, leave=False))
    return sha256_of("".join(lines).encode("utf-8", "surrogateescape"))


_Entry = tuple[str, bool, Callable[[], bytes]]  # name, whether it is a folder, how to read it


def _zip_entries(archive: zipfile.ZipFile, title: str) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & 1:
            raise PipelineError(f"{title}: member {info.orig_filename!r} is encrypted; pack it again without a password")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise PipelineError(f"{title}: member {info.orig_filename!r} is a link or a device; pack the file itself")
        yield info.orig_filename, info.is_dir(), lambda info=info: _read(archive, info)  # type: ignore[misc]


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes. zipfile lets an OSError out of some damaged archives, which the system would not raise."""
    try:
        return archive.read(info)
    except OSError as error:
        if error.errno in (None, errno.EINVAL):
            raise zipfile.BadZipFile(str(error)) from None
        raise


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, unpacked first where it is compressed: its members are read by name, and each step back would unpack anew."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with tempfile.TemporaryFile() as plain, gzip.open(path) if is_gzip else path.open("rb") as source:
        if is_gzip:
            shutil.copyfileobj(source, plain, 1 << 20)
            plain.seek(0)
        with tarfile.open(fileobj=plain if is_gzip else source) as opened:
            yield opened


def _tar_entries(archive: tarfile.TarFile, title: str) -> Iterator[_Entry]:
    for info in archive:
        if not (info.isreg() or info.isdir()):
            raise PipelineError(f"{title}: member {info.name!r} is a link or a device; pack the file itself")
        yield info.name, info.isdir(), lambda info=info: archive.extractfile(info).read()  # type: ignore[misc,union-attr]


def _members(entries: Iterator[_Entry], title: str) -> Members:
    members: Members = {}
    for raw_name, is_folder, read in entries:
        name = raw_name.removeprefix("./").rstrip("/")
        if name in ("", "."):
            continue
        if fault := _name_fault(name):
            raise PipelineError(f"{title}: member {raw_name!r} {fault}; pack the archive again without it")
        if name in members:
            raise PipelineError(f"{title}: member {raw_name!r} is there twice; pack the archive again without one")
        if not is_folder and not _JUNK.search(name):
            members[name] = read
    return members


def _name_fault(name: str) -> str | None:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "climbs out of the archive"
    if "\\" in name or "\0" in name or {"", "."} & set(name.split("/")):
        return "has a name that is no plain path"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is no UTF-8"
    return None
