"""Archives and folders: unsafe or damaged ones end in one line, and the same content packs to the same bytes."""

import gzip
import hashlib
import io
import os
import socket
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.sources import archives as archive_module
from pipeline.sources import folders as folders_module
from pipeline.sources import members as members_module
from pipeline.sources.archives import digest_of, open_archive, pack
from pipeline.sources.folders import folder_members
from pipeline.sources.members import is_archive
from tests.archives import ZipMember, limits, make_tar, make_zip, tar_bytes, tar_member, zip_bytes

MAKERS = pytest.mark.parametrize("make", [make_zip, make_tar])
PROPERTY = settings(derandomize=True, deadline=None, max_examples=100, database=None)


def contents_of(path, **changes):
    with open_archive(path, "pics", limits(**changes)) as members:
        return {name: read() for name, read in members.items()}


def message_of(path, **changes):
    """The fault that is named when every member is read."""
    with pytest.raises(PipelineError) as caught:
        contents_of(path, **changes)
    return str(caught.value)


def message_of_folder(folder, **changes):
    with pytest.raises(PipelineError) as caught:
        folder_members(folder, limits(**changes))
    return str(caught.value)


def write(folder, *names, content=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def readers(contents):
    return {name: (lambda content=content: content) for name, content in contents.items()}


@MAKERS
def test_the_files_are_found_by_their_names(tmp_path, make):
    assert contents_of(make(tmp_path / "a", "cats/1.png", "dogs/ä.png")) == {"cats/1.png": b"x", "dogs/ä.png": b"x"}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_read(tmp_path, mode):
    assert contents_of(make_tar(tmp_path / "a", "cats/1.png", mode=mode)) == {"cats/1.png": b"x"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_members_of_any_size_are_read_whole(tmp_path, compression, size):
    content = os.urandom(size)
    assert contents_of(make_zip(tmp_path / "a", "cats/1", content=content, compression=compression)) == {"cats/1": content}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_tar_are_read_in_any_order(tmp_path, mode):
    with open_archive(make_tar(tmp_path / "a", "1", "2", "3", mode=mode), "pics", limits()) as members:
        assert [members[name]() for name in ("3", "1", "2", "1")] == [b"x"] * 4


@MAKERS
def test_what_systems_leave_behind_is_left_out(tmp_path, make):
    junk = [".DS_Store", "cats/.DS_Store", "__MACOSX/cats/._1.png", "cats/Thumbs.db", "cats/desktop.ini", ".git/config", "cats/._1.png"]
    assert contents_of(make(tmp_path / "a", "cats/1.png", *junk)) == {"cats/1.png": b"x"}


@MAKERS
def test_odd_but_harmless_names_survive(tmp_path, make):
    names = [
        "a\nb",
        "'\"",
        "<script>",
        "🐈/🐕",
        "a" * 255,
        "-rf",
        " a ",
        "*",
        "con",
        "a.b/c.d",
        "cats/Thumbs.db.png",
        "cats/my__MACOSX",
    ]
    assert list(contents_of(make(tmp_path / "a", *names))) == names


def test_a_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path):
    inner = zip_bytes(ZipMember(b"cats/1"))
    (tmp_path / "a").write_bytes(tar_bytes(tar_member(b"inner.zip", inner)))
    assert contents_of(tmp_path / "a") == {"inner.zip": inner}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_unpacked_beside_the_store(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with open_archive(make_tar(tmp_path / "a", "1", "2", mode=mode), "pics", limits()) as members:
        assert [*members] == ["1", "2"]
    assert list((tmp_path / ".cache" / "store").iterdir()) == []


def test_a_fault_of_the_one_who_reads_is_not_taken_for_damage(tmp_path):
    with pytest.raises(EOFError), open_archive(make_zip(tmp_path / "a", "1"), "pics", limits()):
        raise EOFError


@MAKERS
def test_as_many_files_as_the_limit_are_taken(tmp_path, make):
    assert len(contents_of(make(tmp_path / "a", "1", "2", "3"), files=3)) == 3


@MAKERS
def test_more_bytes_than_the_limit_are_refused_when_they_come_out(tmp_path, make):
    with open_archive(make(tmp_path / "a", "1", "2", content=bytes(600)), "pics", limits(gigabytes=1e-6)) as members:
        members["2"]()
        with pytest.raises(PipelineError) as caught:
            members["1"]()
    assert str(caught.value) == "pics: unpacks to more than 1e-06 gigabytes; raise download.limits.gigabytes if this is intended"


@MAKERS
def test_a_member_that_is_read_twice_is_counted_once(tmp_path, make):
    with open_archive(make(tmp_path / "a", "1", content=bytes(600)), "pics", limits(gigabytes=1e-6)) as members:
        assert members["1"]() == members["1"]()


def test_what_shrank_more_than_the_ratio_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "_RATIO_FROM", 100_000)
    path = make_zip(tmp_path / "a", "1", content=bytes(200_000), compression=zipfile.ZIP_DEFLATED)
    assert message_of(path, ratio=100) == "pics: unpacks to more than 100 times its size; raise download.limits.ratio if this is intended"


def test_the_ratio_is_that_of_the_whole_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "_RATIO_FROM", 100_000)
    path = make_zip(tmp_path / "a", "1", content=bytes(200_000), compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("2", os.urandom(10_000))
    assert len(contents_of(path, ratio=100)) == 2


def test_small_flat_pictures_may_shrink_to_nearly_nothing(tmp_path):
    path = make_zip(tmp_path / "a", "1", content=bytes(9_000_000), compression=zipfile.ZIP_DEFLATED)
    assert list(contents_of(path, ratio=2)) == ["1"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_bounded_while_it_is_unpacked(tmp_path, mode):
    path = make_tar(tmp_path / "a", "1", mode=mode, content=bytes(10_000))
    assert (
        message_of(path, gigabytes=1e-6)
        == "pics: unpacks to more than 1e-06 gigabytes; raise download.limits.gigabytes if this is intended"
    )


def test_a_compressed_tar_may_hold_as_much_as_the_limit(tmp_path):
    assert list(contents_of(make_tar(tmp_path / "a", "1", mode="w:gz", content=bytes(15_000)), gigabytes=20_480e-9)) == ["1"]


@MAKERS
def test_a_file_far_larger_than_a_picture_is_refused(tmp_path, make, monkeypatch):
    monkeypatch.setattr(members_module, "_FILE_BYTES", 1000)
    path = make(tmp_path / "a", "cats/1", content=bytes(1001))
    assert message_of(path) == "pics: 'cats/1' is larger than 1 GiB, which no picture is; leave it out"


def test_a_lie_is_noticed_before_it_fills_the_memory(tmp_path):
    path = make_zip(tmp_path / "a", "1", content=bytes(64_000_000), compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    message_of(path, gigabytes=0.002)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


@MAKERS
def test_a_full_disk_is_no_damage(tmp_path, make, monkeypatch):
    with open_archive(make(tmp_path / "a", "1"), "pics", limits()) as members:
        monkeypatch.setattr(members_module.Budget, "reach", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left on device"):
            members["1"]()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_disk_that_is_full_of_an_unpacked_tar_is_no_damage(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "a", "1", mode="w:gz")
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(archive_module.store, "temporary_file", lambda: full)
        with pytest.raises(OSError, match="No space left on device"):
            contents_of(path)


# Few letters, so that names meet; each of them is special to some system. All of Unicode would take hypothesis 20 s to list.
PARTS = st.text("aAsSßéE\u0301\u0345\u1fb4 .\\:~*\n\0\udce9猫🐈", min_size=1, max_size=8)
ODD = ["a", "A", "a/b", "a/B", "./a", "ß", "ss", "é", "e\u0301", "../a", "/a", "a//b", "a\\b", ".a/b", "\udce9", "a" * 256, "\n'\"<script>"]
NAMES = st.lists(st.one_of(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.sampled_from(ODD)), max_size=4)


def assert_safe(names):
    """Each is a relative path of plain parts, and no two of them would meet on any file system."""
    folded = [unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()) for name in names]
    assert len(set(folded)) == len(folded)
    for name in names:
        path = PurePosixPath(name)
        assert not path.is_absolute() and ".." not in path.parts and str(path) == name and "\\" not in name and "\0" not in name


def assert_read_or_refused(path, contents):
    """Either every file that is no junk is safe and whole, or one line says what is wrong; no other exception."""
    try:
        found = contents_of(path)
    except PipelineError as error:
        assert str(error).startswith("pics: ") and str(error).splitlines() == [str(error)]
    else:
        assert_safe(found)
        there = {unicodedata.normalize("NFC", name.removeprefix("./")): content for name, content in contents}
        assert found == {name: content for name, content in there.items() if not members_module.is_junk(name)}


def with_contents(names):
    return [(name, b"%d" % number) for number, name in enumerate(names)]


@given(contents=NAMES.map(with_contents))
@PROPERTY
def test_any_names_in_a_zip_are_safe_or_refused(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("zip") / "a"
    path.write_bytes(zip_bytes(*(ZipMember(name.encode("utf-8", "surrogateescape"), content, flags=0x800) for name, content in contents)))
    if not any("/" in name for name, _ in contents):
        contents = [(name.replace("\\", "/"), content) for name, content in contents]
    assert_read_or_refused(path, contents)


@given(contents=NAMES.map(with_contents))
@PROPERTY
def test_any_names_in_a_tar_are_safe_or_refused(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("tar") / "a"
    with tarfile.open(path, "w") as archive:
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert_read_or_refused(path, contents)


SOUND = {
    "zip": zip_bytes(ZipMember(b"a/1", b"one"), ZipMember(b"b/2", b"two" * 9, deflate=True)),
    "large zip": zip_bytes(ZipMember(b"a/1", b"one"), large=(49, 36)),
    "tar": tar_bytes(tar_member(b"a/1", b"one"), tar_member(b"b/2", b"two" * 9)),
    "tar.gz": gzip.compress(tar_bytes(tar_member(b"a/1", b"one")), mtime=0),
}


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
@given(data=st.data())
@PROPERTY
def test_any_changed_bytes_are_read_or_refused(tmp_path_factory, content, data):
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "a"
    path.write_bytes(changed[: data.draw(st.sampled_from([len(content), len(content) // 2, len(content) - 1]))])
    try:
        assert_safe(contents_of(path))
    except PipelineError as error:
        assert str(error).splitlines() == [str(error)]


def test_a_folder_is_its_files_without_junk(tmp_path):
    write(tmp_path, "cats/1.png", "cats/deep/2.png", ".git/config", "cats/.DS_Store")
    (tmp_path / "empty").mkdir()
    found = {name: read() for name, read in folder_members(tmp_path, limits()).items()}
    assert found == {"cats/1.png": b"x", "cats/deep/2.png": b"x"}


def test_the_files_of_a_folder_are_sorted(tmp_path):
    names = ["b", "a/2", "a/1/3", "c/1", "a.b"]
    assert list(folder_members(write(tmp_path, *names), limits())) == sorted(names)


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_link_in_a_folder_is_refused(tmp_path, is_folder):
    target, folder = tmp_path / "target", tmp_path / "pics"
    target.mkdir() if is_folder else target.touch()
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "1").symlink_to(target)
    assert message_of_folder(folder) == f"{folder}: 'cats/1' is a link; replace it by the file itself"


def test_a_link_among_junk_in_a_folder_is_left_out_with_it(tmp_path):
    (tmp_path / "pics" / ".venv").mkdir(parents=True)
    (tmp_path / "pics" / ".venv" / "python").symlink_to(tmp_path)
    assert folder_members(tmp_path / "pics", limits()) == {}


def test_hidden_folders_are_not_counted(tmp_path):
    write(tmp_path, ".git/1", ".git/2", ".git/3", "cats/1")
    assert list(folder_members(tmp_path, limits(files=3))) == ["cats/1"]


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1")
    assert message_of_folder(tmp_path) == f"{tmp_path}: '1' is a pipe, a socket or a device; leave it out"


def test_a_socket_in_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("1")
    assert message_of_folder(tmp_path) == f"{tmp_path}: '1' is a pipe, a socket or a device; leave it out"


def test_a_backslash_in_a_folder_is_refused(tmp_path):
    write(tmp_path, "a\\b")
    assert message_of_folder(tmp_path) == f"{tmp_path}: {'a' + chr(92) + 'b'!r} does not have a plain path as its name; rename it"


def test_a_name_in_a_folder_that_is_no_utf_8_is_refused(tmp_path):
    write(tmp_path, "\udce9.png")
    assert message_of_folder(tmp_path) == rf"{tmp_path}: '\udce9.png' has a name that is not UTF-8; rename it"


def test_what_may_not_be_read_in_a_folder_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "cats/1")
    monkeypatch.setattr(folders_module.os, "access", lambda path, mode: path.name != "1")  # root may read everything
    assert message_of_folder(tmp_path) == f"{tmp_path}: 'cats/1' is not readable; change its permissions or leave it out"


def test_a_folder_of_more_files_than_the_limit_is_refused(tmp_path):
    write(tmp_path, "1", "2", "3")
    found = message_of_folder(tmp_path, files=2)
    assert found == f"{tmp_path}: contains more than 2 files; raise download.limits.files if this is intended"


def test_a_folder_of_more_bytes_than_the_limit_is_refused_unread(tmp_path):
    write(tmp_path, "1", "2", content=bytes(600))
    found = message_of_folder(tmp_path, gigabytes=1e-6)
    assert found == f"{tmp_path}: contains more than 1e-06 gigabytes; raise download.limits.gigabytes if this is intended"


def test_a_file_that_grew_beyond_the_limit_is_refused(tmp_path):
    members = folder_members(write(tmp_path, "1"), limits(gigabytes=1e-6))
    write(tmp_path, "1", content=bytes(1001))
    with pytest.raises(PipelineError) as caught:
        members["1"]()
    assert str(caught.value) == f"{tmp_path}: contains more than 1e-06 gigabytes; raise download.limits.gigabytes if this is intended"


def test_a_file_in_a_folder_that_is_far_larger_than_a_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "_FILE_BYTES", 1000)
    found = message_of_folder(write(tmp_path, "film", content=bytes(1001)))
    assert found == f"{tmp_path}: 'film' is larger than 1 GiB, which no picture is; leave it out"


def test_the_same_content_in_another_order_packs_to_the_same_bytes(tmp_path):
    contents = {"b/2": b"two", "a/1": b"one", "b/10": b"ten"}
    pack(readers(contents), tmp_path / "1.zip")
    pack(readers(dict(reversed(contents.items()))), tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_a_zip_and_a_tar_of_the_same_content_pack_to_the_same_bytes(tmp_path):
    packed = []
    for path in (make_zip(tmp_path / "a", "b/2", "./a/1", ".DS_Store"), make_tar(tmp_path / "b", "./a/1", "b/2", mode="w:gz")):
        with open_archive(path, "pics", limits()) as members:
            pack(members, tmp_path / "packed.zip")
        packed.append((tmp_path / "packed.zip").read_bytes())
    assert packed[0] == packed[1]


def test_a_packed_zip_is_sorted_and_stored_with_one_date(tmp_path):
    pack(readers({"b": b"2", "ä": b"3", "a": b"1"}), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        facts = [(info.filename, info.compress_type, info.date_time) for info in archive.infolist()]
    assert facts == [(name, zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0)) for name in ("a", "b", "ä")]


def test_the_digest_is_that_of_lines_of_sum_and_path():
    lines = (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a/1\n"  # "abc"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"  # nothing
    )
    assert digest_of(readers({"b": b"", "a/1": b"abc"})) == hashlib.sha256(lines.encode()).hexdigest()


def test_packing_tells_the_digest(tmp_path):
    members = readers({"b": b"2", "a": b"1"})
    assert pack(members, tmp_path / "a.zip") == digest_of(members)


def test_a_file_is_read_once_when_it_is_packed(tmp_path):
    seen = []
    pack({"a": lambda: seen.append(1) or b"x"}, tmp_path / "a.zip")
    assert seen == [1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.zip", True),
        ("A.ZIP", True),
        ("a.tar", True),
        ("a.tar.gz", True),
        ("a.tgz", True),
        ("a.tar.bz2", True),
        ("a.tar.xz", True),
        ("a.gz", False),
        ("a.rar", False),
        ("zip", False),
    ],
)
def test_an_archive_is_known_by_its_suffix(name, expected):
    assert is_archive(name) is expected
