"""The stage `split`: ImageFolder trees of all usable pictures, no picture in two splits, and tables of all pictures."""

import contextlib
import csv
import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pipeline.core import files
from pipeline.core.errors import PipelineError
from pipeline.core.sections import read_section
from pipeline.pictures.audit import KINDS
from pipeline.pictures.manifest import read_manifest
from pipeline.pictures.splits import GroupTable
from pipeline.stages.split import Params, run
from tests.archives import make_shards

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def inside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(files, "_sync", lambda _: None)  # thousands of files need not survive a power cut


def picture(number=0, kind="PNG"):
    """A picture of 12 x 8 pixels, another one for each number."""
    return encoded(Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)), kind)


def photograph(number):
    """A picture like a photograph's, 60 x 40 pixels: smooth random fields, the finer the fainter."""
    generator, field = np.random.default_rng([number, 1]), np.zeros((40, 60, 3))
    for power in range(1, 6):
        grid = Image.fromarray(generator.integers(0, 256, (2**power, 2**power, 3), dtype=np.uint8))
        field += np.asarray(grid.resize((60, 40), Image.Resampling.BICUBIC), dtype=float) / 2**power
    return Image.fromarray(field.astype(np.uint8))


def encoded(image, kind="PNG", **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def of_class(label, count, start=0):
    """So many pictures of a class, no two alike; `start`: the first one's number."""
    return {f"{label}/{number:02d}.png": picture(number) for number in range(start, start + count)}


TWO_CLASSES = {**of_class("cats", 10), **of_class("dogs", 10, 100)}


def split(tmp_path, contents, **changed):
    """Run the stage on shards of these contents; the folder of its outs."""
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    make_shards(tmp_path / "raw", contents)
    data = tmp_path / "data"
    tables = (data / name for name in ("manifest.csv", "quarantine.csv", "audit.json"))
    params = {
        "seed": 0, "val": 0.2, "test": 0.2, "folders": "auto", "group": None, "similarity": 0.99, "folders_up_to": 1000, "leak": "repair",
        **changed,
    }  # fmt: skip
    run(Params(**params), tmp_path / "raw", data / "splits", *tables)
    return data


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def split_by_id(data):
    return {row["image_id"]: row["split"] for row in rows(data / "manifest.csv")}


def reasons(data):
    return {row["image_id"]: row["reason"] for row in rows(data / "quarantine.csv")}


def audit_of(data):
    return json.loads((data / "audit.json").read_text(encoding="utf-8"))


def found_in(data, *kinds):
    """The findings of some kinds, or of all but unusual pictures: the pictures and the details."""
    wanted = kinds or [kind for kind in KINDS if not kind.startswith("unusual")]
    return [(finding["image_ids"], finding["detail"]) for finding in audit_of(data)["findings"] if finding["kind"] in wanted]


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
        "group": "cats/03.png",
        "width": "12",
        "height": "8",
    }
    assert {key: row[key] for key in expected} == expected


def test_the_audit_counts_pictures_and_findings_and_shows_those_that_decode(tmp_path):
    contents = {**TWO_CLASSES, "cats/again.png": picture(0), "cats/broken.png": b"no", "dogs/wide.png": encoded(Image.new("RGB", (40, 8)))}
    audit = audit_of(split(tmp_path, contents))
    assert {key: audit[key] for key in ("pictures", "quarantined", "median_width", "median_height")} == {
        "pictures": 22, "quarantined": 1, "median_width": 12, "median_height": 8,
    }  # fmt: skip
    counts = {kind: facts["count"] for kind, facts in audit["kinds"].items()}
    unusual = dict.fromkeys(("unusual_brightness", "unusual_sharpness", "unusual_aspect", "unusual_size"), 1)  # the wide one
    assert counts == {**dict.fromkeys(KINDS, 0), "exact_duplicate": 1, "broken": 1, "one_colour": 1, **unusual}
    assert list(counts) == list(KINDS)
    assert {kind: (facts["title"], facts["fate"]) for kind, facts in audit["kinds"].items()} == KINDS
    assert sorted(audit["thumbnails"]) == ["cats/00.png", "cats/again.png", "dogs/wide.png"]


def test_more_pictures_than_are_decoded_at_once_are_dealt_out(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 6, 6, 3), dtype=np.uint8)
    contents = {f"{number % 3}/{number}.bmp": encoded(Image.fromarray(each), "BMP") for number, each in enumerate(pixels)}
    audit = audit_of(split(tmp_path, contents))
    assert audit["classes"] == {str(label): {"train": 120, "val": 40, "test": 40} for label in range(3)}


def test_where_nothing_was_found_nothing_is_listed(tmp_path):
    assert found_in(split(tmp_path, TWO_CLASSES)) == []


def test_a_class_of_broken_pictures_alone_is_not_passed_over(tmp_path):
    contents = {**TWO_CLASSES, "fish/1.jpg": b"", "fish/2.jpg": b"no picture"}
    with pytest.raises(PipelineError) as error:
        split(tmp_path, contents)
    assert str(error.value) == (
        "data/raw: class 'fish' has 0 usable pictures, fewer than 3; add pictures or remove the class "
        "(2 do not decode, first 'fish/1.jpg': an empty file)"
    )


def test_what_was_left_out_is_told(tmp_path, capsys):
    split(tmp_path, {**TWO_CLASSES, "cats/broken.png": b"", "notes.txt": b"hello"})
    assert capsys.readouterr().out == f"2 of 22 files were left out; {tmp_path}/data/quarantine.csv lists them with the reasons\n"


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
    found = reasons(split(tmp_path, contents))
    assert found.pop("cats/cut.gif").startswith("image file is truncated")
    assert found == {"README": "not in a class folder", "cats/empty.png": "an empty file", "dogs/notes.txt": "not a picture"}


def test_broken_pictures_are_not_in_the_trees(tmp_path):
    names = files_below(split(tmp_path, {**TWO_CLASSES, "cats/empty.png": b""}) / "splits")
    assert not [name for name in names if "empty" in name]


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
    gifs = {f"cats/{number}.gif": picture(number, "GIF") for number in range(3)}
    return {**gifs, **{f"dogs/{n}.png": deep_picture(n) for n in range(3)}, **{f"mice/{n}": picture(n + 3) for n in range(3)}}


def deep_picture(number):
    """A 16-bit grey picture whose first pixel is at 40 of 255."""
    pixels = np.random.default_rng([number, 2]).integers(0, 65536, (8, 12), dtype=np.uint16)
    pixels[0, 0] = 257 * 40
    return encoded(Image.fromarray(pixels))


def test_what_image_folder_would_drop_or_spoil_is_written_as_png(tmp_path):
    data = split(tmp_path, with_odd_kinds())
    for name, content in files_below(data / "splits").items():
        with Image.open(io.BytesIO(content)) as image:
            assert (name.endswith(".png"), image.format, image.mode) == (True, "PNG", "RGB")


def test_of_a_large_set_only_what_is_written_anew_leaves_the_shards(tmp_path):
    data = split(tmp_path, {**with_odd_kinds(), "cats/own.png": picture(9)}, folders_up_to=9)
    assert [path.name for path in sorted((data / "splits").iterdir())] == sorted(SPLITS)
    assert {name.split("/", 1)[1] for name in files_below(data / "splits")} == {
        row["path"] for row in rows(data / "manifest.csv") if row["image_id"] != "cats/own.png"
    }


def test_the_manifest_leads_to_the_same_bytes_in_trees_and_in_shards(tmp_path):
    found = []
    for most in (9, 10):
        data = split(tmp_path, {**with_odd_kinds(), "cats/own.png": picture(9)}, folders_up_to=most)
        pictures = read_manifest(data / "manifest.csv").pictures
        found.append({each.image_id: each.source(data / "splits" / each.split).read_bytes() for each in pictures})
    assert found[0] == found[1]
    assert found[0]["cats/own.png"] == picture(9)


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
    assert found == f"params.yaml: split.{key}: {value!r} is not a split folder of the pictures; they have train, val"


def test_a_named_folder_is_refused_where_there_are_none(tmp_path):
    found = message_of(tmp_path, TWO_CLASSES, test="holdout")
    assert found == "params.yaml: split.test: 'holdout' is not a split folder of the pictures; they have none"


def test_an_archive_without_a_training_folder_is_refused(tmp_path):
    found = message_of(tmp_path, folders(val=(4, 4), test=(4, 4)))
    assert found == "data/raw: contains test, val and no training folder; add train/"


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.6, 0.7), (0.1, 0.9), (0.7, 0.3)])
def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path, val, test):
    found = message_of(tmp_path, TWO_CLASSES, val=val, test=test)
    assert found == f"params.yaml: split: val {val} and test {test} leave nothing to train on; lower them"


def test_one_class_is_refused(tmp_path):
    found = message_of(tmp_path, of_class("cats", 5))
    assert found == "data/raw: contains one class, 'cats'; a classifier needs two, one folder each"


@pytest.mark.parametrize(("count", "words"), [(2, "2 usable pictures"), (1, "1 usable picture")])
def test_a_class_of_less_than_three_pictures_is_refused(tmp_path, count, words):
    found = message_of(tmp_path, {**of_class("cats", 5), **of_class("dogs", count, 9), "dogs/broken.png": b""})
    assert (
        found == f"data/raw: class 'dogs' has {words}, fewer than 3; "
        "add pictures or remove the class (1 does not decode, first 'dogs/broken.png': an empty file)"
    )


def test_a_class_of_three_pictures_has_one_in_each_split(tmp_path):
    data = split(tmp_path, {**of_class("cats", 3), **of_class("dogs", 30, 9)})
    assert sorted(row["split"] for row in rows(data / "manifest.csv") if row["label"] == "cats") == ["test", "train", "val"]


def test_no_picture_that_decodes_is_refused(tmp_path):
    found = message_of(tmp_path, {"cats/1.png": b"", "dogs/2.png": b""})
    assert found == "data/raw: no picture decodes (2 do not decode, first 'cats/1.png': an empty file); check the source"


def test_pictures_without_folders_are_refused(tmp_path):
    assert message_of(tmp_path, {"1.png": picture()}) == "data/raw: contains no folders of pictures; make one folder for each class"


def test_classes_may_be_called_like_splits_if_the_params_say_so(tmp_path):
    contents = {**of_class("train", 4), **of_class("val", 4, 9)}
    assert message_of(tmp_path, contents).startswith("data/raw: its root: the folders 'train', 'val' may be classes or splits; ")
    assert list(audit_of(split(tmp_path, contents, folders="none"))["classes"]) == ["train", "val"]


def test_pictures_without_a_label_are_counted_and_left_out_by_name(tmp_path, capsys):
    contents = {f"train/{name}": content for name, content in TWO_CLASSES.items()} | of_class("test", 2, 200)
    data = split(tmp_path, contents)
    assert capsys.readouterr().out.startswith("test: 2 files have no label and will be left out\n")
    assert reasons(data) == dict.fromkeys(["test/200.png", "test/201.png"], "not in a class folder")
    assert audit_of(data)["pictures"] == 20


def test_pictures_of_a_second_test_folder_are_counted_and_left_out_by_name(tmp_path, capsys):
    contents = {**folders(train=(10, 10), test=(2, 2), holdout=(1, 2)), "holdout/cats/broken.png": b""}
    data = split(tmp_path, contents, test="test")
    assert capsys.readouterr().out.startswith("holdout: 4 files will be left out, since split.val and split.test name other folders; ")
    assert set(reasons(data)) == {name for name in contents if name.startswith("holdout/")}
    assert set(reasons(data).values()) == {"in the folder holdout, which is neither val nor test"}
    assert counts_by_folder(data) == {("train", "train"): 16, ("train", "val"): 4, ("test", "test"): 4}


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
    assert found == f"data/raw: class 'dogs' has no picture in {absent}; add some, or remove the class"


def test_nothing_is_written_where_the_pictures_are_refused(tmp_path):
    message_of(tmp_path, of_class("cats", 5))
    assert not (tmp_path / "data").exists()


def write_params(tmp_path, **changed):
    lines = {
        "val": "0.2", "test": "0.2", "folders": "auto", "group": "null", "similarity": "0.99", "folders_up_to": "1000", "leak": "repair",
        **changed,
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text("seed: 0\nsplit:\n" + "".join(f"  {key}: {value}\n" for key, value in lines.items()))


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("similarity", "0", "0 is not above 0"),
        ("similarity", "1.01", "1.01 is not at most 1"),
        ("similarity", "high", "'high' is not a number"),
        ("leak", "ignore", "'ignore' is not 'repair' or 'fail'"),
        ("leak", "null", "null is not 'repair' or 'fail'"),
        ("folders", "all", "'all' is not 'auto' or 'none' and is not a mapping"),
    ],
)
def test_a_param_out_of_bounds_is_refused(tmp_path, key, value, fault):
    write_params(tmp_path, **{key: value})
    with pytest.raises(PipelineError) as caught:
        read_section("split", Params)
    assert str(caught.value) == f"params.yaml: split.{key}: {fault}"


def test_a_folder_of_a_split_that_there_is_not_is_named(tmp_path):
    write_params(tmp_path, folders="{exam: tset}")
    with pytest.raises(PipelineError) as caught:
        read_section("split", Params)
    assert str(caught.value) == "params.yaml: split.folders.exam: 'tset' is not 'train', 'val', 'test' or 'unlabelled'"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("similarity", "null", None),
        ("similarity", "1", 1),
        ("folders", "none", "none"),
        ("folders", "{exam: test}", {"exam": "test"}),
        ("group", "'p(.)'", "p(.)"),
        ("group", "{csv: a.csv, digest: null}", GroupTable(csv="a.csv", digest=None)),
    ],
)
def test_a_param_is_read_as_it_is_written(tmp_path, key, value, expected):
    write_params(tmp_path, **{key: value})
    assert getattr(read_section("split", Params), key) == expected


# Pictures that are there twice


@pytest.mark.parametrize("seed", range(5))
def test_what_belongs_together_is_in_one_split_whatever_the_seed(tmp_path, seed):
    twice = {f"cats/again {number}.bmp": picture(number, "BMP") for number in range(4)}
    alike = {f"dogs/{number} {kind}": encoded(photograph(number), kind) for number in range(3) for kind in ("PNG", "JPEG", "WEBP")}
    dealt = split_by_id(split(tmp_path, {**TWO_CLASSES, **twice, **alike}, seed=seed))
    together = [{f"cats/0{n}.png", f"cats/again {n}.bmp"} for n in range(4)]
    together += [{f"dogs/{n} {kind}" for kind in ("PNG", "JPEG", "WEBP")} for n in range(3)]
    assert [len({dealt[name] for name in names}) for names in together] == [1] * 7


def test_a_group_is_called_by_its_first_picture_in_the_manifest(tmp_path):
    data = split(tmp_path, {**TWO_CLASSES, "cats/again.bmp": picture(0, "BMP")})
    assert [row["image_id"] for row in rows(data / "manifest.csv") if row["group"] == "cats/00.png"] == ["cats/00.png", "cats/again.bmp"]


def test_pictures_that_are_there_twice_are_listed(tmp_path):
    data = split(tmp_path, {**TWO_CLASSES, "cats/again.bmp": picture(0, "BMP"), "cats/again.png": picture(0)})
    assert found_in(data) == [(["cats/00.png", "cats/again.bmp", "cats/again.png"], "the same picture 3 times")]


def test_pictures_that_look_alike_are_listed(tmp_path):
    data = split(tmp_path, {**TWO_CLASSES, "cats/p.jpg": encoded(photograph(0), "JPEG", quality=60), "cats/p.png": encoded(photograph(0))})
    assert found_in(data) == [(["cats/p.jpg", "cats/p.png"], "look alike")]


def alike_under_two_labels():
    return {**TWO_CLASSES, "cats/p.png": encoded(photograph(0)), "dogs/p.jpg": encoded(photograph(0), "JPEG", quality=60)}


def test_like_pictures_of_two_labels_are_listed(tmp_path):
    data = split(tmp_path, alike_under_two_labels())
    assert found_in(data) == [(["cats/p.png", "dogs/p.jpg"], "look alike, but have the labels cats and dogs")]


@pytest.mark.parametrize("seed", range(3))
def test_like_pictures_of_two_labels_are_kept_in_one_split(tmp_path, seed):
    dealt = split_by_id(split(tmp_path, alike_under_two_labels(), seed=seed))
    assert dealt["cats/p.png"] == dealt["dogs/p.jpg"]


def test_without_a_similarity_nothing_looks_alike(tmp_path):
    assert found_in(split(tmp_path, alike_under_two_labels(), similarity=None)) == []


def test_without_a_similarity_equal_pictures_are_still_in_one_split(tmp_path):
    data = split(tmp_path, {**TWO_CLASSES, "cats/again.png": picture(0)}, similarity=None)
    assert found_in(data) == [(["cats/00.png", "cats/again.png"], "the same picture 2 times")]


def test_a_class_of_one_picture_many_times_is_refused(tmp_path):
    found = message_of(tmp_path, {**of_class("cats", 5), **{f"dogs/{number}.png": picture(9) for number in range(7)}})
    assert (
        found == "class 'dogs' has 7 pictures in 1 group, too few for train, val, test; add pictures or remove the class"
        ", or change split.group or split.similarity"
    )


# Labels that contradict each other


CONFLICT = {**TWO_CLASSES, "cats/x.png": picture(99), "dogs/x.bmp": picture(99, "BMP"), "dogs/y.png": picture(99)}
CONFLICT_REASON = "one picture with the labels cats, dogs: 'cats/x.png', 'dogs/x.bmp', 'dogs/y.png'"


def test_one_picture_under_two_labels_is_left_out_with_the_reason(tmp_path):
    found = reasons(split(tmp_path, CONFLICT))
    assert found == dict.fromkeys(["cats/x.png", "dogs/x.bmp", "dogs/y.png"], CONFLICT_REASON)


def test_one_picture_under_two_labels_is_in_no_tree(tmp_path):
    assert sorted(split_by_id(split(tmp_path, CONFLICT))) == sorted(TWO_CLASSES)


def test_one_picture_under_two_labels_is_listed_once(tmp_path):
    assert found_in(split(tmp_path, CONFLICT)) == [(["cats/x.png", "dogs/x.bmp", "dogs/y.png"], CONFLICT_REASON)]


def test_one_picture_under_two_labels_in_two_given_splits_is_left_out_of_both(tmp_path):
    contents = {**folders(train=(9, 9), test=(3, 3)), "train/cats/x.png": picture(99), "test/dogs/x.png": picture(99)}
    assert set(reasons(split(tmp_path, contents))) == {"train/cats/x.png", "test/dogs/x.png"}


def test_a_class_that_loses_all_its_pictures_to_conflicts_is_refused(tmp_path):
    found = message_of(tmp_path, {**TWO_CLASSES, **{f"fish/{number}.png": picture(number) for number in range(5)}})
    assert found == (
        "data/raw: class 'fish' has 0 usable pictures (5 more decode, but may not stay, because of labels or splits), fewer than 3; "
        "add pictures or remove the class"
    )


# Pictures in a split that was given and in another


def leaky(name, other, content=None, other_content=None):
    """Splits that were given, with one picture more in two of them."""
    return {**folders(train=(6, 6), val=(3, 3), test=(3, 3)), name: content or picture(99), other: other_content or picture(99)}


@pytest.mark.parametrize(("former", "latter"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_the_former_of_two_given_splits_loses_what_the_latter_has(tmp_path, former, latter):
    data = split(tmp_path, leaky(f"{former}/cats/x.png", f"{latter}/cats/y.png"))
    assert reasons(data) == {f"{former}/cats/x.png": f"the same picture as '{latter}/cats/y.png' in {latter}"}


def test_what_leaks_is_in_no_tree(tmp_path):
    names = files_below(split(tmp_path, leaky("train/cats/x.png", "test/cats/y.png")) / "splits")
    assert [name for name in names if name.endswith(("x.png", "y.png"))] == ["test/cats/y.png"]


def test_what_leaks_re_encoded_is_left_out(tmp_path):
    contents = leaky("train/cats/x.jpg", "test/cats/y.png", encoded(photograph(0), "JPEG", quality=60), encoded(photograph(0)))
    assert reasons(split(tmp_path, contents)) == {"train/cats/x.jpg": "looks like 'test/cats/y.png' in test"}


def test_a_leak_is_listed(tmp_path):
    data = split(tmp_path, leaky("train/cats/x.png", "test/cats/y.png"))
    assert found_in(data) == [(["train/cats/x.png", "test/cats/y.png"], "the same picture as 'test/cats/y.png' in test")]


def test_what_is_dealt_out_does_not_leak_into_the_folder_that_is_given(tmp_path):
    contents = {**folders(train=(9, 9), test=(3, 3)), "train/cats/x.png": picture(99), "test/cats/y.png": picture(99)}
    assert reasons(split(tmp_path, contents)) == {"train/cats/x.png": "the same picture as 'test/cats/y.png' in test"}


def test_a_folder_that_is_named_as_val_is_kept_from_what_is_dealt_to_test(tmp_path):
    contents = {**folders(train=(9, 9), val=(3, 3)), "train/cats/x.png": picture(99), "val/cats/y.png": picture(99)}
    assert reasons(split(tmp_path, contents, val="val")) == {"train/cats/x.png": "the same picture as 'val/cats/y.png' in val"}


def test_a_picture_of_a_group_in_test_is_left_out_of_train(tmp_path):
    contents = leaky("train/cats/p7 a.png", "test/cats/p7 b.png", picture(98))
    assert reasons(split(tmp_path, contents, group=r"p(\d) ")) == {
        "train/cats/p7 a.png": "in the same group as 'test/cats/p7 b.png' in test"
    }


def test_a_class_whose_training_pictures_all_leak_is_refused(tmp_path):
    contents = folders(train=(6, 0), test=(3, 3))
    contents |= {f"train/{name.removeprefix('test/')}": content for name, content in contents.items() if name.startswith("test/dogs/")}
    assert message_of(tmp_path, contents) == "data/raw: class 'dogs' has no picture in train; add some, or remove the class"


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        (
            leaky("train/cats/x.png", "test/cats/y.png"),
            "1 conflict of labels or splits, first: 'train/cats/x.png': the same picture as 'test/cats/y.png' in test",
        ),
        (CONFLICT, f"1 conflict of labels or splits, first: {CONFLICT_REASON}"),
        (
            {**CONFLICT, "cats/z.png": picture(98), "dogs/z.png": picture(98)},
            f"2 conflicts of labels or splits, first: {CONFLICT_REASON}",
        ),
    ],
    ids=["a leak", "a label", "two labels"],
)
def test_conflicts_are_refused_where_they_are_not_to_be_repaired(tmp_path, contents, line):
    found = message_of(tmp_path, contents, leak="fail")
    assert found == f"data/raw: {line}; correct the source, or set split.leak: repair"


@pytest.mark.parametrize("contents", [TWO_CLASSES, {**TWO_CLASSES, "cats/again.png": picture(0)}, alike_under_two_labels()])
def test_what_can_be_kept_in_one_split_is_not_refused(tmp_path, contents):
    assert len(split_by_id(split(tmp_path, contents, leak="fail"))) == len(contents)


# Groups that the user names


PATIENTS = {f"{label}/p{n // 4} {n}.png": picture(n + 50 * (label == "dogs")) for label in ("cats", "dogs") for n in range(24)}


def patients_in(data):
    found = {}
    for image_id, name in split_by_id(data).items():
        found.setdefault(image_id.split("/")[1].split()[0], set()).add(name)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_group_of_the_user_is_in_one_split(tmp_path, seed):
    data = split(tmp_path, PATIENTS, group=r"/(p\d+)", seed=seed)
    assert {patient: len(splits) for patient, splits in patients_in(data).items()} == {f"p{n}": 1 for n in range(6)}


def test_groups_may_stand_in_a_table(tmp_path):
    table = "image_id,group\n" + "".join(f"{name},{name.split('/')[1].split()[0]}\n" for name in PATIENTS)
    (tmp_path / "patients.csv").write_text(table)
    group = GroupTable(csv="patients.csv", digest=hashlib.sha256(table.encode()).hexdigest())
    assert {len(splits) for splits in patients_in(split(tmp_path, PATIENTS, group=group)).values()} == {1}


def test_a_group_takes_in_what_looks_like_one_of_its_pictures(tmp_path):
    alike = {"cats/p0 x.png": encoded(photograph(0)), "cats/other.jpg": encoded(photograph(0), "JPEG")}
    group_of = {row["image_id"]: row["group"] for row in rows(split(tmp_path, {**PATIENTS, **alike}, group=r"/(p\d+)") / "manifest.csv")}
    assert group_of["cats/other.jpg"] == group_of["dogs/p0 0.png"] == "cats/other.jpg"


def test_a_rule_for_groups_that_finds_nothing_is_refused(tmp_path):
    assert message_of(tmp_path, TWO_CLASSES, group="patient(.)") == (
        "params.yaml: split.group: 'patient(.)' matches no path, such as 'cats/00.png'; correct it, or set null"
    )


def test_too_few_groups_are_refused(tmp_path):
    assert message_of(tmp_path, TWO_CLASSES, group="([01])[0-9].png") == (
        "class 'cats' has 10 pictures in 1 group, too few for train, val, test; add pictures or remove the class"
        ", or change split.group or split.similarity"
    )


# Pictures that are odd


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(7), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("name", "content", "kind", "detail"),
    [
        ("flat.png", encoded(Image.new("RGB", (12, 8), (1, 2, 3))), "one_colour", "shows a single colour"),
        ("x.jpg", picture(99), "wrong_suffix", "is PNG, despite its suffix"),
        ("x.png", deep_picture(9), "converted", "scaled from 16 bits or more to 8"),
        ("x.jpg", encoded(photograph(7).convert("CMYK"), "JPEG"), "converted", "converted from CMYK to RGB"),
        ("x.jpg", turned(), "converted", "rotated upright by its EXIF orientation"),
        ("x.png", encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 4))), "converted", "transparent pixels made white"),
        (
            "x.gif",
            encoded(photograph(7), "GIF", save_all=True, append_images=[photograph(8)]),
            "converted",
            "reduced to its first frame",
        ),
    ],
    ids=["one colour", "suffix", "16 bits", "CMYK", "turned", "transparent", "animated"],
)
def test_what_is_odd_is_kept_and_named(tmp_path, name, content, kind, detail):
    data = split(tmp_path, {**TWO_CLASSES, f"cats/{name}": content})
    assert f"cats/{name}" in split_by_id(data)
    assert ([f"cats/{name}"], detail) in found_in(data, kind)


def test_a_folder_that_mirrors_its_class_is_kept_and_warned_of(tmp_path, capsys):
    data = split(tmp_path, {**TWO_CLASSES, **{f"cats/small/{number:02d}.png": picture(number + 70) for number in range(4)}})
    detail = "folder 'cats/small' contains 4 pictures with the names of others; remove it if a program added it"
    assert found_in(data, "mirror") == [([f"cats/small/{number:02d}.png" for number in range(4)], detail)]
    assert f"warning: data/raw: {detail}" in capsys.readouterr().out


# Names


ODD_NAMES = [
    "a\nb.png", "a\rb.png", "a\tb.png", "\"'.png", "<script>alert(1).png", "a<b>&amp;.png", "\U0001f408\u200d\u2b1b.png", "-rf.png",
    "--help",
    "trailing dot.", "trailing space ", " leading space.png", "a. .png", "a,b;c.png", "$(x)`y`.png", "*?.png", "%2e%2e.png", "CON.png",
    "\u202egnp.exe.png", "\u00e9.png", "e\u0301.png", "~2.png", "a~2.png", "A.PNG", "a.png", "=1+1.png", "{{ 1 }}.png", "a" * 251 + ".png",
    "\u732b" * 83 + ".bmp", "b" * 251 + ".gif", "b" * 251 + ".GIF", "c" * 255, "c" * 254 + "C", "in/b" * 60 + ".png",
]  # fmt: skip


@pytest.fixture
def odd(tmp_path):
    """Pictures with odd names, each of another content, some of which lie in classes with odd names; and the outs."""
    contents = {f"cats/{name}": picture(number) for number, name in enumerate(ODD_NAMES)}
    contents |= {
        f"{label}/{n}.png": picture(n + 100 + 10 * k) for k, label in enumerate(("-\n<b>", "d. ", "\u732b" * 85)) for n in range(3)
    }
    return contents, split(tmp_path, contents)


def test_odd_names_are_in_the_manifest(odd):
    contents, data = odd
    assert sorted(split_by_id(data)) == sorted(contents)


def test_odd_names_lead_to_their_pictures(odd):
    contents, data = odd
    for row in rows(data / "manifest.csv"):
        with (
            Image.open(data / "splits" / row["split"] / row["path"]) as image,
            Image.open(io.BytesIO(contents[row["image_id"]])) as expected,
        ):
            assert image.tobytes() == expected.tobytes()


def test_odd_names_take_no_others_place(odd):
    contents, data = odd
    assert len(files_below(data / "splits")) == len(contents)


def test_image_folder_sees_odd_names(odd):
    contents, data = odd
    assert sum(len(ImageFolder(data / "splits" / name)) for name in SPLITS) == len(contents)


def test_odd_names_are_in_the_lists(tmp_path):
    contents = {**TWO_CLASSES, **{f"cats/{name}": b"no" for name in ODD_NAMES}}
    assert set(reasons(split(tmp_path, contents))) == {f"cats/{name}" for name in ODD_NAMES}


def test_odd_names_are_in_the_audit(tmp_path):
    flat = encoded(Image.new("RGB", (12, 8)))
    contents = {**TWO_CLASSES, **{f"cats/{name}": flat for name in ODD_NAMES}}
    assert {image_ids[0] for image_ids, _ in found_in(split(tmp_path, contents), "one_colour")} == {f"cats/{name}" for name in ODD_NAMES}
