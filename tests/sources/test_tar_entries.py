"""Tar headers: every format is read, and false ones are refused."""

import bz2
import tarfile
import tracemalloc

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources import archives as tar_module
from pipeline.sources.archives import open_archive
from tests.archives import limits, make_tar, pax, tar_bytes, tar_member

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture
def contents_of(tmp_path):
    def read(content):
        (tmp_path / "a").write_bytes(content)
        with open_archive(tmp_path / "a", "pics", limits()) as members:
            return {name: read() for name, read in members.items()}

    return read


@pytest.fixture
def message_of(contents_of):
    def find(content):
        with pytest.raises(PipelineError) as caught:
            contents_of(content)
        return str(caught.value)

    return find


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["cats/1", "a" * 90 + "/" + "b" * 90])
def test_every_format_is_read(tmp_path, contents_of, format, name):
    assert contents_of(make_tar(tmp_path / "b", name, format=format).read_bytes()) == {name: b"x"}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_beyond_ascii_is_read(tmp_path, contents_of, format):
    name = "ä" * 100 + "/" + "ö" * 100
    assert contents_of(make_tar(tmp_path / "b", name, format=format).read_bytes()) == {name: b"x"}


def test_a_long_name_counts_for_the_next_member_alone(contents_of):
    content = tar_bytes(tar_member(b"long", b"cats/1\0", b"L"), tar_member(b"short"), tar_member(b"other"))
    assert list(contents_of(content)) == ["cats/1", "other"]


def test_a_pax_header_for_all_counts_for_all(contents_of):
    content = tar_bytes(pax(b"size=2", kind=b"g"), tar_member(b"1", b"one"), tar_member(b"2", b"two"))
    assert contents_of(content) == {"1": b"on", "2": b"tw"}


def test_a_pax_header_of_other_things_changes_nothing(contents_of):
    content = tar_bytes(pax(b"comment=a=b", b"mtime=1.5", b"SCHILY.xattr.user=\0\xff\n"), tar_member())
    assert contents_of(content) == {"cats/1": b"x"}


def test_a_pax_size_is_the_size(contents_of):
    assert contents_of(tar_bytes(pax(b"size=3"), tar_member(content=b"one", size=0), tar_member(b"2"))) == {"cats/1": b"one", "2": b"x"}


def test_a_folder_of_old_is_a_folder(contents_of):
    assert contents_of(tar_bytes(tar_member(b"cats/", b"", b"\0"), tar_member())) == {"cats/1": b"x"}


def test_a_folder_has_no_content_whatever_it_claims(contents_of):
    assert contents_of(tar_bytes(tar_member(b"cats", b"", b"5", size=4096), tar_member())) == {"cats/1": b"x"}


def test_a_long_link_is_passed_over(message_of):
    content = tar_bytes(tar_member(b"link", b"target\0", b"K"), tar_member(b"cats/1", b"", b"2"))
    assert message_of(content) == "pics: member 'cats/1' is a link or a device; pack the file itself"


@pytest.mark.parametrize(
    "content",
    [
        tar_member(kind=b"S"),
        pax(b"GNU.sparse.map=0,1", b"GNU.sparse.size=99999999999") + tar_member(),
        pax(b"GNU.sparse.major=1", kind=b"X") + tar_member(),
        pax(b"GNU.sparse.major=1", kind=b"g") + tar_member(),
    ],
)
def test_a_sparse_file_is_refused(message_of, content):
    assert message_of(tar_bytes(content)) == "pics: member 'cats/1' is a sparse file; pack it again without holes"


def test_a_thousand_headers_in_a_row_are_no_recursion(contents_of):
    assert contents_of(tar_bytes(*[pax(b"comment=a")] * 2000, tar_member())) == {"cats/1": b"x"}


def test_an_extended_header_of_tiny_records_takes_no_time(contents_of):
    assert contents_of(tar_bytes(tar_member(b"pax", b"5 a=\n" * 200_000, b"x"), tar_member())) == {"cats/1": b"x"}


def test_what_extended_headers_say_of_other_things_is_not_kept(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(tar_bytes(*(pax(b"key%d=" % number + bytes(50_000), kind=b"g") for number in range(120))))
    tracemalloc.start()
    with open_archive(path, "pics", limits()):
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of six


@pytest.mark.parametrize(
    "content", [b"rubbish", b"7 path=", b"99 path=a\n", b"9 path=ab\n", b"0 path=a\n", b"6 pa=a\n", b"10 path=a\n5 a", b"5 a=\n0 b=c\n"]
)
def test_an_extended_header_that_is_no_list_of_records_is_refused(damage_in, content):
    assert damage_in(tar_bytes(tar_member(b"pax", content, b"x"), tar_member())) == "an extended header is not a list of records"


@pytest.mark.parametrize("size", [b"-1", b"1.5", b"", b"\xd9\xa1", b"9" * 19])
def test_a_size_that_is_no_number_is_refused(damage_in, size):
    assert damage_in(tar_bytes(pax(b"size=" + size), tar_member())) == "member 'cats/1' claims a size that is not a number"


def test_one_block_of_zeros_is_an_end_mark(contents_of):
    assert contents_of(tar_member() + bytes(512)) == {"cats/1": b"x"}


def test_any_number_of_zeros_may_follow_the_end_mark(contents_of):
    assert contents_of(tar_bytes(tar_member()) + bytes(2_000_001)) == {"cats/1": b"x"}


def test_something_behind_the_end_mark_is_refused(damage_in):
    assert damage_in(tar_bytes(tar_member()) + bytes(2_000_000) + b"x") == "there are bytes after its end mark"


def test_an_empty_tar_holds_nothing(contents_of):
    assert contents_of(tar_bytes()) == {}


def test_a_tar_that_becomes_shorter_while_it_is_open_is_refused(tmp_path, message_of):
    path = make_tar(tmp_path / "b", "1", content=bytes(100_000))
    with open_archive(path, "pics", limits()) as members:
        path.write_bytes(path.read_bytes()[:50_000])
        with pytest.raises(PipelineError) as caught:
            members["1"]()
    assert str(caught.value) == "pics: is damaged or not an archive: it became shorter while it was read; download it again"


def test_a_name_that_begins_like_bzip2_is_none(contents_of):
    assert contents_of(tar_bytes(tar_member(b"BZh/1"))) == {"BZh/1": b"x"}


def test_several_streams_in_a_row_are_one_tar(contents_of):
    content = tar_bytes(tar_member())
    assert contents_of(bz2.compress(content[:700]) + bz2.compress(content[700:])) == {"cats/1": b"x"}


def test_the_unpacked_tar_is_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_module, "BLOCK", 1000)
    path = make_tar(tmp_path / "b", "1", mode="w:gz", content=b"ab" * 5000)
    with open_archive(path, "pics", limits()) as members:
        assert members["1"]() == b"ab" * 5000
