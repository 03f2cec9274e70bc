"""What stands in a zip, read by Python's zipfile after its directory was looked over."""

import stat
import struct
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from pipeline.data.members import BLOCK, Budget, Entry, shown
from pipeline.errors import PipelineError

_END = struct.Struct("<4s8x2LH")  # its mark; the directory's size and start, the comment's size
_END_64, _LOCATOR_64 = struct.Struct("<4s36x2Q"), 20  # the same of a large zip, and the bytes that follow it
_ENTRY = struct.Struct("<28x3H12x")  # sizes of name, extra field and comment
_LOCAL_BYTES = 30  # the least that stands before a member's content
_DIRECTORY_BYTES = 1 << 30  # zipfile takes the directory into memory
_COMMENT_BYTES = (1 << 16) - 1
_ENCRYPTED = 0x2041  # the flags of a password, of strong encryption, of a hidden directory


def zip_entries(file: BinaryIO, budget: Budget) -> Iterator[Entry]:
    """The members of a zip. Raises PipelineError on links and the like, and what zipfile raises on a damaged one."""
    start, end = _find_directory(file)
    _count_members(file, start, end, budget)
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    _expect_apart(infos, start)
    for info in infos:
        if fault := _fault(info):
            raise PipelineError(f"{budget.title}: member {shown(info.orig_filename)} {fault}")
        yield Entry(info.orig_filename, info.orig_filename.endswith("/"), partial(_blocks, archive, info, info.file_size))


def _find_directory(file: BinaryIO) -> tuple[int, int]:
    """Where the directory starts and ends. A zip with anything before or behind it is refused: readers differ on it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("the end of the zip is missing")
    _, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise zipfile.BadZipFile("something stands behind the end of the zip")
    end = size - len(tail) + at
    file.seek(max(0, end - _LOCATOR_64 - _END_64.size))
    large = file.read(_END_64.size + _LOCATOR_64)
    if large.startswith(b"PK\6\6") and large[_END_64.size :].startswith(b"PK\6\7"):
        _, length, start = _END_64.unpack_from(large)
        end -= len(large)
    if start + length != end:
        raise zipfile.BadZipFile("the zip's directory is not where its end says, or something stands before the zip")
    if length > _DIRECTORY_BYTES:
        raise zipfile.BadZipFile("the zip's directory is larger than 1 GiB")
    return start, end


def _count_members(file: BinaryIO, start: int, end: int, budget: Budget) -> None:
    """Count what the directory lists before zipfile makes an object of each; the number at its end may be a lie."""
    while start < end:
        file.seek(start)
        head = file.read(_ENTRY.size)
        if len(head) < _ENTRY.size:
            break  # zipfile will say so
        budget.add_file()
        start += _ENTRY.size + sum(_ENTRY.unpack(head))


def _expect_apart(infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Members that share their content are how a small zip unpacks to petabytes."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), directory]
    for info, end in zip(ordered, ends, strict=False):
        if info.header_offset + _LOCAL_BYTES + info.compress_size > end:
            raise zipfile.BadZipFile(f"member {shown(info.orig_filename)} reaches into what follows it")


def _fault(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted; pack it again without a password"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; pack the file itself"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks the others without a bound
        return "is compressed in an unusual way; pack the archive again with the usual compression (deflate)"
    return None


def _blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, claimed: int) -> Iterator[bytes]:
    info.file_size = sys.maxsize  # zipfile would cut what comes out to what the header claims
    size = 0
    with archive.open(info) as file:
        while block := file.read(BLOCK):
            size += len(block)
            yield block
    if size != claimed:
        raise zipfile.BadZipFile(f"member {shown(info.orig_filename)} holds {size} bytes and claims {claimed}")
