"""The layout: classes below single folders and split folders, and which folder becomes which split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.sources.layout import ClassFile, Layout, choose_folders, find_layout


def labels_of(*names):
    return {entry.name: entry.label for entry in find_layout(names, "pics").entries}


def message_of(*names, folders="auto"):
    with pytest.raises(PipelineError) as caught:
        find_layout(names, "pics", folders)
    return str(caught.value)


def placed(*names, folders="auto"):
    """The split, the class and the path in the class of each file in a class folder, by its name."""
    layout = find_layout(names, "pics", folders)
    return {entry.name: (layout.folders[entry.folder], entry.label, entry.inner_path) for entry in layout.entries}


def unclear(folders, cure):
    listed = ", ".join(map(repr, folders.split()))
    return (
        f"pics: its root: the folders {listed} may be classes or splits; if all are classes, "
        f"set split.folders: none in params.yaml; else {cure}"
    )


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
    assert find_layout(["Train/cats/1.png", "Testing/cats/2.png"], "pics").folders == {"Testing": "test", "Train": "train"}


def test_a_lone_train_folder_is_passed_by():
    assert labels_of("train/cats/1.png", "train/dogs/2.png") == {"train/cats/1.png": "cats", "train/dogs/2.png": "dogs"}


def test_files_beside_the_class_folders_are_outside():
    assert sorted(find_layout(["README", "a/licence", "a/cats/1.png", "a/dogs/1.png"], "pics").outside) == ["README", "a/licence"]
    assert find_layout(["a/train/notes", "a/train/cats/1.png", "a/val/cats/2.png"], "pics").outside == ["a/train/notes"]


def split_names(folders):
    """Folders with the splits that their names mean."""
    return {folder: {"tra": "train", "val": "val", "tes": "test"}[folder[:3].lower()] for folder in folders.split()}


@pytest.mark.parametrize(
    ("folders", "val", "test", "expected"),
    [
        ("train val test", 0.1, 0.1, {"train": "train", "test": "test", "val": "val"}),
        ("Training VALID Testing", 0.1, 0.1, {"Training": "train", "Testing": "test", "VALID": "val"}),
        ("train validation", 0.1, 0.1, {"train": "train", "validation": "test"}),  # what its publisher held out is the test split
        ("train test", 0.1, 0.1, {"train": "train", "test": "test"}),
        ("train val", "val", 0.1, {"train": "train", "val": "val"}),
        ("train val test", "test", "val", {"train": "train", "val": "test", "test": "val"}),
        ("train training test", 0.1, 0.1, {"train": "train", "training": "train", "test": "test"}),
        ("", 0.1, 0.1, {}),
    ],
)
def test_split_folders_become_test_and_val(folders, val, test, expected):
    assert choose_folders(Layout([], [], split_names(folders)), val, test) == expected


@pytest.mark.parametrize(
    ("folders", "val", "test", "spare"),
    [
        ("train test testing", 0.1, "testing", "test"),
        ("train test testing tests", 0.1, "test", "testing tests"),
        ("train val valid test", "valid", 0.1, "val"),
        ("train val test", 0.1, "val", "test"),
        ("train val valid validation test", "val", "valid", "validation test"),
    ],
)
def test_a_folder_in_whose_place_another_is_named_is_not_trained_on(folders, val, test, spare):
    used = choose_folders(Layout([], [], split_names(folders)), val, test)
    assert set(folders.split()) - set(used) == set(spare.split())
    assert [folder for folder, split in used.items() if split == "train"] == ["train"]


@pytest.mark.parametrize(
    ("folders", "val", "test", "fault"),
    [
        ("train val", 0.1, "holdout", "params.yaml: split.test: 'holdout' is not a split folder of the pictures; they have train, val"),
        ("train val", "val", "val", "params.yaml: split: val and test both name the folder 'val'; name different ones"),
        ("train val valid", 0.1, 0.1, "data/raw: contains 'val' and 'valid'; name one of them in params.yaml: split"),
        ("train val valid test", 0.1, "test", "data/raw: contains 'val' and 'valid'; name one of them in params.yaml: split"),
        ("test testing", 0.1, "test", "data/raw: contains test, testing and no training folder; add train/"),
        ("val test", 0.1, 0.1, "data/raw: contains val, test and no training folder; add train/"),
    ],
)
def test_split_folders_that_leave_a_doubt_are_refused(folders, val, test, fault):
    with pytest.raises(PipelineError) as caught:
        choose_folders(Layout([], [], split_names(folders)), val, test)
    assert str(caught.value) == fault


def test_no_files_at_all_are_refused():
    assert message_of() == "pics: contains no files; name a folder or an archive of pictures"


@pytest.mark.parametrize("names", [("1.png",), ("1.png", "2.png")])
def test_pictures_without_folders_are_refused(names):
    assert message_of(*names) == "pics: contains no folders of pictures; make one folder for each class"


def test_folders_that_are_all_called_like_splits_without_classes_are_refused():
    assert message_of("train/1.png", "val/2.png") == unclear("train val", "make one folder for each class in each of them")


@pytest.mark.parametrize(
    ("names", "folders", "told"),
    [
        ("cats/1.png Test/dogs/1.png train/dogs/2.png", "Test cats train", "{Test: test, train: train}"),
        ("holdback/cats/1.png train/cats/2.png train/dogs/2.png", "holdback train", "{train: train}"),
        ("cats/1.png dogs/1.png test/1.png", "cats dogs test", "{test: unlabelled}"),
        ("archive/cats/1.png archive/dogs/1.png train/1.png", "archive train", "{train: unlabelled}"),
        ("cats/1.png train/1.png val/1.png", "cats train val", "{train: unlabelled, val: unlabelled}"),
        ("train_224_web/cats/1.png val_224/cats/2.png", "train_224_web val_224", "{train_224_web: train, val_224: val}"),
        ("first_train/cats/1.png other_test/cats/2.png", "first_train other_test", "{first_train: train, other_test: test}"),
        ("cats/train/1.png cats/test/1.png dogs/1.png", "cats/test cats/train", '{"cats/test": test, "cats/train": train}'),
    ],
)
def test_folders_that_may_be_classes_or_splits_are_refused(names, folders, told):
    assert message_of(*names.split()) == unclear(folders, f"set there what each is, as {told}")


def test_what_the_refusal_proposes_can_be_set():
    names = ["cats/1.png", "dogs/1.png", "test/1.png"]
    assert "{test: unlabelled}" in message_of(*names)
    layout = find_layout(names, "pics", {"test": "unlabelled"})
    assert ([entry.label for entry in layout.entries], layout.unlabelled) == (["cats", "dogs"], {"test": 1})


def test_pictures_and_masks_that_are_both_split_are_refused():
    names = [f"{kind}/{split}/cat/1.png" for kind in ("images", "masks") for split in ("train", "val")]
    told = '{"images/train": train, "images/val": val, "masks/train": train, "masks/val": val}'
    assert message_of(*names) == unclear("images/train images/val masks/train masks/val", f"set there what each is, as {told}")


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("training_set", "train"),
        ("Train Images", "train"),
        ("trainset", "train"),
        ("TrainingData", "train"),
        ("trainval", "train"),
        ("valid", "val"),
        ("val_data", "val"),
        ("dev", "val"),
        ("test1", "test"),
        ("TestImages", "test"),
        ("evaluation", "test"),
    ],
)
def test_a_split_folder_is_known_by_its_name(folder, split):
    beside = "test" if split == "train" else "train"
    layout = find_layout([f"{folder}/cats/1.png", f"{folder}/dogs/1.png", f"{beside}/cats/2.png"], "pics")
    assert layout.folders == {folder: split, beside: beside}


def test_split_folders_may_share_a_word_that_says_nothing_of_splits():
    assert placed("seg_train/sea/1.jpg", "seg_test/sea/2.jpg", "seg_train/street/3.jpg") == {
        "seg_train/sea/1.jpg": ("train", "sea", "1.jpg"),
        "seg_train/street/3.jpg": ("train", "street", "3.jpg"),
        "seg_test/sea/2.jpg": ("test", "sea", "2.jpg"),
    }


@pytest.mark.parametrize(
    "names", ["steam_train/1.png tram/1.png", "steam_train/1.png test_tube/1.png vial/1.png", "valve/1.png training_shoe/1.png"]
)
def test_a_class_may_mention_a_split(names):
    assert find_layout(names.split(), "pics").folders == {}


def test_split_folders_may_stand_inside_folders_of_the_same_name():
    names = ["x/training_set/training_set/cats/1.png", "x/training_set/training_set/dogs/2.png", "x/test_set/test_set/cats/3.png"]
    assert placed(*names) == {
        names[0]: ("train", "cats", "1.png"),
        names[1]: ("train", "dogs", "2.png"),
        names[2]: ("test", "cats", "3.png"),
    }


def test_a_folder_that_all_splits_contain_alone_is_no_class():
    names = ["train/birds/wren/1.png", "train/birds/robin/2.png", "test/birds/wren/3.png"]
    assert set(placed(*names).values()) == {("train", "wren", "1.png"), ("train", "robin", "2.png"), ("test", "wren", "3.png")}


def test_a_lone_class_in_one_split_keeps_its_folders():
    assert placed("train/a/1.png", "train/b/2.png", "val/a/day/3.png")["val/a/day/3.png"] == ("val", "a", "day/3.png")


@pytest.mark.parametrize("names", ["bus/1.png car/1.png train/1.png", "invalid/1.png valid/1.png"])
def test_a_folder_of_a_splits_name_beside_classes_is_a_class(names):
    assert sorted(labels_of(*names.split()).values()) == [name.partition("/")[0] for name in names.split()]


def test_a_test_folder_without_classes_is_unlabelled():
    layout = find_layout(["x/train/cats/1.png", "x/train/dogs/2.png", "x/test/3.png", "x/test/4.png"], "pics")
    assert (layout.folders, layout.unlabelled) == ({"train": "train"}, {"x/test": 2})
    assert layout.outside == ["x/test/3.png", "x/test/4.png"]


def test_an_unlabelled_folder_may_stand_inside_one_of_the_same_name():
    layout = find_layout(["seg_train/a/1.jpg", "seg_test/a/2.jpg", "seg_pred/seg_pred/3.jpg"], "pics")
    assert (layout.folders, layout.unlabelled) == ({"seg_train": "train", "seg_test": "test"}, {"seg_pred": 1})


def test_a_training_folder_without_classes_is_refused():
    found = message_of("x/train/1.png", "x/test/cats/2.png", "x/test/dogs/2.png")
    assert found == "pics: x/train: contains no folders of pictures; make one folder for each class in it"


def test_splits_are_found_beside_folders_of_other_files():
    layout = find_layout(["images/train/cat/1.jpg", "images/val/cat/2.jpg", "labels/train/1.txt", "labels/val/2.txt"], "pics")
    assert layout.folders == {"train": "train", "val": "val"}
    assert layout.outside == ["labels/train/1.txt", "labels/val/2.txt"]
    assert find_layout(["train/cat/1.jpg", "val/cat/2.jpg", "notes/a.csv"], "pics").outside == ["notes/a.csv"]


def test_splits_may_stand_below_the_classes():
    assert placed("x/cats/train/1.png", "x/cats/test/2.png", "x/dogs/train/3.png") == {
        "x/cats/train/1.png": ("train", "cats", "1.png"),
        "x/cats/test/2.png": ("test", "cats", "2.png"),
        "x/dogs/train/3.png": ("train", "dogs", "3.png"),
    }


def test_no_folder_is_a_split_if_the_params_say_so():
    layout = find_layout(["train/1.png", "test/2.png", "cats/train/3.png"], "pics", "none")
    assert sorted(entry.label for entry in layout.entries) == ["cats", "test", "train"]
    assert layout.folders == {}


def test_folders_are_the_splits_that_the_params_say():
    names = ["x/mine/a/1.png", "x/mine/b/2.png", "x/held/a/3.png", "x/held/b/4.png", "x/masks/a/5.png"]
    assert placed(*names, folders={"mine": "train", "x/held": "test"}) == {
        names[0]: ("train", "a", "1.png"),
        names[1]: ("train", "b", "2.png"),
        names[2]: ("test", "a", "3.png"),
        names[3]: ("test", "b", "4.png"),
    }
    assert find_layout(names, "pics", {"mine": "train", "x/held": "test"}).outside == ["x/masks/a/5.png"]


def test_a_folder_is_unlabelled_if_the_params_say_so():
    layout = find_layout(["cats/1.png", "dogs/2.png", "test/3.png"], "pics", {"test": "unlabelled"})
    assert [entry.label for entry in layout.entries] == ["cats", "dogs"]
    assert (layout.outside, layout.unlabelled) == (["test/3.png"], {"test": 1})


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("tset", "'tset' is no folder of pics; write its path there"),
        ("a", "'a' names several folders of pics: 'x/a', 'y/a'; write a whole path"),
    ],
)
def test_a_folder_in_the_params_that_is_not_one_folder_is_refused(key, fault):
    assert message_of("x/a/1.png", "y/a/2.png", folders={key: "test"}) == f"params.yaml: split.folders: {fault}"


@pytest.mark.parametrize(
    ("folders", "fault"),
    [
        ({"x": "train", "held": "test"}, "'held' is 'x/held', which 'x' contains"),
        ({"x/held": "test", "held": "val"}, "'x/held' is 'x/held', which 'held' contains"),
    ],
)
def test_folders_in_the_params_that_overlap_are_refused(folders, fault):
    found = message_of("x/held/a/1.png", "x/b/2.png", folders=folders)
    assert found == f"params.yaml: split.folders: {fault}; write only one of them"


def test_an_unlabelled_folder_may_stand_in_a_split():
    layout = find_layout(["x/odd/a/1.png", "x/a/2.png", "x/b/3.png"], "pics", {"x": "train", "odd": "unlabelled"})
    assert ([entry.name for entry in layout.entries], layout.outside) == (["x/a/2.png", "x/b/3.png"], ["x/odd/a/1.png"])


@pytest.mark.parametrize(
    "names",
    [
        "train.zip test1.zip sample.csv",
        "data/train.zip data/test1.zip data/sample.csv",
        "train.7z test.RAR sample.png",
        "x/photos.zip.002 x/photos.zip.001 labels.txt",
    ],
)
def test_archives_in_the_archive_are_named(names):
    first, second, _ = names.split()
    cure = "unpack them into one folder and name that in download.source"
    assert message_of(*names.split()) == f"pics: contains archives and no folders of pictures: {second!r}, {first!r}; {cure}"


FOLDERS = st.sampled_from("train test val train_set seg_train seg_test images labels cats dogs x".split())
FILES = st.sets(
    st.tuples(st.lists(FOLDERS, max_size=4), st.sampled_from(["1.png", "2.txt", "3"])).map(lambda path: "/".join([*path[0], path[1]]))
)


@given(names=FILES, folders=st.sampled_from(["auto", "none", {"train": "train"}, {"test": "unlabelled"}, {"x": "test", "train": "train"}]))
@settings(derandomize=True, deadline=None, max_examples=300, database=None)
def test_each_file_is_in_one_class_or_outside(names, folders):
    try:
        layout = find_layout(names, "pics", folders)
    except PipelineError:
        return
    assert sorted([*(entry.name for entry in layout.entries), *layout.outside]) == sorted(names)
    assert {entry.folder for entry in layout.entries} - {None} <= set(layout.folders)
