"""Food-101: classes and splits from its lists; a line that names no picture of a known class is refused."""

import pytest

from pipeline.sources.formats import food_members

LIST = "food-101/meta/train.txt"


def contents(train="apple_pie/1\nbibimbap/2\n", classes="apple_pie\nbibimbap\n"):
    pictures = {f"food-101/images/{name}.jpg": name.encode() for name in ("apple_pie/1", "bibimbap/2", "bibimbap/3")}
    lists = {"classes": classes, "train": train, "test": "bibimbap/3\n"}
    return pictures | {f"food-101/meta/{name}.txt": lines.encode() for name, lines in lists.items()}


def test_the_pictures_of_the_lists_lie_in_their_splits_and_classes(published):
    members = food_members(published(contents()))
    assert {name: read() for name, read in members.items()} == {
        "train/apple_pie/1.jpg": b"apple_pie/1",
        "train/bibimbap/2.jpg": b"bibimbap/2",
        "test/bibimbap/3.jpg": b"bibimbap/3",
    }


@pytest.mark.parametrize(
    "line", ["apple_pie", "apple_pie/", "apple_pie/../1", "apple_pie/1/2", "../apple_pie/1", "/apple_pie/1", "apple_pie/x", "pizza/1"]
)
def test_a_line_that_names_no_picture_of_a_known_class_is_refused(fault_of, line):
    assert fault_of(food_members, contents(train=line)) == f"'{LIST}' contains the line {line!r}, which is not a picture of a known class"


def test_a_picture_that_is_missing_is_named(fault_of):
    assert fault_of(food_members, contents(train="apple_pie/9")) == "'food-101/images/apple_pie/9.jpg' is missing"
