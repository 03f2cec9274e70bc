"""Zip directories: valid ones are read, and false ones are refused."""

import io
import stat
import struct
import zipfile
import zlib

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources import archives as zip_module
from pipeline.sources.archives import open_archive
from tests.archives import ZipMember, limits, zip_bytes

GOOD = ZipMember(b"cats/1", b"one")
KINDS = {
    "link": stat.S_IFLNK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


@pytest.fixture
def contents_of(tmp_path):
    def read(content, **changes):
        (tmp_path / "a").write_bytes(content)
        with open_archive(tmp_path / "a", "pics", limits(**changes)) as members:
            return {name: read() for name, read in members.items()}

    return read


@pytest.fixture
def message_of(contents_of):
    def find(content, **changes):
        with pytest.raises(PipelineError) as caught:
            contents_of(content, **changes)
        return str(caught.value)

    return find


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_link_or_a_device_is_refused(message_of, kind):
    assert (
        message_of(zip_bytes(ZipMember(b"cats/1", mode=kind | 0o644)))
        == "pics: member 'cats/1' is a link or a device; pack the file itself"
    )


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_an_encrypted_member_is_refused(message_of, flag):
    assert message_of(zip_bytes(ZipMember(b"cats/1", flags=flag))) == "pics: member 'cats/1' is encrypted; pack it again without a password"


def test_a_comment_is_no_fault(contents_of):
    assert contents_of(zip_bytes(GOOD, comment=b"holiday")) == {"cats/1": b"one"}


def test_the_longest_comment_is_no_fault(contents_of):
    assert contents_of(zip_bytes(GOOD, comment=b"h" * 65535)) == {"cats/1": b"one"}


def test_an_empty_zip_holds_nothing(contents_of):
    assert contents_of(zip_bytes()) == {}


def test_a_name_of_old_is_read_as_of_old(contents_of):
    assert list(contents_of(zip_bytes(ZipMember(b"cats/\x84")))) == ["cats/ä"]  # code page 437


def test_a_zip64_end_is_read(contents_of):
    assert contents_of(zip_bytes(GOOD, size=0xFFFFFFFF, start=0xFFFFFFFF, large=(52, 39))) == {"cats/1": b"one"}


def test_sizes_in_a_zip64_field_are_read(contents_of):
    extra = struct.pack("<2H2Q", 1, 16, 3, 3)
    member = ZipMember(b"cats/1", b"one", size=0xFFFFFFFF, packed_size=0xFFFFFFFF, extra=extra)
    assert contents_of(zip_bytes(member)) == {"cats/1": b"one"}


def test_members_written_as_a_stream_are_read(contents_of):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def tell(self):
            raise OSError("a pipe")

    stream = Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cats/1", b"one" * 100)
        archive.writestr("cats/2", b"two")
    assert contents_of(stream.getvalue()) == {"cats/1": b"one" * 100, "cats/2": b"two"}


@pytest.mark.parametrize("start", [0, 38, 40, 1 << 31])
def test_a_directory_elsewhere_than_the_end_says_is_refused(damage_in, start):
    expected = "the zip's directory is not where its end says, or there are bytes before the zip"
    assert damage_in(zip_bytes(GOOD, start=start)) == expected


@pytest.mark.parametrize("missing", [1, 21, 22, 40])
def test_a_zip_without_its_whole_end_is_refused(damage_in, missing):
    assert damage_in(zip_bytes(GOOD)[:-missing]) == "the end of the zip is missing"


def test_a_directory_that_would_fill_the_memory_is_refused(damage_in, monkeypatch):
    monkeypatch.setattr(zip_module, "_DIRECTORY_BYTES", 50)
    assert damage_in(zip_bytes(GOOD)) == "the zip's directory is larger than 1 GiB"


def test_members_are_counted_before_python_reads_the_directory(message_of, monkeypatch):
    monkeypatch.setattr(zip_module.zipfile, "ZipFile", None)
    assert (
        message_of(zip_bytes(*[GOOD] * 3), files=2) == "pics: contains more than 2 files; raise download.limits.files if this is intended"
    )


def test_a_directory_of_something_else_is_refused(damage_in):
    assert damage_in(zip_bytes(GOOD).replace(b"PK\1\2", b"XXXX")) == "Bad magic number for central directory"


@pytest.mark.parametrize("claimed", [4, 1000])
def test_content_that_reaches_into_the_directory_is_refused(damage_in, claimed):
    member = ZipMember(b"", b"one", packed_size=claimed)
    assert damage_in(zip_bytes(member)) == "member '' overlaps what follows it"


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("claimed", [0, 2, 4, 1 << 31])
def test_a_size_that_is_a_lie_is_refused(damage_in, deflate, claimed):
    member = ZipMember(b"cats/1", b"one", deflate=deflate, size=claimed)
    assert damage_in(zip_bytes(member)) == f"member 'cats/1' has 3 bytes and claims {claimed}"


def test_a_size_that_is_a_lie_with_the_sum_of_its_part_is_refused(damage_in):
    member = ZipMember(b"cats/1", b"one", deflate=True, size=2, crc=zlib.crc32(b"on"))
    assert damage_in(zip_bytes(member)) == "Bad CRC-32 for file 'cats/1'"


def test_changed_compressed_bytes_are_refused(damage_in):
    content = bytearray(zip_bytes(ZipMember(b"cats/1", b"x" * 100, deflate=True)))
    content[36] = 0xFF
    assert damage_in(content) == "Error -3 while decompressing data: invalid block type"


def test_compressed_bytes_that_end_early_are_refused(damage_in):
    assert damage_in(zip_bytes(ZipMember(b"cats/1", b"", method=8, size=3))) == "member 'cats/1' has 0 bytes and claims 3"


def test_a_long_name_in_a_local_header_makes_no_long_line(damage_in):
    assert len(damage_in(zip_bytes(ZipMember(b"cats/1", local_name=b"a" * 60_000)))) <= 300


def test_a_local_name_that_is_no_utf_8_is_refused(message_of):
    found = message_of(zip_bytes(ZipMember(b"cats/1", local_name=b"cats/\xe9", flags=0x800)))
    assert found == r"pics: member b'cats/\xe9' has a name that is not UTF-8; pack the archive again without it"
