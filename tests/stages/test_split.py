"""The stage `split`: ImageFolder trees of all that decodes, tables of all there was; whole messages where it is refused."""

import contextlib
import csv
import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pipeline.errors import PipelineError
from pipeline.stages.split import Params, run

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def inside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def picture(number=0, kind="PNG"):
    """A picture of 3 x 2 pixels, another one for each number."""
    return encoded(Image.new("RGB", (3, 2), (number, 255 - number, 7)), kind)


def encoded(image, kind):
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def of_class(label, count, start=0):
    """So many pictures of a class, no two alike; `start`: the first one's number."""
    return {f"{label}/{number:02d}.png": picture(number) for number in range(start, start + count)}


TWO_CLASSES = {**of_class("cats", 10), **of_class("dogs", 10, 100)}


def split(tmp_path, contents, *, seed=0, val=0.2, test=0.2):
    """Run the stage on a zip of these contents; the folder of its outs."""
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    data = tmp_path / "data"
    tables = (data / name for name in ("manifest.csv", "quarantine.csv", "audit.json"))
    run(Params(seed=seed, val=val, test=test), tmp_path / "raw.zip", data / "splits", *tables)
    return data


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def split_by_id(data):
    return {row["image_id"]: row["split"] for row in rows(data / "manifest.csv")}


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def message_of(tmp_path, contents, **params):
    with pytest.raises(PipelineError) as caught:
        split(tmp_path, contents, **params)
    return str(caught.value)


def test_each_split_gets_its_share_of_every_class(tmp_path):
    audit = json.loads((split(tmp_path, TWO_CLASSES) / "audit.json").read_text())
    assert audit["classes"] == {label: {"train": 6, "val": 2, "test": 2} for label in ("cats", "dogs")}


def test_a_picture_lies_where_the_manifest_says_with_its_own_bytes(tmp_path):
    data = split(tmp_path, TWO_CLASSES)
    found = {row["image_id"]: (data / "splits" / row["split"] / row["path"]).read_bytes() for row in rows(data / "manifest.csv")}
    assert found == TWO_CLASSES


def test_the_trees_hold_what_the_manifest_says_and_nothing_else(tmp_path):
    data = split(tmp_path, TWO_CLASSES)
    assert sorted(files_below(data / "splits")) == sorted(f"{row['split']}/{row['path']}" for row in rows(data / "manifest.csv"))


def test_the_manifest_tells_sum_class_and_size(tmp_path):
    row = rows(split(tmp_path, TWO_CLASSES) / "manifest.csv")[3]
    expected = {
        "image_id": "cats/03.png",
        "path": "cats/03.png",
        "sha256": hashlib.sha256(picture(3)).hexdigest(),
        "label": "cats",
        "width": "3",
        "height": "2",
    }
    assert {key: row[key] for key in expected} == expected


def test_the_audit_counts_pictures_and_exact_duplicates(tmp_path):
    contents = {**TWO_CLASSES, "cats/again.png": picture(0), "dogs/again.png": picture(0), "cats/broken.png": b""}
    audit = json.loads((split(tmp_path, contents) / "audit.json").read_text())
    del audit["classes"]
    assert audit.pop("exact_duplicates_across_splits") in (0, 1)
    assert audit == {"pictures": 22, "quarantined": 1, "exact_duplicates": 2, "median_width": 3, "median_height": 2}


def test_the_audit_counts_pictures_that_stand_in_more_than_one_split(tmp_path):
    contents = {f"{split}/{label}/{n}.png": picture(n + 10 * (label == "dogs")) for split in ("train", "test")
                for label in ("cats", "dogs") for n in range(4)}  # fmt: skip
    assert json.loads((split(tmp_path, contents) / "audit.json").read_text())["exact_duplicates_across_splits"] == 8


def test_a_class_of_broken_pictures_alone_is_not_passed_over(tmp_path):
    contents = {**TWO_CLASSES, "fish/1.jpg": b"", "fish/2.jpg": b"no picture"}
    with pytest.raises(PipelineError) as error:
        split(tmp_path, contents)
    assert str(error.value) == (
        "data/raw.zip: class 'fish' has 0 pictures that decode, fewer than 3; add pictures or take the class out "
        "(2 do not decode, first 'fish/1.jpg': not a picture)"
    )


def test_what_was_left_out_is_told(tmp_path, capsys):
    split(tmp_path, {**TWO_CLASSES, "cats/broken.png": b"", "notes.txt": b"hello"})
    assert capsys.readouterr().out == f"2 of 22 files were left out; {tmp_path}/data/quarantine.csv says which and why\n"


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first, second = (files_below(split(tmp_path, TWO_CLASSES)) for _ in range(2))
    assert first == second


def test_the_order_in_the_archive_does_not_matter(tmp_path):
    first = files_below(split(tmp_path, TWO_CLASSES))
    assert files_below(split(tmp_path, dict(reversed(TWO_CLASSES.items())))) == first


def test_another_seed_is_another_split(tmp_path):
    first = split_by_id(split(tmp_path, TWO_CLASSES, seed=0))
    assert split_by_id(split(tmp_path, TWO_CLASSES, seed=1)) != first


def test_nothing_of_an_earlier_split_stays(tmp_path):
    split(tmp_path, {**TWO_CLASSES, **of_class("mice", 5, 200)})
    assert not [name for name in files_below(split(tmp_path, TWO_CLASSES)) if "mice" in name]


def test_broken_pictures_are_listed_with_the_reason(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    contents = {
        **TWO_CLASSES,
        "dogs/notes.txt": b"bark",
        "cats/empty.png": b"",
        "cats/cut.gif": encoded(noise, "GIF")[:1000],
        "README": b"hi",
    }
    reasons = {row["image_id"]: row["reason"] for row in rows(split(tmp_path, contents) / "quarantine.csv")}
    cut = reasons.pop("cats/cut.gif")
    assert cut.startswith("image file is truncated")
    assert reasons == {"README": "not in the folder of a class", "cats/empty.png": "not a picture", "dogs/notes.txt": "not a picture"}


def test_broken_pictures_are_not_in_the_trees(tmp_path):
    names = files_below(split(tmp_path, {**TWO_CLASSES, "cats/empty.png": b""}) / "splits")
    assert not [name for name in names if "empty" in name]


def test_without_broken_pictures_the_list_is_a_header(tmp_path):
    assert (split(tmp_path, TWO_CLASSES) / "quarantine.csv").read_text() == "image_id,reason\n"


def test_sub_folders_of_a_class_are_kept(tmp_path):
    contents = {**of_class("cats/day", 3), **of_class("cats/night", 3, 50), **of_class("dogs", 6, 100)}
    paths = {row["path"] for row in rows(split(tmp_path, contents) / "manifest.csv")}
    assert paths == set(contents)


def test_folders_above_the_classes_are_not_kept(tmp_path):
    contents = {f"a/b/{name}": content for name, content in TWO_CLASSES.items()}
    paths = {row["path"] for row in rows(split(tmp_path, contents) / "manifest.csv")}
    assert paths == set(TWO_CLASSES)


def with_odd_kinds():
    """Pictures that ImageFolder would leave out or spoil: .gif, no suffix, 16 bits."""
    deep = encoded(Image.fromarray(np.full((2, 3), 257 * 40, dtype=np.uint16)), "PNG")
    gifs = {f"cats/{number}.gif": picture(number, "GIF") for number in range(3)}
    return {**gifs, **{f"dogs/{n}.png": deep for n in range(3)}, **{f"mice/{n}": picture(n) for n in range(3)}}


def test_what_image_folder_would_drop_or_spoil_is_written_as_png(tmp_path):
    data = split(tmp_path, with_odd_kinds())
    for name, content in files_below(data / "splits").items():
        with Image.open(io.BytesIO(content)) as image:
            assert (name.endswith(".png"), image.format, image.mode) == (True, "PNG", "RGB")


def test_image_folder_sees_every_picture(tmp_path):
    data = split(tmp_path, {**with_odd_kinds(), "cats/UPPER.JPG": picture(9, "JPEG")})
    assert sum(len(ImageFolder(data / "splits" / name)) for name in SPLITS) == 10


def test_image_folder_sees_16_bit_pictures_scaled(tmp_path):
    data = split(tmp_path, with_odd_kinds())
    image, label = ImageFolder(data / "splits" / "train")[1]
    assert (label, image.getpixel((0, 0))) == (1, (40, 40, 40))


def test_image_folder_has_the_same_classes_in_every_split(tmp_path):
    data = split(tmp_path, with_odd_kinds())
    assert [ImageFolder(data / "splits" / name).classes for name in SPLITS] == [["cats", "dogs", "mice"]] * 3


def test_a_picture_written_as_png_does_not_take_anothers_name(tmp_path):
    # With fifteen of each, some two of a number lie in one split
    contents = {f"cats/{n}.gif": picture(n, "GIF") for n in range(15)} | {f"cats/{n}.gif.png": picture(n + 50) for n in range(15)}
    data = split(tmp_path, contents | of_class("dogs", 5, 200))
    assert len(files_below(data / "splits")) == 35


def test_names_that_differ_by_case_alone_are_told_apart(tmp_path):
    contents = {"train/cats/a.png": picture(1), "train/cats/A.png": picture(2), "train/cats/b.png": picture(3)}
    contents |= {f"train/{name}": content for name, content in of_class("dogs", 3, 9).items()}
    contents |= {"val/cats/a.png": picture(4), "val/dogs/a.png": picture(5), "test/cats/a.png": picture(6), "test/dogs/a.png": picture(7)}
    data = split(tmp_path, contents)
    assert sorted(row["path"] for row in rows(data / "manifest.csv") if row["label"] == "cats" and row["split"] == "train") == [
        "cats/A.png", "cats/a~2.png", "cats/b.png",
    ]  # fmt: skip


def folders(**counts):
    """`train=(6, 4)`: a folder train with so many cats and dogs."""
    found, number = {}, 0
    for folder, (cats, dogs) in counts.items():
        for label, count in (("cats", cats), ("dogs", dogs)):
            found |= {f"{folder}/{name}": content for name, content in of_class(label, count, number).items()}
            number += count
    return found


def counts_by_folder(data):
    counts = {}
    for image_id, name in split_by_id(data).items():
        key = (image_id.split("/")[0], name)
        counts[key] = counts.get(key, 0) + 1
    return counts


def test_a_file_and_a_folder_of_one_name_are_both_written_or_refused_in_one_line(tmp_path):
    contents = {**folders(train=(3, 3), val=(1, 1), test=(1, 1)), "train/cats/a.png": picture(91), "train/cats/a.png/b.png": picture(92)}
    with contextlib.suppress(PipelineError):
        assert len(files_below(split(tmp_path, contents) / "splits")) == 12


def test_an_archive_with_all_three_folders_keeps_them(tmp_path):
    data = split(tmp_path, folders(train=(4, 4), val=(1, 2), test=(2, 1)))
    assert counts_by_folder(data) == {("train", "train"): 8, ("val", "val"): 3, ("test", "test"): 3}


def test_with_train_and_val_alone_val_is_the_test_split(tmp_path):
    data = split(tmp_path, folders(train=(10, 10), val=(3, 3)))
    assert counts_by_folder(data) == {("train", "train"): 16, ("train", "val"): 4, ("val", "test"): 6}


def test_with_train_and_test_alone_val_is_carved_from_train(tmp_path):
    data = split(tmp_path, folders(train=(10, 10), test=(3, 3)))
    assert counts_by_folder(data) == {("train", "train"): 16, ("train", "val"): 4, ("test", "test"): 6}


def test_a_folder_may_be_named_for_a_split(tmp_path):
    data = split(tmp_path, folders(train=(10, 10), val=(3, 3)), val="val", test=0.2)
    assert counts_by_folder(data) == {("train", "train"): 16, ("train", "test"): 4, ("val", "val"): 6}


@pytest.mark.parametrize(("key", "value"), [("test", "holdout"), ("val", "Val")])
def test_a_named_folder_that_is_not_there_is_refused(tmp_path, key, value):
    found = message_of(tmp_path, folders(train=(4, 4), val=(3, 3)), **{key: value})
    assert found == f"params.yaml: split.{key}: {value!r} is no split folder of the pictures; there: train, val"


def test_a_named_folder_is_refused_where_there_are_none(tmp_path):
    found = message_of(tmp_path, TWO_CLASSES, test="holdout")
    assert found == "params.yaml: split.test: 'holdout' is no split folder of the pictures; there: none"


def test_an_archive_without_a_training_folder_is_refused(tmp_path):
    found = message_of(tmp_path, folders(val=(4, 4), test=(4, 4)))
    assert found == "data/raw.zip: holds test, val and no training folder; add train/"


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.6, 0.7), (0.1, 0.9), (0.7, 0.3)])
def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path, val, test):
    found = message_of(tmp_path, TWO_CLASSES, val=val, test=test)
    assert found == f"params.yaml: split: val {val} and test {test} leave nothing to train on"


def test_one_class_is_refused(tmp_path):
    found = message_of(tmp_path, of_class("cats", 5))
    assert found == "data/raw.zip: holds one class, 'cats'; a classifier needs two: one folder each"


@pytest.mark.parametrize(("count", "words"), [(2, "2 pictures that decode"), (1, "1 picture that decodes")])
def test_a_class_of_less_than_three_pictures_is_refused(tmp_path, count, words):
    found = message_of(tmp_path, {**of_class("cats", 5), **of_class("dogs", count, 9), "dogs/broken.png": b""})
    assert (
        found == f"data/raw.zip: class 'dogs' has {words}, fewer than 3; "
        "add pictures or take the class out (1 does not decode, first 'dogs/broken.png': not a picture)"
    )


def test_a_class_of_three_pictures_has_one_in_each_split(tmp_path):
    data = split(tmp_path, {**of_class("cats", 3), **of_class("dogs", 30, 9)})
    assert sorted(row["split"] for row in rows(data / "manifest.csv") if row["label"] == "cats") == ["test", "train", "val"]


def test_no_picture_that_decodes_is_refused(tmp_path):
    found = message_of(tmp_path, {"cats/1.png": b"", "dogs/2.png": b""})
    assert found == "data/raw.zip: not one picture decodes (2 do not decode, first 'cats/1.png': not a picture); look at the source"


def test_pictures_without_folders_are_refused(tmp_path):
    assert message_of(tmp_path, {"1.png": picture()}) == "data/raw.zip: holds no pictures in folders; make one folder for each class"


def test_classes_called_like_splits_are_refused(tmp_path):
    assert message_of(tmp_path, {**of_class("train", 4), **of_class("val", 4, 9)}) == (
        "data/raw.zip: its root: the classes would be 'train', 'val': those are splits; name the folder that holds the classes"
    )


@pytest.mark.parametrize(
    ("absent", "counts"),
    [
        ("train", {"train": (5, 0), "val": (2, 3), "test": (3, 3)}),
        ("val", {"train": (5, 5), "val": (2, 0), "test": (3, 3)}),
        ("test", {"train": (5, 5), "val": (2, 2), "test": (3, 0)}),
    ],
)
def test_a_class_absent_from_a_given_split_is_refused(tmp_path, absent, counts):
    # An archive's own folders come first, so that params.yaml cannot deal that split out
    found = message_of(tmp_path, folders(**counts))
    assert found == f"data/raw.zip: class 'dogs' has no picture in {absent}; add some, or take the class out"


def test_nothing_is_written_where_the_pictures_are_refused(tmp_path):
    message_of(tmp_path, of_class("cats", 5))
    assert not (tmp_path / "data").exists()
