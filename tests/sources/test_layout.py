"""The layout: classes below single folders and split folders, and which folder becomes which split."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.layout import ClassFile, Layout, choose_folders, find_layout

CURE = ", which are splits; name the folder of the classes"


def labels_of(*names):
    return {entry.name: entry.label for entry in find_layout(names, "pics").entries}


def message_of(*names):
    with pytest.raises(PipelineError) as caught:
        find_layout(names, "pics")
    return str(caught.value)


def test_folders_at_the_top_are_the_classes():
    assert labels_of("cats/1.png", "dogs/2.png") == {"cats/1.png": "cats", "dogs/2.png": "dogs"}


def test_folders_below_lone_folders_are_the_classes():
    assert labels_of("a/b/cats/1.png", "a/b/dogs/2.png") == {"a/b/cats/1.png": "cats", "a/b/dogs/2.png": "dogs"}


def test_a_lone_folder_of_files_is_a_class():
    assert labels_of("a/cats/1.png", "a/cats/2.png") == {"a/cats/1.png": "cats", "a/cats/2.png": "cats"}


def test_an_entry_keeps_its_path_in_the_class():
    assert find_layout(["a/cats/day/1.png", "a/dogs/2.png"], "pics").entries[0] == ClassFile("a/cats/day/1.png", "cats", "day/1.png", None)


def test_folders_named_like_splits_stand_above_the_classes():
    layout = find_layout(["a/train/cats/1.png", "a/train/dogs/2.png", "a/val/cats/3.png"], "pics")
    assert layout.entries == [
        ClassFile("a/train/cats/1.png", "cats", "1.png", "train"),
        ClassFile("a/train/dogs/2.png", "dogs", "2.png", "train"),
        ClassFile("a/val/cats/3.png", "cats", "3.png", "val"),
    ]


def test_the_split_folders_are_listed_as_they_are_written():
    assert find_layout(["Train/cats/1.png", "Testing/cats/2.png"], "pics").folders == ["Testing", "Train"]


def test_a_lone_train_folder_is_passed_by():
    assert labels_of("train/cats/1.png", "train/dogs/2.png") == {"train/cats/1.png": "cats", "train/dogs/2.png": "dogs"}


def test_files_beside_the_class_folders_are_outside():
    assert sorted(find_layout(["README", "a/licence", "a/cats/1.png", "a/dogs/1.png"], "pics").outside) == ["README", "a/licence"]
    assert find_layout(["a/train/notes", "a/train/cats/1.png", "a/val/cats/2.png"], "pics").outside == ["a/train/notes"]


@pytest.mark.parametrize(
    ("folders", "val", "test", "expected"),
    [
        ("train val test", 0.1, 0.1, ("test", "val")),
        ("Training VALID Testing", 0.1, 0.1, ("Testing", "VALID")),
        ("train validation", 0.1, 0.1, ("validation", None)),  # what its publisher held out is the test split
        ("train test", 0.1, 0.1, ("test", None)),
        ("train val", "val", 0.1, (None, "val")),
        ("train val test", "test", "val", ("val", "test")),
        ("train training test", 0.1, 0.1, ("test", None)),
        ("", 0.1, 0.1, (None, None)),
    ],
)
def test_split_folders_become_test_and_val(folders, val, test, expected):
    assert choose_folders(Layout([], [], folders.split()), val, test) == expected


@pytest.mark.parametrize(
    ("folders", "val", "test", "fault"),
    [
        ("train val", 0.1, "holdout", "params.yaml: split.test: 'holdout' is not a split folder of the pictures; they have train, val"),
        ("train val", "val", "val", "params.yaml: split: val and test both name the folder 'val'; name different ones"),
        ("train val valid", 0.1, 0.1, "data/raw.zip: contains 'val' and 'valid'; name one of them in params.yaml: split"),
        ("val test", 0.1, 0.1, "data/raw.zip: contains val, test and no training folder; add train/"),
    ],
)
def test_split_folders_that_leave_a_doubt_are_refused(folders, val, test, fault):
    with pytest.raises(PipelineError) as caught:
        choose_folders(Layout([], [], folders.split()), val, test)
    assert str(caught.value) == fault


@pytest.mark.parametrize("names", [(), ("1.png",), ("1.png", "2.png")])
def test_pictures_without_folders_are_refused(names):
    assert message_of(*names) == "pics: contains no folders of pictures; make one folder for each class"


def test_pictures_right_below_split_folders_are_refused():
    found = message_of("train/1.png", "val/2.png")
    assert found == f"pics: its root: the classes would be 'train', 'val'{CURE}"


def test_classes_beside_split_folders_are_refused():
    found = message_of("a/cats/1.png", "a/Test/dogs/1.png", "a/train/dogs/2.png")
    assert found == f"pics: a/: the classes would be 'Test', 'cats', 'train'{CURE}"
