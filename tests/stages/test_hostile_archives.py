"""Hostile archives in the stage `download`: each ends in one line, and nothing is left on disk."""

import bz2
import gzip
import hashlib
import lzma
import stat
import struct
import zipfile
import zlib
from dataclasses import replace

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.members import Limits
from pipeline.stages.download import Params, run
from tests.archives import ZipMember, deflated, pax, tar_bytes, tar_member, zip_bytes

LIMITS = {"fetch_gigabytes": 1, "fetch_hours": 1, "files": 50, "gigabytes": 0.012, "ratio": 20000}
GOOD = ZipMember(b"dogs/1.png")
GOOD_TAR = tar_member(b"dogs/1.png")
ZEROS = bytes(13_000_000)
UTF_8 = 0x800

DAMAGED = "is damaged or not an archive: {}; ".format
WITHOUT = "; pack the archive again"
TOO_MUCH = "more than 0.012 gigabytes; raise download.limits.gigabytes"
TOO_MANY = "more than 50 files; raise download.limits.files"
TOO_DENSE = "more than 20000 times its size; raise download.limits.ratio"
LINK = "member 'cats/1' is a link or a device; pack the file itself"
NEITHER = DAMAGED("it does not begin like a zip or a tar")
ELSEWHERE = DAMAGED("the zip's directory is not where its end says, or there are bytes before the zip")


def zip_of(*names, **fields):
    return zip_bytes(GOOD, *(ZipMember(name, **fields) for name in names))


def tar_of(*names, **fields):
    return tar_bytes(GOOD_TAR, *(tar_member(name, **fields) for name in names))


def pax_of(*records):
    return tar_bytes(GOOD_TAR, pax(*records), tar_member())


def overlapping(count=30):
    """Quoted overlap (David Fifield, 2019): each member begins by quoting the next one's header, and goes on as that one."""
    members, content = [], ZEROS[:1_000_000]
    stream = deflated(content)
    for number in reversed(range(count)):
        name = b"cats/%02d" % number
        member = ZipMember(name, stream, method=zipfile.ZIP_DEFLATED, crc=zlib.crc32(content), size=len(content))
        member.offset = number * (30 + len(name) + 5) or None
        members.insert(0, member)
        header = zip_bytes(replace(member, offset=None))[: 30 + len(name)]
        stream = struct.pack("<x2H", len(header), len(header) ^ 0xFFFF) + header + stream
        content = header + content
    return zip_bytes(*members)


def large_extra(*values):
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def several_discs():
    content = zip_bytes(GOOD, large=(56, 41))
    return changed(content, content.index(b"PK\6\7") + 16, b"\2")


def changed(content, position, value):
    start = position % len(content)
    return content[:start] + value + content[start + len(value) :]


def sparse():
    """An old GNU sparse member: a byte of content at the far end of terabytes."""
    member = tar_member(b"cats/1", kind=b"S")
    member = changed(member, 386, b"%011o\0" % 0 + b"%011o\0" % 1)
    member = changed(member, 483, b"\x80" + (1 << 43).to_bytes(11, "big"))
    member = changed(member, 148, b" " * 8)
    return tar_bytes(GOOD_TAR, changed(member, 148, b"%06o\0 " % sum(member[:512])))


def negative(size):
    return b"\xff" + size.to_bytes(11, "big", signed=True)


ZIPS = {
    "climbs": (zip_of(b"../evil.png"), f"member '../evil.png' leads out of the archive{WITHOUT}"),
    "climbs-from-below": (zip_of(b"cats/../../evil.png"), f"member 'cats/../../evil.png' leads out of the archive{WITHOUT}"),
    "absolute": (zip_of(b"/evil.png"), f"member '/evil.png' has an absolute path{WITHOUT}"),
    "drive": (zip_of(b"C:evil.png"), f"member 'C:evil.png' has an absolute path{WITHOUT}"),
    "backslash": (zip_of(b"..\\evil.png"), rf"member '..\\evil.png' does not have a plain path as its name{WITHOUT}"),
    "nul": (zip_of(b"cats/1.png\0.txt"), rf"member 'cats/1.png\x00.txt' does not have a plain path as its name{WITHOUT}"),
    "no-name": (zip_of(b""), f"member '' does not have a plain path as its name{WITHOUT}"),
    "no-utf-8": (zip_of(b"cats/\xe9.png", flags=UTF_8), rf"member b'cats/\xe9.png' has a name that is not UTF-8{WITHOUT}"),
    "long-part": (
        zip_of(b"cats/" + b"a" * 256),
        f"member {'cats/' + 'a' * 95!r}… has a name of more than 255 bytes in a part or 1000 in all{WITHOUT}",
    ),
    "long-name": (
        zip_of(b"cats/" * 200 + b"a"),
        f"member {'cats/' * 20!r}… has a name of more than 255 bytes in a part or 1000 in all{WITHOUT}",
    ),
    "twice": (zip_of(b"cats/1", b"cats/1"), "contains member 'cats/1' twice; pack the archive again without one"),
    "case": (
        zip_of(b"cats/1.PNG", b"cats/1.png"),
        "'cats/1.PNG' and 'cats/1.png' differ only by case or Unicode form",
    ),
    "case-of-folders": (
        zip_of(b"Cats/1.png", b"cats/2.png"),
        "'Cats' and 'cats' differ only by case or Unicode form",
    ),
    "unicode-form": (
        zip_of("cats/\u00e9".encode(), "cats/e\u0301".encode(), flags=UTF_8),
        "'cats/\u00e9' and 'cats/e\u0301' differ only by case or Unicode form",
    ),
    "file-and-folder": (zip_of(b"cats", b"cats/1"), "'cats' is both a file and a folder"),
    "link": (
        zip_of(b"cats/1", content=b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
        "member 'cats/1' is a link or a device; pack the file itself",
    ),
    "encrypted": (zip_of(b"cats/1", flags=1), "member 'cats/1' is encrypted; pack it again without a password"),
    "hidden-directory": (zip_of(b"cats/1", flags=0x2000), "member 'cats/1' is encrypted; pack it again without a password"),
    "bomb": (zip_bytes(ZipMember(b"cats/1", ZEROS, deflate=True)), TOO_MUCH),
    "bomb-that-claims-one-byte": (zip_bytes(ZipMember(b"cats/1", ZEROS, deflate=True, size=1)), TOO_MUCH),
    "bomb-in-parts": (zip_bytes(*(ZipMember(b"cats/%d" % n, ZEROS[:4_000_000], deflate=True) for n in range(4))), TOO_MUCH),
    "overlap": (overlapping(), DAMAGED("member 'cats/00' overlaps what follows it")),
    "one-content-twice": (
        zip_bytes(ZipMember(b"cats/1"), ZipMember(b"cats/2", offset=0)),
        DAMAGED("member 'cats/1' overlaps what follows it"),
    ),
    "content-beyond-the-end": (zip_of(b"cats/1", packed_size=10_000), DAMAGED("member 'cats/1' overlaps what follows it")),
    "zip64-content-of-exabytes": (
        zip_of(b"cats/1", packed_size=0xFFFFFFFF, size=0xFFFFFFFF, extra=large_extra(1 << 62, 1 << 62)),
        DAMAGED("member 'cats/1' overlaps what follows it"),
    ),
    "zip64-field-too-short": (
        zip_of(b"cats/1", packed_size=0xFFFFFFFF, extra=b"\1\0\0\0"),
        DAMAGED("Corrupt zip64 extra field. Compress size not found"),
    ),
    "zip64-directory-of-exabytes": (zip_bytes(GOOD, large=(1 << 62, 0)), ELSEWHERE),
    "claims-less": (zip_of(b"cats/1", content=b"xyz", size=1), DAMAGED("member 'cats/1' has 3 bytes and claims 1")),
    "claims-more": (zip_of(b"cats/1", size=1 << 31), DAMAGED(f"member 'cats/1' has 1 bytes and claims {1 << 31}")),
    "wrong-sum": (zip_of(b"cats/1", crc=0), DAMAGED("Bad CRC-32 for file 'cats/1'")),
    "two-names": (zip_of(b"cats/1", local_name=b"dogs/2"), DAMAGED("File name in directory 'cats/1' and header b'dogs/2' differ")),
    "unknown-compression": (
        zip_of(b"cats/1", method=99),
        "member 'cats/1' is compressed in an unusual way; pack the archive again with the usual compression (deflate)",
    ),
    "bzip2-bomb": (
        zip_of(b"cats/1", content=bz2.compress(ZEROS), method=12),
        "member 'cats/1' is compressed in an unusual way; pack the archive again with the usual compression (deflate)",
    ),
    "patched-data": (
        zip_of(b"cats/1", flags=0x20),
        "is packed in an unsupported way: compressed patched data (flag bit 5); pack it again as a plain zip or tar",
    ),
    "future-version": (
        zip_of(b"cats/1", version=99),
        "is packed in an unsupported way: zip file version 9.9; pack it again as a plain zip or tar",
    ),
    "many-members": (zip_of(*(b"cats/%d" % n for n in range(50))), TOO_MANY),
    "many-folders": (zip_of(*(b"cats/%d/" % n for n in range(50)), content=b""), TOO_MANY),
    "no-local-header": (changed(zip_of(b"cats/1"), 41, b"XX"), DAMAGED("Bad magic number for file header")),
    "behind-the-end": (zip_of(b"cats/1") + b"more", DAMAGED("there are bytes after the end of the zip")),
    "before-the-start": (zip_bytes(GOOD, before=zip_of(b"cats/1")), ELSEWHERE),
    "end-in-the-comment": (zip_bytes(GOOD, comment=zip_bytes()), ELSEWHERE),
    "first-of-several-discs": (b"PK\7\x08" + zip_of(b"cats/1"), NEITHER),
    "zip64-on-several-discs": (several_discs(), DAMAGED("zipfiles that span multiple disks are not supported")),
    "truncated": (zip_of(b"cats/1")[:-30], DAMAGED("the end of the zip is missing")),
    "truncated-directory": (zip_bytes(GOOD, size=3, start=len(zip_bytes(GOOD)) - 25), DAMAGED("Truncated central directory")),
    "only-in-another": (
        zip_bytes(ZipMember(b"inner.zip", zip_of(b"cats/1"))),
        "contains archives and no folders of pictures: 'inner.zip'; unpack them",
    ),
    "web-page": (b"<!DOCTYPE html>" * 100, "is an HTML page, not an archive; "),
    "empty": (b"", "is an empty file, not an archive; "),
}

TARS = {
    "climbs": (tar_of(b"../evil.png"), f"member '../evil.png' leads out of the archive{WITHOUT}"),
    "climbs-by-a-long-name": (
        tar_bytes(GOOD_TAR, tar_member(b"././@LongLink", b"../evil.png\0", b"L"), tar_member()),
        f"member '../evil.png' leads out of the archive{WITHOUT}",
    ),
    "climbs-by-a-pax-header": (pax_of(b"path=../evil.png"), f"member '../evil.png' leads out of the archive{WITHOUT}"),
    "climbs-by-a-header-for-all": (
        tar_bytes(pax(b"path=../evil.png", kind=b"g"), tar_member()),
        f"member '../evil.png' leads out of the archive{WITHOUT}",
    ),
    "absolute": (tar_of(b"/evil.png"), f"member '/evil.png' has an absolute path{WITHOUT}"),
    "folder-that-is-the-root": (tar_of(b"/", content=b"", kind=b"5"), f"member '' does not have a plain path as its name{WITHOUT}"),
    "nul": (pax_of(b"path=cats/1\0.txt"), rf"member 'cats/1\x00.txt' does not have a plain path as its name{WITHOUT}"),
    "no-utf-8": (tar_of(b"cats/\xe9.png"), rf"member 'cats/\udce9.png' has a name that is not UTF-8{WITHOUT}"),
    "case": (
        tar_of(b"cats/X", b"cats/x"),
        "'cats/X' and 'cats/x' differ only by case or Unicode form",
    ),
    "file-and-folder": (tar_of(b"cats/1", b"cats"), "'cats' is both a file and a folder"),
    "link": (tar_of(b"cats/1", content=b"", kind=b"2"), LINK),
    "hard-link": (tar_of(b"cats/1", content=b"", kind=b"1"), LINK),
    "device": (tar_of(b"cats/1", content=b"", kind=b"3"), LINK),
    "pipe": (tar_of(b"cats/1", content=b"", kind=b"6"), LINK),
    "unknown-kind": (tar_of(b"cats/1", kind=b"Z"), LINK),
    "link-then-file-through-it": (
        tar_bytes(tar_member(b"cats", b"", b"2"), tar_member(b"cats/1")),
        "member 'cats' is a link or a device; pack the file itself",
    ),
    "sparse-of-terabytes": (sparse(), "member 'cats/1' is a sparse file; pack it again without holes"),
    "sparse-by-a-pax-header": (
        pax_of(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=99999999999999"),
        "member 'cats/1' is a sparse file; pack it again without holes",
    ),
    "bomb-gz": (gzip.compress(tar_of(b"cats/1", content=ZEROS)), TOO_MUCH),
    "bomb-bz2": (bz2.compress(tar_of(b"cats/1", content=ZEROS)), TOO_DENSE),
    "bomb-xz": (lzma.compress(tar_of(b"cats/1", content=ZEROS)), TOO_MUCH),
    "bomb-of-headers": (gzip.compress(tar_of(*[b"cats/"] * 25_000, content=b"", kind=b"5")), TOO_MUCH),
    "many-members": (tar_of(*(b"cats/%d" % n for n in range(50))), TOO_MANY),
    "bomb-in-a-bomb": (gzip.compress(gzip.compress(tar_of(b"cats/1"))), NEITHER),
    "damaged-in-the-middle": (
        changed(tar_of(b"cats/1", b"cats/2"), 1024, b"X"),
        DAMAGED("the header at byte 1024 is damaged (bad checksum)"),
    ),
    "zeroed-in-the-middle": (
        changed(tar_of(b"cats/1", b"cats/2"), 1024, bytes(512)),
        DAMAGED("there are bytes after its end mark"),
    ),
    "behind-the-end": (tar_of(b"cats/1") + b"more", DAMAGED("there are bytes after its end mark")),
    "two-in-a-row": (tar_of(b"cats/1") + tar_of(b"cats/2"), DAMAGED("there are bytes after its end mark")),
    "no-end-mark": (tar_of(b"cats/1")[:-1024], DAMAGED("it ends without its end mark")),
    "ends-in-a-header": (tar_of(b"cats/1")[:-1800], DAMAGED("it ends without its end mark")),
    "size-beyond-the-end": (tar_of(b"cats/1", size=1 << 32), DAMAGED("it ends inside member 'cats/1'")),
    "negative-size": (tar_of(b"cats/1", size=negative(-512)), DAMAGED("member 'cats/1' claims a negative size")),
    "negative-size-by-a-pax-header": (pax_of(b"size=-1024"), DAMAGED("member 'cats/1' claims a size that is not a number")),
    "pax-header-of-gigabytes": (
        tar_bytes(GOOD_TAR, tar_member(b"pax", b"", b"x", size=1 << 32)),
        DAMAGED(f"an extended header claims {1 << 32} bytes"),
    ),
    "pax-header-of-rubbish": (
        tar_bytes(GOOD_TAR, tar_member(b"pax", b"rubbish", b"x"), tar_member()),
        DAMAGED("an extended header is not a list of records"),
    ),
    "truncated-gz": (gzip.compress(tar_of())[:-20], DAMAGED("Compressed file ended before the end-of-stream marker was reached")),
    "wrong-sum-gz": (changed(gzip.compress(tar_of()), -8, bytes(4)), DAMAGED(f"CRC check failed 0x0 != {zlib.crc32(tar_of()):#x}")),
    "damaged-bz2": (changed(bz2.compress(tar_of()), 20, b"\0\0\0\0"), DAMAGED("Invalid data stream")),
    "damaged-xz": (changed(lzma.compress(tar_of()), 40, b"\0\0\0\0"), DAMAGED("Corrupt input data")),
    "behind-the-end-of-gz": (gzip.compress(tar_of()) + b"more", DAMAGED("Not a gzipped file (b'mo')")),
}
CORPUS = {f"{suffix}-{name}": (f"pics.{suffix}", *case) for suffix, cases in (("zip", ZIPS), ("tar", TARS)) for name, case in cases.items()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "above" / "root"
    folder.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.chdir(folder)
    return folder


def download(root, name, content, **limits):
    (root / name).write_bytes(content)
    params = Params(
        source=name, digest=hashlib.sha256(content).hexdigest(), url_mirrors=[], encoding=None, limits=Limits(**LIMITS | limits)
    )
    run(params, root / "data" / "raw", root / "data" / "source.json")


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)


@pytest.mark.parametrize(("name", "content", "fault"), CORPUS.values(), ids=CORPUS)
def test_a_hostile_archive_ends_in_one_line_and_leaves_nothing(tmp_path, root, name, content, fault):
    with pytest.raises(PipelineError) as caught:
        download(root, name, content)
    message = str(caught.value)
    assert fault in message
    assert (message.startswith(f"{name}: "), message.splitlines(), files_below(tmp_path)) == (True, [message], [name])


@pytest.mark.parametrize(("name", "content"), [("pics.zip", zip_of(b"cats/1")), ("pics.tar", tar_of(b"cats/1"))])
def test_what_the_hostile_ones_were_made_from_is_sound(tmp_path, root, name, content):
    download(root, name, content)
    assert files_below(tmp_path) == sorted([name, "pictures.tar", "source.json"])


def test_no_file_named_by_an_absolute_path_is_written(tmp_path, root):
    target = tmp_path / "evil.png"
    with pytest.raises(PipelineError):
        download(root, "pics.zip", zip_of(str(target).encode()))
    assert not target.exists()


def test_the_limits_that_a_bomb_exceeds_may_be_raised(tmp_path, root):
    download(root, "pics.zip", zip_bytes(GOOD, ZipMember(b"cats/1", ZEROS, deflate=True)), gigabytes=0.02)
    assert files_below(tmp_path) == ["pics.zip", "pictures.tar", "source.json"]
