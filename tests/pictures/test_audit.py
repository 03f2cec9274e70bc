"""The data at a glance: counts by hand, whole messages where there is too little to learn from, thumbnails that are pictures."""

import base64
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.pictures import audit as room
from pipeline.pictures.audit import (
    KINDS,
    Finding,
    check_classes,
    check_every_class_everywhere,
    draw_thumbnails,
    quarantine_rows,
    summarise_audit,
)
from pipeline.pictures.images import thumbnail_url
from pipeline.pictures.inspection import Inspection
from pipeline.pictures.manifest import Picture
from pipeline.sources.layout import ClassFile

GOOD, CUT = Inspection("0"), Inspection("0", fault="cut")


def check(good, broken=(), apart=()):
    """Check classes by the names of their files: what is apart decodes, but may not stay."""
    inspected = {**dict.fromkeys((*good, *apart), GOOD), **dict.fromkeys(broken, CUT)}
    entries = [ClassFile(name, name.split("/")[0], name.split("/")[1], None) for name in sorted(inspected)]
    check_classes(entries, inspected, {*broken, *apart})


def message_of(*arguments):
    with pytest.raises(PipelineError) as caught:
        check(*arguments)
    return str(caught.value)


def files(label, count, suffix=".png"):
    return [f"{label}/{number}{suffix}" for number in range(count)]


CATS = files("cats", 3)


def test_two_classes_of_three_pictures_are_enough():
    check(CATS + files("dogs", 3))


def test_a_folder_without_one_pictures_name_is_no_class():
    check(CATS + files("dogs", 3), files("notes", 2, ".txt"))


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".gif"])
def test_a_class_of_broken_pictures_is_a_class(suffix):
    assert message_of(CATS + files("dogs", 3), files("fish", 1, suffix)) == (
        "data/raw.zip: class 'fish' has 0 pictures that decode, fewer than 3; add pictures or take the class out "
        f"(1 does not decode, first 'fish/0{suffix}': cut)"
    )


def test_where_nothing_decodes_the_first_is_named():
    found = message_of([], files("cats", 2) + files("dogs", 1))
    assert found == "data/raw.zip: not one picture decodes (3 do not decode, first 'cats/0.png': cut); look at the source"


def test_where_there_are_no_pictures_at_all_none_is_named():
    assert message_of([], files("notes", 2, ".txt")) == "data/raw.zip: not one picture decodes; look at the source"


@pytest.mark.parametrize("rest", [[], files("notes", 1, ".txt")])
def test_one_class_is_refused(rest):
    assert message_of(CATS, rest) == "data/raw.zip: holds one class, 'cats'; a classifier needs two: one folder each"


@pytest.mark.parametrize(
    ("good", "apart", "words"),
    [
        (2, 0, "2 pictures that decode"),
        (1, 0, "1 picture that decodes"),
        (2, 4, "2 pictures that decode and may stay (4 may not, by their labels or splits)"),
        (1, 1, "1 picture that decodes and may stay (1 may not, by their labels or splits)"),
        (0, 5, "0 pictures that decode and may stay (5 may not, by their labels or splits)"),
    ],
)
def test_a_class_of_fewer_than_three_pictures_is_refused(good, apart, words):
    dogs = files("dogs", good + apart)
    found = message_of(CATS + dogs[:good], [], dogs[good:])
    assert found == f"data/raw.zip: class 'dogs' has {words}, fewer than 3; add pictures or take the class out"


def test_what_may_not_stay_is_of_that_class_alone():
    found = message_of([*CATS, *files("dogs", 2)], [], ["cats/9.png"])
    assert found == "data/raw.zip: class 'dogs' has 2 pictures that decode, fewer than 3; add pictures or take the class out"


def test_what_is_broken_is_of_that_class_alone():
    found = message_of([*CATS, *files("dogs", 2)], ["cats/9.png"])
    assert found == "data/raw.zip: class 'dogs' has 2 pictures that decode, fewer than 3; add pictures or take the class out"


def test_where_no_picture_may_stay_a_class_is_named():
    assert message_of([], [], ["cats/1.png", "dogs/1.png"]) == (
        "data/raw.zip: class 'cats' has 0 pictures that decode and may stay (1 may not, by their labels or splits), fewer than 3; "
        "add pictures or take the class out"
    )


def picture(label, split, width=8, height=6):
    return Picture(f"{label}/{split}", "", "", label, split, "", width, height)


EVERYWHERE = [picture(label, split) for label in ("cats", "dogs") for split in ("train", "val", "test")]


def test_every_class_in_every_split_is_enough():
    check_every_class_everywhere(EVERYWHERE)


@pytest.mark.parametrize("absent", EVERYWHERE, ids=lambda absent: absent.image_id)
def test_a_class_absent_from_a_split_is_refused(absent):
    with pytest.raises(PipelineError) as caught:
        check_every_class_everywhere([picture for picture in EVERYWHERE if picture != absent])
    assert str(caught.value) == (f"data/raw.zip: class {absent.label!r} has no picture in {absent.split}; add some, or take the class out")


def test_what_was_left_out_is_listed_by_its_name():
    found = [Finding("broken", ("b",), "cut", ("b",)), Finding("label_conflict", ("c", "a"), "two", ("c", "a")), Finding("x", ("d",), "y")]
    assert quarantine_rows(found) == [
        {"image_id": "a", "reason": "two"}, {"image_id": "b", "reason": "cut"}, {"image_id": "c", "reason": "two"},
    ]  # fmt: skip


def test_pictures_are_counted():
    assert summarise_audit(EVERYWHERE, [], {})["pictures"] == 6


def test_pictures_that_were_left_out_are_counted():
    found = [
        Finding("label_conflict", ("a", "b"), "", ("a", "b")),
        Finding("leak", ("c", "d"), "", ("c",)),
        Finding("one_colour", ("e",), ""),
    ]
    assert summarise_audit(EVERYWHERE, found, {})["quarantined"] == 3


def test_the_median_of_the_sizes_is_told():
    sizes = [(1, 10), (2, 20), (9, 90), (4, 10)]
    found = summarise_audit([picture("cats", "train", *size) for size in sizes], [], {})
    assert (found["median_width"], found["median_height"]) == (3, 15)  # (2 + 4) / 2, (10 + 20) / 2


def test_pictures_are_counted_by_class_and_split():
    pictures = [picture("dogs", "val"), picture("cats", "train"), picture("cats", "train")]
    assert summarise_audit(pictures, [], {})["classes"] == {
        "cats": {"train": 2, "val": 0, "test": 0}, "dogs": {"train": 0, "val": 1, "test": 0},
    }  # fmt: skip


def test_findings_are_counted_by_their_kind_and_none_is_0():
    found = summarise_audit(EVERYWHERE, [Finding("broken", ("a",), ""), Finding("leak", ("b",), ""), Finding("broken", ("c",), "")], {})[
        "found"
    ]
    assert found == {**dict.fromkeys(KINDS, 0), "broken": 2, "leak": 1}


def test_findings_are_told_in_full():
    found = Finding("leak", ("a", "b"), "looks like 'b' in test", ("a",))
    assert summarise_audit(EVERYWHERE, [found], {})["findings"] == [
        {
            "kind": "leak", "image_ids": ("a", "b"), "detail": "looks like 'b' in test", "left_out": ("a",),
            "sentence": "'a': looks like 'b' in test",
        }
    ]  # fmt: skip


def test_thumbnails_are_passed_on():
    assert summarise_audit(EVERYWHERE, [], {"a": "data:"})["thumbnails"] == {"a": "data:"}


def png(width=200, height=100):
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()


def drawn(url):
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)))


def test_a_thumbnail_is_a_jpeg_in_a_data_url():
    assert drawn(thumbnail_url(png())).format == "JPEG"


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (96, 48)), ((96, 300), (31, 96)), ((40, 30), (40, 30)), ((1, 1), (1, 1))])
def test_a_thumbnail_has_96_pixels_at_the_most_and_its_shape(size, expected):
    assert drawn(thumbnail_url(png(*size))).size == expected


@pytest.fixture
def drawn_names():
    """The names that are drawn of some findings."""

    def draw(*findings):
        with zipfile.ZipFile(io.BytesIO(), "w") as archive:
            for name in {name for finding in findings for name in finding.image_ids}:
                archive.writestr(name, png(4, 4))
            return list(draw_thumbnails(archive, findings))

    return draw


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"misplaced", "broken"}))
def test_the_pictures_of_a_finding_are_drawn(kind, drawn_names):
    assert drawn_names(Finding(kind, ("b", "a"), "")) == ["a", "b"]


@pytest.mark.parametrize("kind", ["misplaced", "broken"])
def test_what_cannot_be_drawn_is_not(kind):
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        assert draw_thumbnails(archive, [Finding(kind, ("a",), "")]) == {}


def test_the_first_findings_of_each_kind_are_drawn(drawn_names, monkeypatch):
    monkeypatch.setattr(room, "SHOWN_FINDINGS", 2)
    found = [Finding(kind, (f"{kind} {number}",), "") for kind in ("one_colour", "converted") for number in range(3)]
    assert drawn_names(*found) == ["converted 0", "converted 1", "one_colour 0", "one_colour 1"]


def test_the_first_pictures_of_each_finding_are_drawn(drawn_names):
    assert drawn_names(Finding("exact_duplicate", tuple("abcdefg"), "")) == ["a", "b", "c", "d"]


def test_a_picture_of_two_findings_is_drawn_once(drawn_names):
    assert drawn_names(Finding("one_colour", ("a",), ""), Finding("converted", ("a",), "")) == ["a"]
