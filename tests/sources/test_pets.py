"""Oxford-IIIT Pet: breeds from file names, splits from lists; an inconsistent list is refused in one line."""

import pytest

from pipeline.sources.formats import pet_members

LIST = "annotations/trainval.txt"


def contents(train="Abyssinian_1 1 1 1\ngreat_pyrenees_100 2 2 1\n", test="Abyssinian_2 1 1 1\n"):
    pictures = ("Abyssinian_1", "Abyssinian_2", "great_pyrenees_100", "great_pyrenees_101")
    return {f"images/{name}.jpg": name.encode() for name in pictures} | {LIST: train.encode(), "annotations/test.txt": test.encode()}


def test_the_pictures_of_the_lists_lie_in_their_splits_and_breeds(published):
    members = pet_members(published(contents()))
    assert {name: read() for name, read in members.items()} == {
        "train/Abyssinian/Abyssinian_1.jpg": b"Abyssinian_1",
        "train/great_pyrenees/great_pyrenees_100.jpg": b"great_pyrenees_100",
        "test/Abyssinian/Abyssinian_2.jpg": b"Abyssinian_2",
    }


@pytest.mark.parametrize(
    "line",
    [
        "Abyssinian_1", "Abyssinian_1 1 1", "Abyssinian_1 1 1 1 1", "Abyssinian_1 one 1 1", "Abyssinian 1 1 1", "_1 1 1 1",
        "../../etc/passwd_1 1 1 1", "/Abyssinian_1 1 1 1", "a/b_1 1 1 1", "..\\Abyssinian_1 1 1 1", "Abyssinian_١ 1 1 1",
    ],
)  # fmt: skip
def test_a_line_that_names_no_picture_is_refused(fault_of, line):
    assert fault_of(pet_members, contents(train=line)) == f"'{LIST}' contains the line {line!r}, which is not a picture with its class"


def test_a_class_of_two_breeds_is_refused(fault_of):
    found = fault_of(pet_members, contents(test="great_pyrenees_101 1 2 1"))
    assert found == "'annotations/test.txt' has Abyssinian and great_pyrenees as class 1"


def test_a_picture_that_is_missing_is_named(fault_of):
    assert fault_of(pet_members, contents(train="Abyssinian_3 1 1 1")) == "'images/Abyssinian_3.jpg' is missing"


def test_a_list_that_is_missing_is_named(fault_of):
    assert fault_of(pet_members, {"images/Abyssinian_1.jpg": b""}) == f"'{LIST}' is missing"
