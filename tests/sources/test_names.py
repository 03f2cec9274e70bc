"""Names in zips that do not state their encoding: UTF-8 first, then the code page in which they look natural, or the params' one."""

import struct
import unicodedata
import zlib

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.archives import open_archive
from pipeline.sources.folders import folder_members
from pipeline.sources.names import expect_encoding, guess_encoding
from tests.archives import ZipMember, limits, tar_bytes, tar_member, zip_bytes

NOTE = "if they look wrong, set download.encoding in params.yaml"


@pytest.fixture
def names_in(tmp_path):
    """The names that are read from a zip of these members."""

    def read(*members, encoding=None):
        (tmp_path / "a").write_bytes(zip_bytes(*members))
        with open_archive(tmp_path / "a", "pics", limits(), encoding) as found:
            assert all(read() == b"x" for read in found.values())
            return list(found)

    return read


def encoded(names, encoding):
    return [ZipMember(name.encode(encoding)) for name in names]


@pytest.mark.parametrize(
    ("encoding", "labels"),
    [
        ("cp932", "表 ソフト 能登"),
        ("cp932", "良品 欠陥品 りんご"),
        ("cp437", "Äpfel Bär Vögel"),
        ("cp437", "crème forêt piña"),
        ("cp850", "São Àgua maçã"),
        ("cp1252", "São Éclair limão"),
        ("cp866", "кошки собаки Птицы"),
        ("cp1251", "кошки собаки Птицы"),
        ("cp949", "고양이 강아지 물고기"),
        ("gbk", "猫 狗 向日葵"),
        ("big5", "貓 狗 向日葵 功能"),
    ],
)
def test_the_code_page_of_names_is_guessed(names_in, capsys, encoding, labels):
    names = [f"{label}/{number}.png" for label in labels.split() for number in (1, 2)]
    assert names_in(*encoded(names, encoding)) == names
    found = guess_encoding([name.encode(encoding) for name in names])
    assert capsys.readouterr().err == f"pics: its names are read as {found}; {NOTE}\n"


@pytest.mark.parametrize("label", ["Äpfel", "猫", "кошки", "Ñandú"])
def test_names_in_utf_8_need_no_flag(names_in, capsys, label):
    assert names_in(*encoded([f"{label}/1.png"], "utf-8")) == [f"{label}/1.png"]
    assert capsys.readouterr().err == ""


def test_a_name_is_written_in_the_form_nfc(names_in, tmp_path):
    split_up = unicodedata.normalize("NFD", "Äpfel/é.png")
    assert names_in(*encoded([split_up], "utf-8")) == ["Äpfel/é.png"]
    (tmp_path / "pics" / split_up).parent.mkdir(parents=True)
    (tmp_path / "pics" / split_up).touch()
    assert list(folder_members(tmp_path / "pics", limits())) == ["Äpfel/é.png"]


def test_two_files_of_a_folder_that_differ_by_their_form_are_refused(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "é.png")).touch()
    with pytest.raises(PipelineError) as caught:
        folder_members(tmp_path, limits())
    assert str(caught.value) == f"{tmp_path}: contains 'é.png' twice, in two Unicode forms; rename one"


def test_the_params_say_the_encoding(names_in, capsys):
    assert names_in(*encoded(["кот/1.png"], "koi8-r"), encoding="koi8-r") == ["кот/1.png"]
    assert capsys.readouterr().err == ""


def test_a_name_that_is_not_in_the_encoding_of_the_params_is_refused(names_in):
    with pytest.raises(PipelineError) as caught:
        names_in(ZipMember(b"\x80/1.png"), encoding="utf-8")
    assert str(caught.value) == r"pics: member b'\x80/1.png' has a name that is not utf-8; correct download.encoding"


def test_the_params_say_the_encoding_of_names_in_a_tar_that_are_not_utf_8(tmp_path):
    names = ["猫/1.png".encode("cp932"), "犬/1.png".encode()]
    (tmp_path / "a").write_bytes(tar_bytes(*map(tar_member, names)))
    with open_archive(tmp_path / "a", "pics", limits(), "cp932") as found:
        assert list(found) == ["猫/1.png", "犬/1.png"]


@pytest.mark.parametrize("encoding", ["cp9322", "hex", "utf-16", "", "undefined"])
def test_a_param_that_is_no_encoding_is_refused(encoding):
    with pytest.raises(PipelineError) as caught:
        expect_encoding(encoding)
    assert str(caught.value) == (f"params.yaml: download.encoding: {encoding!r} is not an encoding of names; write one, as cp932, or null")


def test_a_name_that_states_its_encoding_is_not_guessed(names_in):
    members = [ZipMember("犬/1.png".encode(), flags=0x800), ZipMember("猫/1.png".encode("cp932"))]
    assert names_in(*members) == ["犬/1.png", "猫/1.png"]


def test_a_name_in_the_field_for_unicode_comes_first(names_in):
    def field(name, of):
        content = struct.pack("<BL", 1, zlib.crc32(of)) + name.encode()
        return struct.pack("<4H", 1, 0, 0x7075, len(content)) + content

    raw = b"???/1.png"
    assert names_in(ZipMember(raw, extra=field("猫/1.png", raw))) == ["猫/1.png"]
    assert names_in(ZipMember(raw, extra=field("猫/1.png", b"an earlier name"))) == ["???/1.png"]


def test_a_backslash_separates_folders_where_there_is_no_slash(names_in):
    assert names_in(ZipMember(b"pics\\cats\\"), ZipMember(b"pics\\cats\\1.png"), ZipMember(b"pics\\dogs\\2.png"))[-1:] == [
        "pics/dogs/2.png"
    ]
    assert names_in(*encoded(["Äpfel\\1.png", "Bär\\1.png"], "cp437")) == ["Äpfel/1.png", "Bär/1.png"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ((b"..\\evil.png",), "member '../evil.png' leads out of the archive"),
        ((b"C:\\evil.png",), "member 'C:/evil.png' has an absolute path"),
        ((b"a/b.png", b"a\\c.png"), r"member 'a\\c.png' does not have a plain path as its name"),
    ],
)
def test_a_backslash_leads_nowhere_else(names_in, names, fault):
    with pytest.raises(PipelineError) as caught:
        names_in(*map(ZipMember, names))
    assert str(caught.value) == f"pics: {fault}; pack the archive again without it"
