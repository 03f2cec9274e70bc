"""Where the classes begin: below lone folders, below folders named like splits, or nowhere."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.layout import ClassFile, find_layout, split_of

CURE = "those are splits; name the folder that holds the classes"


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


def test_without_split_folders_none_are_listed():
    assert find_layout(["cats/1.png", "dogs/2.png"], "pics").folders == []


def test_a_lone_train_folder_is_passed_by():
    assert labels_of("train/cats/1.png", "train/dogs/2.png") == {"train/cats/1.png": "cats", "train/dogs/2.png": "dogs"}


def test_files_beside_the_folders_are_outside():
    assert sorted(find_layout(["README", "a/licence", "a/cats/1.png", "a/dogs/1.png"], "pics").outside) == ["README", "a/licence"]


def test_the_order_of_the_names_does_not_matter():
    names = ["cats/2.png", "dogs/1.png", "cats/1.png", "notes"]
    assert find_layout(names, "pics") == find_layout(names[::-1], "pics")


@pytest.mark.parametrize("names", [(), ("1.png",), ("1.png", "2.png")])
def test_pictures_without_folders_are_refused(names):
    assert message_of(*names) == "pics: holds no pictures in folders; make one folder for each class"


def test_pictures_right_below_split_folders_are_refused():
    found = message_of("train/1.png", "val/2.png")
    assert found == f"pics: its root: the classes would be 'train', 'val': {CURE}"


def test_classes_beside_split_folders_are_refused():
    found = message_of("a/cats/1.png", "a/Test/dogs/1.png", "a/train/dogs/2.png")
    assert found == f"pics: a/: the classes would be 'Test', 'cats', 'train': {CURE}"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("train", "train"), ("Training", "train"), ("val", "val"), ("valid", "val"),
        ("VALIDATION", "val"), ("test", "test"), ("testing", "test"),
    ],
)  # fmt: skip
def test_a_folders_name_stands_for_a_split(folder, expected):
    assert split_of(folder) == expected
