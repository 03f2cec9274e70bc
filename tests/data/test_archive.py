"""Archives: what is unsafe or damaged is refused in one whole line, what is packed is the same for the same content."""

import gzip
import hashlib
import io
import stat
import tarfile
import warnings
import zipfile

import pytest

from pipeline.data.archive import digest_of, folder_members, is_archive, open_archive, pack
from pipeline.errors import PipelineError

TAR_KINDS = {
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
}


def make_zip(path, *names, content=b"x", **options):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **options) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name in names:
            archive.writestr(name, content)
    return path


def make_tar(path, *names, mode="w", kind=tarfile.REGTYPE, **options):
    with tarfile.open(path, mode, **options) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "target"
            info.size = 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"x"))
    return path


def names_in(path):
    with open_archive(path, "pics") as members:
        return sorted(members)


def message_of(path):
    """The fault that is named when every member is read."""
    with pytest.raises(PipelineError) as caught, open_archive(path, "pics") as members:
        for read in members.values():
            read()
    return str(caught.value)


def damaged(path, position, value):
    content = bytearray(path.read_bytes())
    content[position] = value
    path.write_bytes(content)
    return path


def readers(contents):
    return {name: (lambda content=content: content) for name, content in contents.items()}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_the_files_are_found_by_their_names(tmp_path, make):
    with open_archive(make(tmp_path / "a", "cats/1.png", "dogs/ä.png"), "pics") as members:
        assert {name: read() for name, read in members.items()} == {"cats/1.png": b"x", "dogs/ä.png": b"x"}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_read(tmp_path, mode):
    with open_archive(make_tar(tmp_path / "a", "cats/1.png", mode=mode), "pics") as members:
        assert members["cats/1.png"]() == b"x"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a", "climbs out of the archive"),
        ("a/../../b", "climbs out of the archive"),
        ("./../a", "climbs out of the archive"),
        ("..", "climbs out of the archive"),
        ("/etc/a", "has an absolute path"),
        ("C:/a", "has an absolute path"),
        ("c:a", "has an absolute path"),
        ("a\\b", "has a name that is no plain path"),
        ("..\\a", "has a name that is no plain path"),
        ("a//b", "has a name that is no plain path"),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_unsafe_name_is_refused(tmp_path, make, name, fault):
    assert message_of(make(tmp_path / "a", "cats/1.png", name)) == f"pics: member {name!r} {fault}; pack the archive again without it"


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    path = make_zip(tmp_path / "a", "cats/1.pngX.png")
    path.write_bytes(path.read_bytes().replace(b"1.pngX", b"1.png\0"))
    assert message_of(path) == r"pics: member 'cats/1.png\x00.png' has a name that is no plain path; pack the archive again without it"


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("names", [("a/1", "a/1"), ("a/1", "./a/1")])
def test_a_name_that_is_there_twice_is_refused(tmp_path, make, names):
    assert message_of(make(tmp_path / "a", *names)) == f"pics: member {names[1]!r} is there twice; pack the archive again without one"


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_name_with_a_lone_dot_inside_is_not_left_out_silently(tmp_path, make):
    fault = "has a name that is no plain path; pack the archive again without it"
    assert message_of(make(tmp_path / "a", "cats/./1.png")) == f"pics: member 'cats/./1.png' {fault}"


def test_a_folder_may_be_there_twice(tmp_path):
    assert names_in(make_zip(tmp_path / "a", "cats/", "cats/1", "cats/")) == ["cats/1"]


@pytest.mark.parametrize("kind", TAR_KINDS.values(), ids=TAR_KINDS)
def test_a_link_or_a_device_in_a_tar_is_refused(tmp_path, kind):
    assert message_of(make_tar(tmp_path / "a", "cats/1", kind=kind)) == "pics: member 'cats/1' is a link or a device; pack the file itself"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_link_or_a_device_in_a_zip_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("cats/1")
    info.external_attr = (kind | 0o644) << 16
    assert message_of(make_zip(tmp_path / "a", info)) == "pics: member 'cats/1' is a link or a device; pack the file itself"


def test_an_encrypted_member_is_refused(tmp_path):
    path = make_zip(tmp_path / "a", "cats/1")
    content = path.read_bytes()
    damaged(path, content.index(b"PK\1\2") + 8, 1)  # the first of the flags in the directory
    assert message_of(path) == "pics: member 'cats/1' is encrypted; pack it again without a password"


def test_a_changed_byte_in_a_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "a", "cats/1")
    damaged(path, path.read_bytes().index(b"cats/1") + 6, ord("y"))
    assert message_of(path) == "pics: is damaged or no archive: Bad CRC-32 for file 'cats/1'; fetch it again"


def test_changed_compressed_bytes_in_a_zip_are_refused(tmp_path):
    path = make_zip(tmp_path / "a", "cats/1", content=b"x" * 100, compression=zipfile.ZIP_DEFLATED)
    damaged(path, path.read_bytes().index(b"cats/1") + 6, 0xFF)
    assert message_of(path) == "pics: is damaged or no archive: Error -3 while decompressing data: invalid block type; fetch it again"


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_changed_bytes_under_another_compression_are_refused(tmp_path, compression):
    path = make_zip(tmp_path / "a", "cats/1", content=bytes(range(200)), compression=compression)
    damaged(path, path.read_bytes().index(b"cats/1") + 20, 0xFF)
    assert message_of(path).startswith("pics: is damaged or no archive: ")


def test_a_directory_that_points_before_the_start_of_its_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "a", "cats/1", "cats/2")
    content = path.read_bytes()
    damaged(path, content.index(b"PK\5\6") + 17, 0x7F)  # where the directory begins, so that all offsets become negative
    assert message_of(path).startswith("pics: is damaged or no archive: ")


def test_a_zip_whose_end_is_missing_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", "cats/1")
    path.write_bytes(path.read_bytes()[:-30])
    assert message_of(path).startswith("pics: is damaged or no archive: file could not be opened successfully: ")


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (b"<html>" * 200, "invalid header"), (b"hello", "truncated header")])
def test_what_is_no_archive_is_refused(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    found = message_of(tmp_path / "a")
    start, end = (
        "pics: is damaged or no archive: file could not be opened successfully: ",
        f"method tar: ReadError('{reason}'); fetch it again",
    )
    assert (found.startswith(start), found.endswith(end)) == (True, True)


def test_a_tar_that_ends_inside_a_file_is_refused(tmp_path):
    path = make_tar(tmp_path / "a", "cats/1")
    path.write_bytes(path.read_bytes()[:512])
    assert message_of(path) == "pics: is damaged or no archive: unexpected end of data; fetch it again"


def test_a_compressed_tar_that_ends_early_is_refused(tmp_path):
    path = make_tar(tmp_path / "a", "cats/1")
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])
    expected = "pics: is damaged or no archive: Compressed file ended before the end-of-stream marker was reached; fetch it again"
    assert message_of(path) == expected


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_what_systems_leave_behind_is_left_out(tmp_path, make):
    junk = [".DS_Store", "cats/.DS_Store", "__MACOSX/cats/._1.png", "cats/Thumbs.db", "cats/desktop.ini", ".git/config", "cats/._1.png"]
    assert names_in(make(tmp_path / "a", "cats/1.png", *junk)) == ["cats/1.png"]


def test_names_that_only_look_like_junk_stay(tmp_path):
    names = ["a.b/c.d", "cats/Thumbs.db.png", "cats/my__MACOSX"]
    assert names_in(make_zip(tmp_path / "a", *names)) == sorted(names)


def test_junk_with_an_unsafe_name_is_refused_all_the_same(tmp_path):
    found = message_of(make_zip(tmp_path / "a", "../.DS_Store"))
    assert found == "pics: member '../.DS_Store' climbs out of the archive; pack the archive again without it"


def test_a_name_that_is_no_utf_8_can_be_packed(tmp_path):
    path = make_tar(tmp_path / "a", "cats/\udce9.png", format=tarfile.GNU_FORMAT)  # the byte E9 of Latin-1
    try:
        with open_archive(path, "pics") as members:
            pack(members, tmp_path / "b.zip")
    except PipelineError:
        return  # to refuse it in one line is as good
    assert len(names_in(tmp_path / "b.zip")) == 1


def test_a_folder_is_its_files_without_junk(tmp_path):
    for name in ("cats/1.png", "cats/deep/2.png", ".git/config", "cats/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert {name: read() for name, read in folder_members(tmp_path).items()} == {"cats/1.png": b"x", "cats/deep/2.png": b"x"}


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_link_in_a_folder_is_refused(tmp_path, is_folder):
    target, folder = tmp_path / "target", tmp_path / "pics"
    target.mkdir() if is_folder else target.touch()
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "1").symlink_to(target)
    with pytest.raises(PipelineError) as caught:
        folder_members(folder)
    assert str(caught.value) == f"{folder}: 'cats/1' is a link; put the file itself there"


def test_a_link_among_junk_in_a_folder_is_left_out_with_it(tmp_path):
    (tmp_path / "pics" / ".venv").mkdir(parents=True)
    (tmp_path / "pics" / ".venv" / "python").symlink_to(tmp_path)
    assert folder_members(tmp_path / "pics") == {}


def test_the_same_content_in_another_order_packs_to_the_same_bytes(tmp_path):
    contents = {"b/2": b"two", "a/1": b"one", "b/10": b"ten"}
    pack(readers(contents), tmp_path / "1.zip")
    pack(readers(dict(reversed(contents.items()))), tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_a_zip_and_a_tar_of_the_same_content_pack_to_the_same_bytes(tmp_path):
    packed = []
    for path in (make_zip(tmp_path / "a", "b/2", "./a/1", ".DS_Store"), make_tar(tmp_path / "b", "./a/1", "b/2", mode="w:gz")):
        with open_archive(path, "pics") as members:
            pack(members, tmp_path / "packed.zip")
        packed.append((tmp_path / "packed.zip").read_bytes())
    assert packed[0] == packed[1]


def test_other_content_packs_to_other_bytes(tmp_path):
    pack(readers({"a": b"1"}), tmp_path / "1.zip")
    pack(readers({"a": b"2"}), tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() != (tmp_path / "2.zip").read_bytes()


def test_a_packed_zip_is_sorted_and_stored_with_one_date(tmp_path):
    pack(readers({"b": b"2", "ä": b"3", "a": b"1"}), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        facts = [(info.filename, info.compress_type, info.date_time) for info in archive.infolist()]
    assert facts == [(name, zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0)) for name in ("a", "b", "ä")]


def test_a_packed_zip_holds_the_content(tmp_path):
    pack(readers({"a/1": b"one", "b": b""}), tmp_path / "a.zip")
    with open_archive(tmp_path / "a.zip", "pics") as members:
        assert {name: read() for name, read in members.items()} == {"a/1": b"one", "b": b""}


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
        ("a.gz", False),
        ("a.rar", False),
        ("zip", False),
    ],
)
def test_an_archive_is_known_by_its_suffix(name, expected):
    assert is_archive(name) is expected
