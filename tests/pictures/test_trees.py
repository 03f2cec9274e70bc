"""Paths in ImageFolder trees: distinct and valid on every file system."""

import pytest
from PIL import Image

from pipeline.pictures.images import Traits
from pipeline.pictures.inspection import Groups, Inspection, PictureInfo
from pipeline.pictures.likeness import likeness_of
from pipeline.pictures.manifest import Picture
from pipeline.pictures.splits import fitting, folded, is_kept, place
from pipeline.sources.layout import ClassFile

LIKENESS = likeness_of(Image.new("RGB", (8, 6)))


def look(plain=True):
    return PictureInfo(8, 6, Traits("PNG", plain, ()), "", LIKENESS, False, 100, 10)


def placed(names, splits=None, deep=(), groups=None):
    """The rows of pictures with these paths in the archive, the first part of which is the class."""
    names = sorted(names)
    entries = [ClassFile(name, *name.split("/", 1), None) for name in names]
    inspected = {name: Inspection(f"sum of {name}") for name in names}
    looks = {name: look(name not in deep) for name in names}
    return place(entries, inspected, looks, splits or dict.fromkeys(names, "train"), groups or Groups(names))


def paths_of(names, **options):
    return {picture.image_id: picture.path for picture in placed(names, **options)}


def test_a_row_holds_all_that_is_known():
    groups = Groups(["cats/a.png", "cats/b.png"])
    groups.join(["cats/a.png", "cats/b.png"])
    assert placed(["cats/b.png"], {"cats/b.png": "val"}, groups=groups) == [
        Picture("cats/b.png", "cats/b.png", "sum of cats/b.png", "cats", "val", "cats/a.png", 8, 6, brightness=100, sharpness=10)
    ]


def test_what_is_written_anew_is_a_png():
    assert paths_of(["cats/a.gif", "cats/b.png", "cats/c"], deep=["cats/b.png"]) == {
        "cats/a.gif": "cats/a.gif.png", "cats/b.png": "cats/b.png.png", "cats/c": "cats/c.png",
    }  # fmt: skip


def test_a_picture_written_anew_does_not_take_anothers_name():
    assert paths_of(["cats/a.gif", "cats/a.gif.png"]) == {"cats/a.gif": "cats/a.gif.png", "cats/a.gif.png": "cats/a.gif~2.png"}


def test_three_names_that_would_be_one_are_told_apart():
    assert sorted(paths_of(["cats/a.png", "cats/A.png", "cats/a.PNG"]).values()) == ["cats/A.png", "cats/a~2.PNG", "cats/a~3.png"]


def test_two_ways_to_write_an_accent_are_told_apart():
    assert sorted(paths_of(["cats/\u00e9.png", "cats/e\u0301.png"]).values()) == ["cats/e\u0301.png", "cats/\u00e9~2.png"]


def test_one_name_in_two_splits_stays():
    splits = {"cats/a.png": "train", "cats/A.png": "test"}
    assert paths_of(splits, splits=splits) == {"cats/a.png": "cats/a.png", "cats/A.png": "cats/A.png"}


def test_a_file_does_not_take_the_name_of_a_folder():
    assert paths_of(["cats/a.png", "cats/a.png/b.png"]) == {"cats/a.png": "cats/a~2.png", "cats/a.png/b.png": "cats/a.png/b.png"}


def test_a_file_does_not_take_the_name_of_a_folder_in_other_capitals():
    assert paths_of(["cats/A.PNG", "cats/a.png/b.png"])["cats/A.PNG"] == "cats/A~2.PNG"


def test_a_mark_that_is_taken_is_passed_over():
    found = paths_of(["cats/A.png", "cats/a.png", "cats/a~2.png"])
    assert sorted(found.values()) == ["cats/A.png", "cats/a~2.png", "cats/a~2~2.png"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/B.png", "A/b.PNG", True),
        ("stra\u00dfe", "STRASSE", True),
        ("\u00e9", "e\u0301", True),
        ("\u00c9", "e\u0301", True),
        ("a", "b", False),
        ("a ", "a", False),
    ],
)
def test_paths_are_alike_that_some_system_does_not_tell_apart(one, other, expected):
    assert (folded(one) == folded(other)) is expected


@pytest.mark.parametrize(
    ("path", "mark", "suffix", "expected"),
    [
        ("cats/a.png", "", "", "cats/a.png"),
        ("cats/a.png", "~2", "", "cats/a~2.png"),
        ("cats/a.gif", "", ".png", "cats/a.gif.png"),
        ("cats/a.gif", "~2", ".png", "cats/a.gif~2.png"),
        ("cats/a", "~2", ".png", "cats/a~2.png"),
        ("cats/a.", "~12", ".png", "cats/a.~12.png"),
        ("c.d/a b .png", "~2", "", "c.d/a b ~2.png"),
        ("cats/-a\n.png", "~2", "", "cats/-a\n~2.png"),
    ],
)
def test_a_mark_stands_behind_the_stem(path, mark, suffix, expected):
    assert fitting(path, mark, suffix) == expected


@pytest.mark.parametrize(
    ("name", "mark", "suffix", "expected"),
    [
        ("a" * 251 + ".png", "", "", "a" * 251 + ".png"),
        ("a" * 251 + ".png", "~2", "", "a" * 249 + "~2.png"),
        ("a" * 251 + ".gif", "", ".png", "a" * 251 + ".png"),
        ("a" * 249 + ".gif", "", ".png", "a" * 249 + ".g.png"),
        ("\u732b" * 84, "", ".png", "\u732b" * 83 + ".png"),  # 3 bytes each: 249 of the 251 that there are
        ("\u732b" * 83 + ".png", "~10", "", "\u732b" * 82 + "~10.png"),
    ],
)  # fmt: skip
def test_a_name_too_long_for_a_file_is_cut_between_letters(name, mark, suffix, expected):
    assert fitting(f"cats/{name}", mark, suffix) == f"cats/{expected}"


def test_long_names_that_are_cut_are_told_apart():
    names = [f"cats/{'a' * 251}{ending}" for ending in (".gif", ".bmp", "")]
    assert sorted(paths_of(names, deep=names).values()) == [f"cats/{'a' * 249}{mark}.png" for mark in ("aa", "~2", "~3")]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("name", "is_known"),
    [("a.png", True), ("a.JPG", True), ("a.webp", True), ("a.gif", False), ("a.jfif", False), ("a", False), ("a.png.txt", False)],
)
def test_a_file_is_kept_where_image_folder_takes_its_name_and_its_bits(name, is_known, plain):
    assert is_kept(name, look(plain)) is (is_known and plain)
