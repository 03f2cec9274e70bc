"""The files that a user names: folders become their pictures, names survive, faults are reported."""

import os

import pytest

from pipeline.core.errors import PipelineError
from pipeline.serving.predictions import PictureFile, file_fault, find_pictures, read_list


@pytest.fixture
def here(tmp_path):
    """A folder with pictures by name, at two depths, and with what is no picture."""
    names = ["in/b.png", "in/a.JPG", "in/c/a.gif", "in/notes.txt", "in/.hidden.png", "in/__MACOSX/a.png", "in/.git/a.png", "-x.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def found(here, *names):
    return [file.path if not file.fault else (file.path, file.fault) for file in find_pictures(names, here)]


def test_a_folder_becomes_its_pictures_sorted_by_name(here):
    assert found(here, "in") == ["in/a.JPG", "in/b.png", "in/c/a.gif"]


@pytest.mark.parametrize("suffix", [".avif", ".JP2", ".jpx", ".heic", ".jxl", ".CR2", ".nef", ".dng", ".arw", ".RAF"])
def test_modern_formats_and_raw_files_in_a_folder_are_not_passed_over(here, suffix):
    (here / f"empty/a{suffix}").touch()
    assert found(here, "empty") == [f"empty/a{suffix}"]


@pytest.mark.parametrize(
    ("named", "first"), [("in/", "in/a.JPG"), ("./in", "./in/a.JPG"), ("in/../in", "in/../in/a.JPG"), (".", "./-x.png")]
)
def test_a_path_starts_with_its_folder_as_it_was_named(here, named, first):
    assert found(here, named)[0] == first


def test_an_absolute_folder_gives_absolute_paths(here):
    assert found(here, f"{here}/in/c") == [f"{here}/in/c/a.gif"]


def test_a_named_file_is_taken_whatever_its_name(here):
    assert found(here, "in/notes.txt", "in/.hidden.png", "-x.png", "nothing") == ["in/notes.txt", "in/.hidden.png", "-x.png", "nothing"]


def test_paths_stay_in_the_order_in_which_they_are_named(here):
    assert found(here, "in/b.png", "in/c", "in/b.png") == ["in/b.png", "in/c/a.gif", "in/b.png"]


def test_a_folder_without_pictures_is_reported(here):
    assert found(here, "empty", "in/c") == [("empty", "contains no pictures"), "in/c/a.gif"]


def test_a_folder_that_may_not_be_read_is_reported_in_its_place(here, monkeypatch):
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert found(here, "in") == ["in/a.JPG", "in/b.png", ("in/c", "Permission denied")]


def test_links_to_pictures_are_pictures_and_links_to_folders_are_skipped(here):
    (here / "empty" / "a.png").symlink_to(here / "in" / "b.png")
    (here / "empty" / "round").symlink_to(here)
    assert found(here, "empty") == ["empty/a.png"]


@pytest.mark.parametrize("name", ["", "x" * 5000])
def test_a_name_that_no_folder_has_is_left_to_the_reading(here, name):
    assert list(find_pictures([name], here)) == [PictureFile(name)]


@pytest.mark.parametrize(
    ("content", "separator", "names"),
    [
        (b"a.png\nb c.png\n", b"\n", ["a.png", "b c.png"]),
        (b"a.png\n\nb.png", b"\n", ["a.png", "b.png"]),
        (b"a\nb.png\0-c.png\0", b"\0", ["a\nb.png", "-c.png"]),
        ("Käfer 🐝.png\n".encode(), b"\n", ["Käfer 🐝.png"]),
        (b"\xff.png\n", b"\n", ["\udcff.png"]),
        (b"", b"\n", []),
    ],
)
def test_a_list_is_split_into_its_paths(content, separator, names):
    assert read_list(content, separator) == names


@pytest.mark.parametrize("content", [b"a.png\0b.png\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_list_with_nul_or_a_picture_in_its_place_is_refused(content):
    with pytest.raises(PipelineError, match=r"^-: .*NUL"):
        read_list(content, b"\n")


def test_a_file_that_can_be_read_has_no_fault(here):
    assert file_fault(here / "in" / "b.png") == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("nothing.png", "does not exist"),
        ("in", "is not a regular file"),
        ("in/b.png/c.png", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_that_cannot_be_read_has_a_fault(here, name, fault):
    assert file_fault(here / name) == fault


def test_a_pipe_is_not_waited_for(here):
    os.mkfifo(here / "pipe.png")
    assert file_fault(here / "pipe.png") == "is not a regular file"
