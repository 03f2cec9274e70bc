"""Published files: archives, compressed and plain files by name; hostile ones are refused."""

import gzip
import zlib

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.formats import PublishedFile, all_members, open_published
from tests.archives import limits
from tests.published_sets import tarred, zipped

THREE = gzip.compress(b"three", mtime=0)


def opened(tmp_path, files, **changed):
    """What the files hold, each member read."""
    paths = {}
    for number, (name, content) in enumerate(files.items()):
        paths[name] = tmp_path / str(number)  # in the store a file has another name
        paths[name].write_bytes(content)
    with open_published("set", paths, limits(**changed)) as published:
        return {name: read() for name, read in all_members(published).items()}


def message_of(*arguments, **changed):
    with pytest.raises(PipelineError) as caught:
        opened(*arguments, **changed)
    return str(caught.value)


def test_a_file_is_named_as_its_address_ends():
    assert PublishedFile("https://host/folder/a.tar.gz").name == "a.tar.gz"


def test_archives_packed_files_and_plain_ones_are_opened_by_their_names(tmp_path):
    files = {"a.tar.gz": tarred({"a/1": b"one"}), "b.zip": zipped({"b/2": b"two"}), "c.gz": THREE, "d.mat": b"four"}
    assert opened(tmp_path, files) == {"a/1": b"one", "b/2": b"two", "c": b"three", "d.mat": b"four"}


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_a_member_that_climbs_is_refused(tmp_path, pack):
    name = {tarred: "a.tgz", zipped: "a.zip"}[pack]
    assert message_of(tmp_path, {name: pack({"../../evil": b""})}) == (
        f"set: {name}: member '../../evil' leads out of the archive; pack the archive again without it"
    )


def test_an_archive_that_is_none_is_refused(tmp_path):
    assert message_of(tmp_path, {"a.tar.gz": b"\0"}) == (
        "set: a.tar.gz: is damaged or not an archive: it does not begin like a zip or a tar; download it again"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"<html>", "Not a gzipped file (b'<h')", id="a page"),
        pytest.param(THREE[:-9], "Compressed file ended before the end-of-stream marker was reached", id="cut"),
        pytest.param(THREE[:-8] + bytes(8), f"CRC check failed 0x0 != {zlib.crc32(b'three'):#x}", id="another sum"),
    ],
)
def test_a_packed_file_that_is_damaged_is_refused(tmp_path, content, fault):
    assert message_of(tmp_path, {"c.gz": content}) == f"set: c.gz: is damaged or not an archive: {fault}; download it again"


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"ratio": 100}, "100 times its size; raise download.limits.ratio"),
        ({"ratio": 2000, "gigabytes": 0.02}, "0.02 gigabytes; raise download.limits.gigabytes"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, changed, fault):
    content = gzip.compress(bytes(50_000_000))
    assert message_of(tmp_path, {"c.gz": content}, **changed) == f"set: c.gz: unpacks to more than {fault} if this is intended"


# What a reader asks


def test_lines_are_those_that_say_something(published):
    assert published({"a": b"one\n\n two \r\n\n"}).lines("a") == ["one", "two"]


def test_lines_that_are_no_text_are_refused(fault_of):
    assert fault_of(lambda published: published.lines("a"), {"a": b"\xff\xfe"}) == "'a' is not text in UTF-8"


@pytest.mark.parametrize("line", ["a/b", "..", ".", ".hidden", "/etc", "C:x", "a\\b", "a\0b", "a\x07b", "x" * 256, "__MACOSX"])
def test_a_class_that_cannot_be_a_folder_is_refused(fault_of, line):
    shown = repr(line) if len(line) <= 100 else f"{line[:100]!r}…"
    found = fault_of(lambda published: published.class_names("a"), {"a": f"cat\n{line}\n".encode()})
    assert found == f"'a' names the class {shown}, which cannot be a folder"


@pytest.mark.parametrize("line", ["cat", "CAT"])
def test_a_class_that_is_there_twice_is_refused(fault_of, line):
    assert fault_of(lambda published: published.class_names("a"), {"a": f"cat\n{line}\n".encode()}) == "'a' names a class twice"
