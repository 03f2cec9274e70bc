"""Parts of the audit that the stage's test does not reach: relations of leaks, sentences, thumbnails, too few pictures."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.pictures import audit
from pipeline.pictures.audit import (
    KINDS,
    Finding,
    check_classes,
    draw_thumbnails,
    duplicates,
    label_conflicts,
    leaks,
    mirrors,
    outliers,
    quarantine_rows,
    robust_scores,
    summarise_audit,
    ungrouped,
)
from pipeline.pictures.images import Traits, thumbnail_url
from pipeline.pictures.inspection import Groups, Inspection, PictureInfo
from pipeline.pictures.likeness import likeness_of
from pipeline.pictures.manifest import Picture
from pipeline.sources.layout import ClassFile

LIKENESS = likeness_of(Image.new("RGB", (8, 6)))
LABELS = {"a": "cats", "b": "cats", "c": "dogs"}


def info(pixels):
    return PictureInfo(8, 6, Traits("PNG", True, ()), pixels, LIKENESS, False, 100, 10)


# Findings


@pytest.mark.parametrize(("count", "ending"), [(4, "'03'"), (5, "'03' and 1 more"), (5000, "'03' and 4996 more")])
def test_of_many_equal_pictures_the_first_are_named(count, ending):
    names = [f"{number:02d}" for number in range(count)]
    labels = {name: "cats" if name == "00" else "dogs" for name in names}
    (found,) = label_conflicts([names], labels)
    assert found.detail == f"one picture with the labels cats, dogs: '00', '01', '02', {ending}"


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("cat/thumbs/{}.jpg", "cat/thumbs"),
        ("cat/thumbs/{}.webp", "cat/thumbs"),
        ("cat/@x/{}.jpg/small.jpg", "cat/@x"),
        ("@x/cat/{}.jpg", "@x"),
        ("@x/cat/{}.jpg/small.jpg", "@x"),
        ("cat/cat/{}.jpg", "cat/cat"),
    ],
)
def test_a_folder_that_mirrors_pictures_is_found(pattern, folder):
    pictures = [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(5)]
    mirror = [pattern.format(number) for number in range(3)]
    (found,) = mirrors([*mirror, *pictures])
    detail = f"folder {folder!r} contains 3 pictures with the names of others; remove it if a program added it"
    assert found == Finding("mirror", tuple(mirror), detail)


@pytest.mark.parametrize(
    "names",
    [
        ["cat/left/1.jpg", "cat/left/2.jpg", "cat/right/1.jpg", "cat/right/2.jpg"],
        ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"],
        ["train/cat/1.jpg", "train/cat/2.jpg", "val/cat/1.jpg", "val/cat/2.jpg"],
        ["cat/1.jpg", "cat/2.jpg", "cat/old/1.jpg", "cat/old/2.jpg", "cat/old/3.jpg", "cat/old/4.jpg"],  # two of four
        ["cat/1.jpg", "cat/old/1.jpg"],
    ],
)
def test_other_folders_mirror_nothing(names):
    assert list(mirrors(names)) == []


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (Finding("broken", ("a\nb",), "cut"), "'a\\nb': cut"),
        (Finding("near_duplicate", ("a", "b"), "look alike"), "'a', 'b': look alike"),
        (Finding("leak", ("a", "b"), "looks like 'b' in test"), "'a': looks like 'b' in test"),
        (
            Finding("exact_duplicate", tuple("abcdef"), "the same picture 6 times"),
            "'a', 'b', 'c', 'd' and 2 more: the same picture 6 times",
        ),
        (Finding("label_conflict", tuple("abcde"), "two labels: 'a', 'b' and 3 more"), "two labels: 'a', 'b' and 3 more"),
    ],
)
def test_a_sentence_names_the_pictures_that_the_detail_does_not(finding, expected):
    assert finding.sentence == expected


@pytest.mark.parametrize(("unused", "expected"), [({"b"}, [("a", "e")]), ({"a", "b"}, [])])
def test_only_pictures_that_are_used_are_duplicates(unused, expected):
    assert [finding.image_ids for finding in duplicates([["a", "b", "e"]], [], LABELS, unused)] == expected


@pytest.mark.parametrize("unused", ["a", "b"])
def test_a_pair_of_which_one_picture_is_left_out_is_no_pair(unused):
    assert [*duplicates([], [("a", "b")], LABELS, {unused})] == []


def test_a_picture_without_a_group_is_found_if_others_have_one():
    assert [*ungrouped("cab", {"b": "g"})] == [Finding("ungrouped", (name,), "has no group according to split.group") for name in "ac"]
    assert [*ungrouped("ab", {})] == []


# Unusual pictures


def info_of(**changed):
    return replace(info(""), **changed)


def unusual(**traits):
    """The kind and the picture of each finding about pictures with these traits, a list of values per trait."""
    pictures = [info_of(**dict(zip(traits, values, strict=True))) for values in zip(*traits.values(), strict=True)]
    return [(finding.kind, finding.image_ids[0]) for finding in outliers({f"{at:03d}": picture for at, picture in enumerate(pictures)})]


def test_a_robust_score_is_the_distance_from_the_median_by_its_own_median():
    # median 3, distances 2 1 0 1 97, their median 1
    assert robust_scores(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(0.6745 * np.array([-2, -1, 0, 1, 97]))


def test_where_most_values_are_equal_the_mean_distance_stands_in():
    assert robust_scores(np.array([7.0] * 9 + [17])) == pytest.approx([0] * 9 + [10 / (1 * (np.pi / 2) ** 0.5)])


def test_equal_values_have_the_score_0():
    assert robust_scores(np.full(4, 0.1)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "traits"),
    [
        ("unusual_brightness", {"brightness": [*range(100, 129), 250]}),
        ("unusual_sharpness", {"sharpness": [*range(30, 59), 0.1]}),
        ("unusual_size", {"width": [*range(500, 529), 20], "height": [*range(500, 529), 20]}),
    ],
)
def test_the_picture_that_differs_from_all_others_is_unusual(kind, traits):
    assert unusual(**traits) == [(kind, "029")]


def test_a_narrow_picture_of_the_usual_size_has_an_unusual_shape():
    assert unusual(width=[*range(100, 129), 10], height=[100] * 29 + [1150]) == [("unusual_aspect", "029")]


def test_ten_times_the_pixels_are_as_unusual_as_a_tenth():
    infos = {f"{number:03d}": info_of(width=width, height=100) for number, width in enumerate([*([90, 100, 111] * 10), 10, 1000])}
    details = [finding.detail for finding in outliers(infos) if finding.kind == "unusual_size"]
    assert sorted(details) == [
        "size 1,000; the median is 10,000 (robust z-score -14.9)",
        "size 100,000; the median is 10,000 (robust z-score +14.9)",
    ]


def test_the_20_most_unusual_of_many_pictures_are_listed():
    found = unusual(brightness=[*([100, 101, 102] * 40), *range(150, 180)])
    assert found == [("unusual_brightness", f"{number:03d}") for number in range(149, 129, -1)]


def test_few_pictures_show_nothing_unusual():
    assert unusual(brightness=[*range(100, 118), 250]) == []


# Leaks


def found_leaks(splits, joined=(), groups=None, pixels=None):
    """The leaks of pictures in splits: `joined` belong together, `pixels` says which are equal."""
    together = Groups(splits)
    for names in joined:
        together.join(names)
    return [*leaks(splits, together, groups or {}, {name: info((pixels or {}).get(name, name)) for name in splits})]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_equal_pictures_in_one_split_do_not_leak(split):
    assert found_leaks({"a": split, "b": split}, ["ab"], pixels={"a": "x", "b": "x"}) == []


@pytest.mark.parametrize("groups", [{}, {"a": "p"}, {"b": "p"}, {"a": "p", "b": "q"}])
def test_pictures_that_share_no_group_of_the_user_look_alike(groups):
    (found,) = found_leaks({"a": "train", "b": "test"}, ["ab"], groups)
    assert found.detail == "looks like 'b' in test"


def test_the_strongest_relation_is_named():
    splits = {"a": "train", "b": "test", "c": "test", "d": "val"}
    (found, _) = found_leaks(splits, ["abcd"], {"a": "p", "c": "p"}, {"a": "x", "d": "x"})
    assert found == Finding("leak", ("a", "d"), "the same picture as 'd' in val", ("a",))


def test_a_group_is_a_stronger_relation_than_likeness_and_of_equal_ones_the_first_name_counts():
    splits = {"a": "train", "c": "test", "b": "test", "d": "test"}
    assert found_leaks(splits, ["abcd"])[0].detail == "looks like 'b' in test"
    assert found_leaks(splits, ["abcd"], {"a": "p", "d": "p"})[0].detail == "in the same group as 'd' in test"


def test_a_picture_leaks_through_others_that_are_like_it():
    splits = {"a": "train", "b": "train", "c": "train", "d": "test"}
    assert [finding.left_out for finding in found_leaks(splits, ["ab", "bc", "cd"])] == [("a",), ("b",), ("c",)]


def test_half_of_a_large_group_leaks_into_the_other_half():
    names = [f"{number:05d}" for number in range(40_000)]  # comparing all pairs would take minutes
    found = found_leaks({name: ("train", "test")[number % 2] for number, name in enumerate(names)}, [names])
    assert {finding.image_ids for finding in found} == {(name, "00001") for name in names[::2]}


def test_train_and_val_both_lose_what_test_has():
    splits = {"a": "train", "b": "val", "c": "test"}
    assert [finding.left_out for finding in found_leaks(splits, ["abc"])] == [("a",), ("b",)]


# Whether enough is left


def message_of(good, broken=(), excluded=()):
    """The fault of classes, by the names of their files: excluded ones decode, but conflict. None if enough is left."""
    inspected = {**dict.fromkeys((*good, *excluded), Inspection("0")), **dict.fromkeys(broken, Inspection("0", fault="cut"))}
    entries = [ClassFile(name, *name.split("/"), None) for name in sorted(inspected)]
    try:
        check_classes(entries, inspected, {*broken, *excluded})
    except PipelineError as error:
        return str(error).removeprefix("data/raw: ")
    return None


def files(label, count, suffix=".png"):
    return [f"{label}/{number}{suffix}" for number in range(count)]


CATS = files("cats", 3)


def test_two_classes_of_three_pictures_are_enough():
    assert message_of(CATS + files("dogs", 3)) is None


def test_a_folder_without_the_name_of_a_picture_is_no_class():
    assert message_of(CATS + files("dogs", 3), files("notes", 2, ".txt")) is None
    assert message_of(CATS, files("notes", 1, ".txt")) == "contains one class, 'cats'; a classifier needs two, one folder each"
    assert message_of([], files("notes", 2, ".txt")) == "no picture decodes; check the source"


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".gif"])
def test_a_class_of_broken_pictures_is_a_class(suffix):
    found = message_of(CATS + files("dogs", 3), files("fish", 1, suffix))
    assert found.startswith("class 'fish' has 0 usable pictures, fewer than 3")
    assert found.endswith(f"(1 does not decode, first 'fish/0{suffix}': cut)")


@pytest.mark.parametrize(
    ("good", "excluded", "words"),
    [
        (2, 0, "2 usable pictures"),
        (1, 0, "1 usable picture"),
        (2, 4, "2 usable pictures (4 more decode, but may not stay, because of labels or splits)"),
        (1, 1, "1 usable picture (1 more decodes, but may not stay, because of labels or splits)"),
        (0, 5, "0 usable pictures (5 more decode, but may not stay, because of labels or splits)"),
    ],
)
def test_a_class_of_fewer_than_three_pictures_is_refused(good, excluded, words):
    dogs = files("dogs", good + excluded)
    assert message_of(CATS + dogs[:good], [], dogs[good:]) == f"class 'dogs' has {words}, fewer than 3; add pictures or remove the class"


@pytest.mark.parametrize("kind", ["broken", "excluded"])
def test_only_pictures_of_that_class_are_counted(kind):
    found = message_of([*CATS, *files("dogs", 2)], **{kind: ["cats/9.png"]})
    assert found == "class 'dogs' has 2 usable pictures, fewer than 3; add pictures or remove the class"


def test_if_every_picture_conflicts_a_class_is_named():
    assert message_of([], [], ["cats/1.png", "dogs/1.png"]).startswith("class 'cats' has 0 usable pictures (1 more decodes")


# Tables


def test_the_quarantine_is_sorted_by_name():
    found = [Finding("broken", ("b",), "cut", ("b",)), Finding("label_conflict", ("c", "a"), "two", ("c", "a")), Finding("x", ("d",), "y")]
    assert quarantine_rows(found) == [
        {"image_id": "a", "reason": "two"}, {"image_id": "b", "reason": "cut"}, {"image_id": "c", "reason": "two"},
    ]  # fmt: skip


def test_the_summary_has_medians_counts_of_each_class_and_kind_and_every_finding():
    sizes = [("cats", "train", 1, 10), ("cats", "train", 2, 20), ("dogs", "val", 9, 90), ("dogs", "test", 4, 10)]
    pictures = [Picture(str(number), "", "", label, split, "", *size) for number, (label, split, *size) in enumerate(sizes)]
    infos = {str(number): info_of(width=width, height=height) for number, (_, _, width, height) in enumerate(sizes)}
    leak = Finding("leak", ("a", "b"), "looks like 'b' in test", ("a",))
    summary = summarise_audit(pictures, infos, [leak, Finding("leak", ("c", "b"), "…", ("c",))], {"a": "data:"})
    assert (summary["pictures"], summary["quarantined"], summary["thumbnails"]) == (4, 2, {"a": "data:"})
    assert (summary["median_width"], summary["median_height"]) == (3, 15)  # (2 + 4) / 2, (10 + 20) / 2
    assert summary["traits"]["size"]["deciles"][::5] == [10, 40, 810]  # 1 x 10, (2 x 20 + 4 x 10) / 2, 9 x 90
    assert (summary["traits"]["aspect"]["median"], summary["traits"]["aspect"]["mad"]) == (0.1, 0)  # 0.1, 0.1, 0.1, 0.4
    assert summary["classes"] == {"cats": {"train": 2, "val": 0, "test": 0}, "dogs": {"train": 0, "val": 1, "test": 1}}
    assert {kind: facts["count"] for kind, facts in summary["kinds"].items()} == {**dict.fromkeys(KINDS, 0), "leak": 2}
    assert summary["findings"][0] == {
        "kind": "leak", "image_ids": ("a", "b"), "detail": "looks like 'b' in test", "left_out": ("a",),
        "sentence": "'a': looks like 'b' in test",
    }  # fmt: skip


# Thumbnails


def png(width, height):
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (96, 48)), ((96, 300), (31, 96)), ((40, 30), (40, 30)), ((1, 1), (1, 1))])
def test_a_thumbnail_is_a_jpeg_of_at_most_96_pixels_in_its_shape(size, expected):
    content = base64.b64decode(thumbnail_url(png(*size)).removeprefix("data:image/jpeg;base64,"), validate=True)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("JPEG", expected)


UNDRAWN = ("missing", "unlabelled", "contradicted", "repeated", "misplaced", "spare", "broken")  # they may not decode


@pytest.fixture
def drawn_names(tmp_path):
    """The names of which thumbnails are drawn, by findings."""

    def draw(*findings):
        files = {name: tmp_path / name for finding in findings for name in finding.image_ids}
        for path in files.values():
            path.write_bytes(b"no" if findings[0].kind in UNDRAWN else png(4, 4))
        return list(draw_thumbnails(files, findings))

    return draw


@pytest.mark.parametrize("kind", KINDS)
def test_the_pictures_of_a_finding_are_drawn_if_they_decode(kind, drawn_names):
    assert drawn_names(Finding(kind, ("b", "a"), "")) == ([] if kind in UNDRAWN else ["a", "b"])


def test_the_first_findings_of_each_kind_are_drawn(drawn_names, monkeypatch):
    monkeypatch.setattr(audit, "_DRAWN_FINDINGS", 2)
    found = [Finding(kind, (f"{kind} {number}",), "") for kind in ("one_colour", "converted") for number in range(3)]
    assert drawn_names(*found) == ["converted 0", "converted 1", "one_colour 0", "one_colour 1"]


def test_the_first_pictures_of_a_finding_are_drawn_each_once(drawn_names):
    assert drawn_names(Finding("exact_duplicate", tuple("abcdefg"), ""), Finding("converted", ("a",), "")) == ["a", "b", "c", "d"]
