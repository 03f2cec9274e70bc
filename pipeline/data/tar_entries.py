"""What stands in a tar, by its headers alone: no links, no sparse files, an end mark.

Python's tarfile goes on where a header is damaged in the middle, takes extended headers into memory whatever they
claim, and follows a negative size round in circles; so its headers are parsed here, and its loop is not used.
"""

import bz2
import gzip
import lzma
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from pipeline.data.members import BLOCK, Budget, Entry, shown
from pipeline.errors import PipelineError

_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED_BYTES = 1 << 20  # names and attributes take far less
_NEITHER = "it begins like neither a zip nor a tar"
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_COMPRESSIONS: dict[bytes, Any] = {rb"\x1f\x8b": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\0": lzma.open}


def unpack(file: BinaryIO, plain: BinaryIO, budget: Budget) -> BinaryIO:
    """The tar in a compressed file, unpacked into `plain`; where it is not compressed, the file itself.

    It is unpacked first, since its members are read by name, and each step back would unpack it anew.
    """
    file.seek(0)
    start = file.read(10)
    file.seek(0)
    decompressed = next((open_file for pattern, open_file in _COMPRESSIONS.items() if re.match(pattern, start)), None)
    if decompressed is None:
        return file
    with decompressed(file) as source:
        while block := source.read(BLOCK):
            budget.add_bytes(len(block))
            plain.write(block)
    return plain


def tar_entries(file: BinaryIO, budget: Budget) -> Iterator[Entry]:
    """The members of a plain tar. Raises PipelineError on links and the like, and tarfile.TarError on a damaged one."""
    for header in _headers(file):
        budget.add_file()
        if fault := _fault(header):
            raise PipelineError(f"{budget.title}: member {shown(header.name)} {fault}")
        yield Entry(header.name, header.isdir(), partial(_blocks, file, header.offset_data, header.size))


def _fault(header: tarfile.TarInfo) -> str | None:
    if header.type == tarfile.GNUTYPE_SPARSE:  # a few bytes of it may claim terabytes
        return "is a sparse file; pack it again without holes"
    if not (header.isreg() or header.isdir()):
        return "is a link or a device; pack the file itself"
    return None


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The header of each member, with what extended headers before it say in its place."""
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
        position = header.offset_data + (0 if header.isdir() else _padded(header.size))
        if position > end:
            raise tarfile.ReadError(f"it ends inside member {shown(header.name)}")


def _read_header(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """The header at an offset, None for the end mark, behind which only zeros may stand."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without its end mark" if offset else _NEITHER)
    if any(block):
        return _parse(block, offset)
    while rest := file.read(BLOCK):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("something stands behind its end mark")
    return None


def _parse(block: bytes, offset: int) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(f"the header at byte {offset} is damaged ({error})" if offset else _NEITHER) from None
    if header.size < 0:
        raise tarfile.ReadError(f"member {shown(header.name)} claims a negative size")
    return header


def _read_extended(file: BinaryIO, header: tarfile.TarInfo) -> dict[str, str]:
    """What an extended header says of the name and the size of what follows, and whether it is sparse."""
    if header.size > _EXTENDED_BYTES:
        raise tarfile.ReadError(f"an extended header claims {header.size} bytes")
    content = file.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(content.partition(b"\0")[0])}
    if header.type == tarfile.GNUTYPE_LONGLINK:
        return {}
    said = {("sparse" if key.startswith("GNU.sparse.") else key): value for key, value in _pax_records(content)}
    return {key: said[key] for key in ("path", "size", "sparse") if key in said}


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """The records «length key=value» of a pax header, where the length is that of all of the record and its newline."""
    start = 0
    while start < len(content):
        record = _PAX_RECORD.match(content, start)
        end = start + int(record[1]) if record else 0
        if record is None or end <= record.end() or content[end - 1 : end] != b"\n":
            raise tarfile.ReadError("an extended header is no list of records")
        yield _text(record[2]), _text(content[record.end() : end - 1])
        start = end


def _apply(said: dict[str, str], header: tarfile.TarInfo) -> None:
    header.name = said.get("path", header.name)
    if "sparse" in said:
        header.type = tarfile.GNUTYPE_SPARSE
    if "size" in said:
        if not re.fullmatch(r"[0-9]{1,18}", said["size"]):
            raise tarfile.ReadError(f"member {shown(header.name)} claims a size that is no number")
        header.size = int(said["size"])


def _blocks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0:
        block = file.read(min(size, BLOCK))
        if not block:
            raise EOFError("it became shorter while it was read")
        size -= len(block)
        yield block


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
