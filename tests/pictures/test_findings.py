"""What is wrong or odd with a set of pictures: every kind in its exact words, and who is left out for it."""

import numpy as np
import pytest

from pipeline.pictures.audit import KINDS, Finding, broken, duplicates, label_conflicts, leaks, misplaced, oddities, ungrouped
from pipeline.pictures.images import Traits
from pipeline.pictures.inspection import Groups, Inspection, PictureInfo

PLAIN = Traits("PNG", True, ())
LABELS = {"a": "cats", "b": "cats", "c": "dogs", "d": "fish"}


def look(pixels="", traits=PLAIN, is_one_colour=False):
    return PictureInfo(8, 6, traits, pixels, 0, np.zeros((32, 32, 3), np.uint8), is_one_colour)


def test_files_in_no_class_are_left_out():
    assert [*misplaced(["b", "a"])] == [
        Finding("misplaced", ("a",), "not in the folder of a class", ("a",)),
        Finding("misplaced", ("b",), "not in the folder of a class", ("b",)),
    ]


def test_files_that_do_not_decode_are_left_out_with_the_fault():
    inspected = {"b": Inspection("0", fault="cut"), "c": Inspection("1", look()), "a": Inspection("2", fault="empty")}
    assert [*broken(inspected)] == [Finding("broken", ("a",), "empty", ("a",)), Finding("broken", ("b",), "cut", ("b",))]


def test_a_plain_picture_is_not_odd():
    assert [*oddities({"a.png": look()})] == []


def test_a_picture_of_one_colour_is_named():
    assert [*oddities({"a.png": look(is_one_colour=True)})] == [Finding("one_colour", ("a.png",), "shows one colour and nothing else")]


def test_a_picture_named_like_another_format_is_named():
    assert [*oddities({"a.jpg": look()})] == [Finding("wrong_suffix", ("a.jpg",), "is PNG, whatever its name says")]


def test_every_change_of_decoding_is_named():
    changed = look(traits=Traits("PNG", True, ("turned", "flattened")))
    assert [*oddities({"a.png": changed})] == [Finding("converted", ("a.png",), "turned"), Finding("converted", ("a.png",), "flattened")]


def test_what_is_odd_is_named_in_the_order_of_the_names():
    odd = look(is_one_colour=True)
    assert [finding.image_ids for finding in oddities({"b.png": odd, "a.png": odd})] == [("a.png",), ("b.png",)]


def test_one_picture_under_two_labels_is_left_out_under_both():
    detail = "one picture under the labels cats, dogs: 'a', 'b', 'c'"
    assert [*label_conflicts([["a", "b", "c"]], LABELS)] == [Finding("label_conflict", ("a", "b", "c"), detail, ("a", "b", "c"))]


def test_all_labels_of_a_picture_are_named_once_and_in_order():
    found = [*label_conflicts([["a", "b", "c", "d"]], LABELS)]
    assert found[0].detail == "one picture under the labels cats, dogs, fish: 'a', 'b', 'c', 'd'"


def test_equal_pictures_of_one_label_do_not_conflict():
    assert [*label_conflicts([["a", "b"]], LABELS)] == []


@pytest.mark.parametrize(("count", "ending"), [(4, "'03'"), (5, "'03' and 1 more"), (5000, "'03' and 4996 more")])
def test_of_many_equal_pictures_the_first_are_named(count, ending):
    names = [f"{number:02d}" for number in range(count)]
    labels = {name: "cats" if name == "00" else "dogs" for name in names}
    (found,) = label_conflicts([names], labels)
    assert found.detail == f"one picture under the labels cats, dogs: '00', '01', '02', {ending}"


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (Finding("broken", ("a",), "cut"), "'a': cut"),
        (Finding("broken", ("a\nb",), "cut"), "'a\\nb': cut"),
        (Finding("near_duplicate", ("a", "b"), "the two look alike"), "'a', 'b': the two look alike"),
        (Finding("leak", ("a", "b"), "looks like 'b' in test"), "'a': looks like 'b' in test"),
        (Finding("exact_duplicate", tuple("abcdef"), "one picture 6 times"), "'a', 'b', 'c', 'd' and 2 more: one picture 6 times"),
        (Finding("label_conflict", tuple("abcde"), "two labels: 'a', 'b' and 3 more"), "two labels: 'a', 'b' and 3 more"),
    ],
)
def test_a_sentence_names_the_pictures_where_the_detail_does_not(finding, expected):
    assert finding.sentence == expected


def test_equal_pictures_are_counted():
    assert [*duplicates([["a", "b"]], [], LABELS, set())] == [Finding("exact_duplicate", ("a", "b"), "one picture 2 times")]


def test_of_equal_pictures_those_that_are_used_count():
    assert [*duplicates([["a", "b", "e"]], [], LABELS, {"b"})] == [Finding("exact_duplicate", ("a", "e"), "one picture 2 times")]


def test_a_picture_whose_equals_are_left_out_is_no_duplicate():
    assert [*duplicates([["a", "b"]], [], LABELS, {"a"})] == []


def test_like_pictures_of_one_label_are_duplicates():
    assert [*duplicates([], [("a", "b")], LABELS, set())] == [Finding("near_duplicate", ("a", "b"), "the two look alike")]


def test_like_pictures_of_two_labels_are_named_with_both():
    found = Finding("near_label_conflict", ("b", "c"), "the two look alike, but are cats and dogs")
    assert [*duplicates([], [("b", "c")], LABELS, set())] == [found]


@pytest.mark.parametrize("unused", ["a", "b"])
def test_a_pair_of_which_one_is_left_out_is_no_pair(unused):
    assert [*duplicates([], [("a", "b")], LABELS, {unused})] == []


def found_leaks(splits, joined=(), groups=None, pixels=None):
    """The leaks of pictures in splits: `joined` belong together, `pixels` tells which are equal."""
    together = Groups(splits)
    for names in joined:
        together.join(names)
    return [*leaks(splits, together, groups or {}, {name: look((pixels or {}).get(name, name)) for name in splits})]


@pytest.mark.parametrize(
    ("splits", "left_out", "partner"),
    [
        ({"a": "train", "b": "test"}, "a", "'b' in test"),
        ({"a": "test", "b": "train"}, "b", "'a' in test"),
        ({"a": "train", "b": "val"}, "a", "'b' in val"),
        ({"a": "test", "b": "val"}, "b", "'a' in test"),
    ],
)
def test_the_former_split_loses_what_the_latter_has(splits, left_out, partner):
    (found,) = found_leaks(splits, ["ab"])
    assert (found.left_out, found.detail) == ((left_out,), f"looks like {partner}")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_is_twice_in_one_split_does_not_leak(split):
    assert found_leaks({"a": split, "b": split}, ["ab"], pixels={"a": "x", "b": "x"}) == []


def test_pictures_that_do_not_belong_together_do_not_leak():
    assert found_leaks({"a": "train", "b": "test"}) == []


def test_the_same_picture_is_called_so():
    (found,) = found_leaks({"a": "train", "b": "test"}, ["ab"], {"a": "p", "b": "p"}, {"a": "x", "b": "x"})
    assert found == Finding("leak", ("a", "b"), "the same picture as 'b' in test", ("a",))


def test_a_picture_of_the_same_group_is_called_so():
    (found,) = found_leaks({"a": "train", "b": "test"}, ["ab"], {"a": "p", "b": "p"})
    assert found == Finding("leak", ("a", "b"), "of the same group as 'b' in test", ("a",))


@pytest.mark.parametrize("groups", [{}, {"a": "p"}, {"b": "p"}, {"a": "p", "b": "q"}])
def test_pictures_that_share_no_group_of_the_user_look_alike(groups):
    (found,) = found_leaks({"a": "train", "b": "test"}, ["ab"], groups)
    assert found.detail == "looks like 'b' in test"


def test_the_strongest_relation_is_named():
    splits = {"a": "train", "b": "test", "c": "test", "d": "val"}
    (found, _) = found_leaks(splits, ["abcd"], {"a": "p", "c": "p"}, {"a": "x", "d": "x"})
    assert found.detail == "the same picture as 'd' in val"


def test_of_equal_relations_the_first_name_is_named():
    splits = {"a": "train", "c": "test", "b": "test"}
    assert found_leaks(splits, ["abc"])[0].detail == "looks like 'b' in test"


def test_a_picture_leaks_through_others_that_are_like_it():
    splits = {"a": "train", "b": "train", "c": "train", "d": "test"}
    assert [finding.left_out for finding in found_leaks(splits, ["ab", "bc", "cd"])] == [("a",), ("b",), ("c",)]


def test_train_and_val_both_lose_what_test_has():
    splits = {"a": "train", "b": "val", "c": "test"}
    assert [finding.left_out for finding in found_leaks(splits, ["abc"])] == [("a",), ("b",)]


def test_a_picture_without_a_group_is_named_where_others_have_one():
    assert [finding.image_ids for finding in ungrouped("cab", {"b": "g"})] == [("a",), ("c",)]


def test_where_nothing_has_a_group_no_picture_lacks_one():
    assert [*ungrouped("ab", {})] == []


def test_every_kind_that_is_found_has_its_title_and_fate():
    changed = look(traits=Traits("GIF", True, ("turned",)), is_one_colour=True)
    found = [
        *misplaced("a"), *broken({"a": Inspection("0", fault="cut")}), *oddities({"a.png": changed}), *label_conflicts(["ac"], LABELS),
        *duplicates(["ab"], ["ab", "bc"], LABELS, set()), *ungrouped("ab", {"a": "g"}), *found_leaks({"a": "train", "b": "test"}, ["ab"]),
    ]  # fmt: skip
    assert {finding.kind for finding in found} == set(KINDS)
