"""Archives for tests: valid ones, and crafted ones in which every field may be false."""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass

from pipeline.sources.members import Limits
from pipeline.sources.shards import pack_shards, read_index


def limits(**changes):
    """Limits that no valid archive of a test exceeds."""
    return Limits(**{"fetch_gigabytes": 1, "fetch_hours": 1, "files": 1000, "gigabytes": 0.1, "ratio": 200, **changes})


def make_zip(path, *names, content=b"x", **options):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **options) as archive:
        warnings.simplefilter("ignore")  # a name that occurs twice
        for name in names:
            archive.writestr(name, content)
    return path


def make_tar(path, *names, mode="w", kind=tarfile.REGTYPE, content=b"x", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "target"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def make_shards(folder, contents):
    """Write pictures as the stage `download` does."""
    folder.mkdir(parents=True, exist_ok=True)
    pack_shards({name: lambda content=content: content for name, content in contents.items()}, folder, {}, {})
    return folder


def read_shards(folder):
    return {name: part.read_bytes() for name, part in read_index(folder).items()}


@dataclass
class ZipMember:
    """A member as its headers describe it; None: the truth. One with an offset is only in the directory."""

    name: bytes
    content: bytes = b"x"
    deflate: bool = False
    flags: int = 0
    method: int | None = None
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    offset: int | None = None
    extra: bytes = b""
    mode: int = 0
    local_name: bytes | None = None
    version: int = 20


def deflated(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def zip_bytes(*members, before=b"", comment=b"", size=None, start=None, disks=(0, 0), large=None):
    """A zip of members. `size`, `start`, `disks`: the directory's according to the end of the zip; `large`: those in a zip64 end."""
    body, directory = before, b""
    for member in members:
        packed = deflated(member.content) if member.deflate else member.content
        method = member.method if member.method is not None else 8 * member.deflate
        crc = zlib.crc32(member.content) if member.crc is None else member.crc
        sizes = (
            len(packed) if member.packed_size is None else member.packed_size,
            len(member.content) if member.size is None else member.size,
        )
        offset = len(body) - len(before) if member.offset is None else member.offset
        name = member.name if member.local_name is None else member.local_name
        shared = (member.version, member.flags, method, 0, 33, crc, *sizes)
        if member.offset is None:
            body += struct.pack("<4s5H3L2H", b"PK\3\4", *shared, len(name), 0) + name + packed
        lengths = (len(member.name), len(member.extra), 0)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *shared, *lengths, 0, 0, member.mode << 16, offset)
        directory += member.name + member.extra
    place = (len(directory) if size is None else size, len(body) - len(before) if start is None else start)
    if large is not None:
        directory += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, *large) + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    counts = (len(members) & 0xFFFF,) * 2
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", *disks, *counts, *place, len(comment)) + comment


def tar_member(name=b"cats/1", content=b"x", kind=b"0", size=None):
    """A header and its content, padded. `size`: as the header states it, a number or the twelve bytes of the field."""
    size = len(content) if size is None else size
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    header = struct.pack("100s8s8s8s12s12s8s1s100s8s", name, b"644", b"0", b"0", field, b"0", b" " * 8, kind, b"target", b"ustar\00000")
    header = header.ljust(512, b"\0")
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + content + bytes(-len(content) % 512)


def tar_bytes(*members):
    """Members and the end mark."""
    return b"".join(members) + bytes(1024)


def pax(*records, kind=b"x"):
    """An extended header of records «key=value»."""
    content = b""
    for record in records:
        length = len(record) + 2
        length += len(str(length + len(str(length))))
        content += b"%d %s\n" % (length, record)
    return tar_member(b"pax", content, kind)
