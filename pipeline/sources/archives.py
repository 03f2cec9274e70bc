"""Archives: zip and tar from untrusted sources, and one zip of pictures that is the same bytes for the same content."""

import bz2
import gzip
import html
import lzma
import re
import stat
import struct
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.files import digest_of_sums, sha256_of
from pipeline.net import store
from pipeline.sources.members import BLOCK, ArchiveEntry, Budget, Limits, Members, choose_members, damage_named, shown
from pipeline.sources.names import expect_encoding, tar_name, zip_names

_COMPRESSIONS: dict[bytes, Any] = {rb"\x1f\x8b": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\0": lzma.open}
_OTHER_ARCHIVES = {"a RAR archive": b"Rar!\x1a\7", "a 7z archive": b"7z\xbc\xaf\x27\x1c", "a Zstandard archive": b"\x28\xb5\x2f\xfd"}
_NO_ARCHIVES = {
    "an empty file": rb"\Z",
    "one picture": rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP",
    "a PDF": rb"%PDF-",
    "a pointer of Git LFS": rb"version https://git-lfs",
}
_PAGE_BYTES = 1 << 16  # of what may be a web page: its title stands near its start
_NEITHER = "it does not begin like a zip or a tar"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date of a zip

# Zip: the records at the end of the file, of which only the fields that are checked have a place here.
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")
_END = struct.Struct("<4s8x2LH")  # signature, size and start of the directory, size of the comment
_END_64, _LOCATOR_64 = struct.Struct("<4s36x2Q"), 20  # the same of a zip64, and the bytes of the locator after it
_ENTRY = struct.Struct("<28x3H12x")  # in the directory: sizes of name, extra field and comment
_LOCAL_BYTES = 30  # at least, of the header before a member's content
_COMMENT_BYTES = (1 << 16) - 1
_DIRECTORY_BYTES = 1 << 30  # zipfile reads the directory into memory
_ENCRYPTED = 0x2041  # flags: password, strong encryption, encrypted directory

# Tar
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED_BYTES = 1 << 20  # names and attributes are far smaller
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


@contextmanager
def open_archive(path: Path, title: str, limits: Limits, encoding: str | None = None) -> Iterator[Members]:
    """The regular files of a zip or tar by name, without the files that systems add (`.DS_Store` and the like).

    `title` names the archive in messages. `encoding`: of names that are not marked as UTF-8; None: guessed in a
    zip. Raises PipelineError on anything unsafe or damaged and beyond the limits, at once or when a member is read.
    """
    if encoding is not None:
        expect_encoding(encoding)
    with path.open("rb") as file, ExitStack() as stack:
        with damage_named(title):
            budget = Budget(title, limits, path.stat().st_size)
            start = file.read(_PAGE_BYTES)
            if start[:4] in _ZIP_STARTS:
                entries = zip_entries(file, budget, encoding)
            elif fault := _fault_of_other(start):
                raise PipelineError(f"{title}: {fault}")
            else:
                tar = stack.enter_context(plain_tar(file, budget))
                budget = Budget(title, limits, tar.seek(0, 2))  # anew: the bytes of a compressed tar were counted as they came out
                entries = tar_entries(tar, budget, encoding)
            members = choose_members(entries, budget)
        yield members


def pack(members: Members, target: Path) -> str:
    """Write members as one zip and return their `digest_of`. The same content gives the same bytes.

    Stored, since pictures are compressed already and zlib's output depends on its version; sorted; with one fixed date.
    """

    def write(name: str) -> bytes:
        content = members[name]()
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o644 << 16
        archive.writestr(info, content)
        return content

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        return digest_of({name: partial(write, name) for name in members})


def digest_of(members: Members) -> str:
    """The digest of a set of files, see `digest_of_sums`."""
    return digest_of_sums({name: sha256_of(members[name]()) for name in tqdm(sorted(members), "pack", disable=None, leave=False)})


def zip_entries(file: BinaryIO, budget: Budget, encoding: str | None = None) -> Iterator[ArchiveEntry]:
    """The members of a zip. Raises PipelineError on links and the like, and zipfile's errors on a damaged zip."""
    # The directory is checked before zipfile reads it: zipfile takes all of it into memory, and does not mind members
    # that overlap.
    start, end = _find_directory(file)
    _count_members(file, start, end, budget)
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    _expect_apart(infos, start)
    for info, name in zip(infos, zip_names(infos, encoding, budget.title), strict=True):
        if fault := _zip_fault(info):
            raise PipelineError(f"{budget.title}: member {shown(name)} {fault}")
        yield ArchiveEntry(name, name.endswith("/"), partial(_zip_blocks, archive, info, info.file_size))


@contextmanager
def plain_tar(file: BinaryIO, budget: Budget) -> Iterator[BinaryIO]:
    """Decompress a tar into a temporary file beside the store; a tar that is not compressed stays as it is.

    Members are read by name, in any order, and in a compressed file each step back would decompress it from the start.
    """
    file.seek(0)
    start = file.read(10)
    file.seek(0)
    decompressed = next((open_file for pattern, open_file in _COMPRESSIONS.items() if re.match(pattern, start)), None)
    if decompressed is None:
        yield file
        return
    with store.temporary_file() as plain:
        with decompressed(file) as source:
            while block := source.read(BLOCK):
                budget.add_bytes(len(block))
                plain.write(block)
        yield plain


def tar_entries(file: BinaryIO, budget: Budget, encoding: str | None = None) -> Iterator[ArchiveEntry]:
    """The members of a plain tar. Raises PipelineError on links and the like, and tarfile.TarError on a damaged tar."""
    for header in _headers(file):
        budget.add_file()
        if fault := _tar_fault(header):
            raise PipelineError(f"{budget.title}: member {shown(header.name)} {fault}")
        name = tar_name(header.name, encoding, budget.title)
        yield ArchiveEntry(name, header.isdir(), partial(_tar_blocks, file, header.offset_data, header.size))


def _fault_of_other(start: bytes) -> str | None:
    """What a file is that begins so and is neither a zip nor a tar, and what to do; None if it is unknown, or may be one of them."""
    if packed := next((kind for kind, begins in _OTHER_ARCHIVES.items() if start.startswith(begins)), None):
        return f"is {packed}, which is not read; unpack it into a folder and name that in download.source"
    kind = next((kind for kind, begins in _NO_ARCHIVES.items() if re.match(begins, start)), None) or _page_in(start) or _text_in(start)
    return kind and f"is {kind}, not an archive; give the address or path of the file itself"


def _page_in(start: bytes) -> str | None:
    """What a server sent in place of an archive: a page, as of a share or a login, or an error in XML or JSON; None if none of them."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<" and re.search(rb"<(!doctype\s+html|html|head|body)\b", text, re.IGNORECASE):
        title = re.search(rb"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        words = " ".join(html.unescape(title[1].decode(errors="replace")).split()) if title else ""
        return "an HTML page" + f" with the title {shown(words)}" * bool(words)
    if text.startswith(b"<?xml"):
        return "an XML document"
    return "a JSON document" if re.match(rb'\{\s*"|\[\s*[{"]', text) else None


def _text_in(start: bytes) -> str | None:
    """The first line of a text; None if it is none. A tar has zeros in its first block."""
    words = start[: tarfile.BLOCKSIZE].decode(errors="replace").split()
    if not "".join(words).rstrip("\ufffd").isprintable() or not words:
        return None
    return f"a text that begins with {textwrap.shorten(' '.join(words), 60, placeholder=' …')!r}"


def _find_directory(file: BinaryIO) -> tuple[int, int]:
    """The start and the end of a zip's directory. A zip with bytes before or after it is refused: readers differ on those."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("the end of the zip is missing")
    _, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise zipfile.BadZipFile("there are bytes after the end of the zip")
    end = size - len(tail) + at
    file.seek(max(0, end - _LOCATOR_64 - _END_64.size))
    large = file.read(_END_64.size + _LOCATOR_64)
    if large.startswith(b"PK\6\6") and large[_END_64.size :].startswith(b"PK\6\7"):
        _, length, start = _END_64.unpack_from(large)
        end -= len(large)
    if start + length != end:
        raise zipfile.BadZipFile("the zip's directory is not where its end says, or there are bytes before the zip")
    if length > _DIRECTORY_BYTES:
        raise zipfile.BadZipFile("the zip's directory is larger than 1 GiB")
    return start, end


def _count_members(file: BinaryIO, start: int, end: int, budget: Budget) -> None:
    """Count the entries of the directory before zipfile makes an object of each. The number that the zip states may be false."""
    while start < end:
        file.seek(start)
        head = file.read(_ENTRY.size)
        if len(head) < _ENTRY.size:
            break  # zipfile reports the damage
        budget.add_file()
        start += _ENTRY.size + sum(_ENTRY.unpack(head))


def _expect_apart(infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse members that overlap. By sharing their content, a zip of megabytes unpacks to petabytes (Fifield, 2019)."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), directory]
    for info, end in zip(ordered, ends, strict=False):
        if info.header_offset + _LOCAL_BYTES + info.compress_size > end:
            raise zipfile.BadZipFile(f"member {shown(info.orig_filename)} overlaps what follows it")


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted; pack it again without a password"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; pack the file itself"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile decompresses the others without a bound
        return "is compressed in an unusual way; pack the archive again with the usual compression (deflate)"
    return None


def _zip_blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, claimed: int) -> Iterator[bytes]:
    info.file_size = sys.maxsize  # otherwise zipfile silently cuts the content to the claimed size
    size = 0
    with archive.open(info) as file:
        while block := file.read(BLOCK):
            size += len(block)
            yield block
    if size != claimed:
        raise zipfile.BadZipFile(f"member {shown(info.orig_filename)} has {size} bytes and claims {claimed}")


def _tar_fault(header: tarfile.TarInfo) -> str | None:
    if header.type == tarfile.GNUTYPE_SPARSE:  # a few of its bytes may claim terabytes
        return "is a sparse file; pack it again without holes"
    if not (header.isreg() or header.isdir()):
        return "is a link or a device; pack the file itself"
    return None


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The header of each member, with the values of the extended headers before it.

    Not `tarfile.TarFile`: it reads extended headers of any size into memory, one call deeper for each, and takes a
    damaged header for the end.
    """
    end = file.seek(0, 2)
    position = 0
    of_all: dict[str, str] = {}
    of_next: dict[str, str] = {}
    while header := _read_header(file, position):
        header.offset_data = file.tell()
        if header.type in _EXTENDED:
            (of_all if header.type == tarfile.XGLTYPE else of_next).update(_read_extended(file, header))
        else:
            _apply(of_all | of_next, header)
            yield header
            of_next = {}
        # Content is padded to whole blocks. A member must end within the file, so each is bounded by what is really there.
        padded = -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        position = header.offset_data + (0 if header.isdir() else padded)
        if position > end:
            raise tarfile.ReadError(f"it ends inside member {shown(header.name)}")


def _read_header(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """The header at an offset, or None for the end mark, after which there may only be zeros."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without its end mark" if offset else _NEITHER)
    if not any(block):
        while rest := file.read(BLOCK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there are bytes after its end mark")
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(f"the header at byte {offset} is damaged ({error})" if offset else _NEITHER) from None
    if header.size < 0:
        raise tarfile.ReadError(f"member {shown(header.name)} claims a negative size")
    return header


def _read_extended(file: BinaryIO, header: tarfile.TarInfo) -> dict[str, str]:
    """The path, size and sparseness that an extended header sets for what follows."""
    if header.size > _EXTENDED_BYTES:
        raise tarfile.ReadError(f"an extended header claims {header.size} bytes")
    content = file.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(content.partition(b"\0")[0])}
    if header.type == tarfile.GNUTYPE_LONGLINK:
        return {}
    values = {("sparse" if key.startswith("GNU.sparse.") else key): value for key, value in _pax_records(content)}
    return {key: values[key] for key in ("path", "size", "sparse") if key in values}


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """The records «length key=value» of a pax header. The length is that of the whole record with its newline."""
    start = 0
    while start < len(content):
        record = _PAX_RECORD.match(content, start)
        end = start + int(record[1]) if record else 0
        if record is None or end <= record.end() or content[end - 1 : end] != b"\n":
            raise tarfile.ReadError("an extended header is not a list of records")
        yield _text(record[2]), _text(content[record.end() : end - 1])
        start = end


def _apply(values: dict[str, str], header: tarfile.TarInfo) -> None:
    header.name = values.get("path", header.name)
    if "sparse" in values:
        header.type = tarfile.GNUTYPE_SPARSE
    if "size" in values:
        if not re.fullmatch(r"[0-9]{1,18}", values["size"]):
            raise tarfile.ReadError(f"member {shown(header.name)} claims a size that is not a number")
        header.size = int(values["size"])


def _tar_blocks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0:
        block = file.read(min(size, BLOCK))
        if not block:
            raise EOFError("it became shorter while it was read")
        size -= len(block)
        yield block


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
