"""Dealing pictures: shares worked by hand, whole groups, the same result for the same seed in any order."""

import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.pictures import splits as partition

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
often = settings(derandomize=True, deadline=None, max_examples=60)


def labels(**counts):
    return {f"{label}/{number:03d}": label for label, count in counts.items() for number in range(count)}


def deal(pictures, fractions, seed):
    """Deal pictures out that belong to no group."""
    return partition.deal(pictures, {image_id: image_id for image_id in pictures}, fractions, seed)


def grouped(**sizes):
    """`a=[2, 1]`: a group of two pictures of class a, and one alone; their labels and their groups."""
    groups = {
        f"{label}/{group}/{number}": f"{label}{group}"
        for label, of_label in sizes.items()
        for group, size in enumerate(of_label)
        for number in range(size)
    }
    return {image_id: image_id[0] for image_id in groups}, groups


def counts_of(dealt, label):
    counts = Counter(split for image_id, split in dealt.items() if image_id.startswith(f"{label}/"))
    return [counts[split] for split in FRACTIONS]


def splits_by_group(dealt, groups):
    found = defaultdict(set)
    for image_id, split in dealt.items():
        found[groups[image_id]].add(split)
    return found


seeds = st.integers(0, 2**32)
fractions = st.tuples(*[st.integers(1, 20)] * 3).map(
    lambda weights: {split: weight / sum(weights) for split, weight in zip(FRACTIONS, weights, strict=True)}
)
singles = st.fixed_dictionaries({"a": st.integers(3, 60), "b": st.integers(3, 60)}).map(lambda counts: labels(**counts))
sizes = st.lists(st.integers(1, 30) | st.just(1), min_size=3, max_size=20)
one_class_groups = st.fixed_dictionaries({"a": sizes, "b": sizes}).map(lambda found: grouped(**found))


@st.composite
def mixed_groups(draw):
    """Pictures of two classes in groups that may hold both, and enough alone that none is too small."""
    mixed = draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=60))
    pictures, groups = labels(a=3, b=3), {image_id: image_id for image_id in labels(a=3, b=3)}
    for number, (label, group) in enumerate(mixed):
        pictures[f"{label}/mixed {number}"], groups[f"{label}/mixed {number}"] = label, str(group)
    return pictures, groups


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, [1, 1, 1]),  # 2.1, 0.45, 0.45: one each is the least
        (4, [2, 1, 1]),  # 2.8, 0.6, 0.6: floors 2, 0, 0, and the two left over go to train and val; test takes one of train's
        (7, [5, 1, 1]),  # 4.9, 1.05, 1.05
        (10, [7, 2, 1]),  # 7, 1.5, 1.5: test ends between the second picture and its middle, and val at the third
        (20, [14, 3, 3]),
        (100, [70, 15, 15]),
    ],
)
def test_each_split_gets_its_share(count, expected):
    assert counts_of(deal(labels(a=count), FRACTIONS, seed=0), "a") == expected


@pytest.mark.parametrize("count", range(7, 60, 4))
def test_a_share_is_met_to_within_one_picture(count):
    found = counts_of(deal(labels(a=count), FRACTIONS, seed=0), "a")
    assert all(abs(share - fraction * count) < 1 for share, fraction in zip(found, FRACTIONS.values(), strict=True))


def test_each_class_is_dealt_out_for_itself():
    dealt = deal(labels(a=20, b=100), FRACTIONS, seed=0)
    assert (counts_of(dealt, "a"), counts_of(dealt, "b")) == ([14, 3, 3], [70, 15, 15])


def test_every_picture_is_dealt_once():
    pictures = labels(a=11, b=5)
    assert sorted(deal(pictures, FRACTIONS, seed=0)) == sorted(pictures)


def test_the_order_of_the_listing_does_not_matter():
    pictures = labels(a=30, b=30)
    assert deal(pictures, FRACTIONS, seed=0) == deal(dict(reversed(pictures.items())), FRACTIONS, seed=0)


def test_another_seed_deals_otherwise():
    assert deal(labels(a=30), FRACTIONS, seed=0) != deal(labels(a=30), FRACTIONS, seed=1)


def test_the_pictures_are_shuffled():
    dealt = deal(labels(a=100), FRACTIONS, seed=0)
    assert [dealt[image_id] for image_id in sorted(dealt)] != ["train"] * 70 + ["val"] * 15 + ["test"] * 15


def test_two_classes_are_not_shuffled_alike():
    dealt = deal(labels(a=100, b=100), FRACTIONS, seed=0)
    assert [dealt[f"a/{n:03d}"] for n in range(100)] != [dealt[f"b/{n:03d}"] for n in range(100)]


def test_a_lone_split_takes_all():
    assert set(deal(labels(a=2), {"train": 1.0}, seed=0).values()) == {"train"}


def test_nothing_deals_out_to_nothing():
    assert deal({}, FRACTIONS, seed=0) == {}


@pytest.mark.parametrize(("count", "words"), [(1, "1 picture"), (2, "2 pictures")])
def test_a_class_smaller_than_the_splits_is_refused(count, words):
    with pytest.raises(PipelineError) as caught:
        deal(labels(a=9, b=count), FRACTIONS, seed=0)
    assert str(caught.value) == f"class 'b' has {words}, too few for train, val, test; add pictures or remove the class"


@pytest.mark.parametrize(("sizes", "words"), [([9], "9 pictures in 1 group"), ([1, 1], "2 pictures"), ([4, 1], "5 pictures in 2 groups")])
def test_a_class_of_fewer_groups_than_splits_is_refused(sizes, words):
    with pytest.raises(PipelineError) as caught:
        partition.deal(*grouped(a=[1] * 9, b=sizes), FRACTIONS, seed=0)
    more = ", or change split.group or split.similarity" * ("group" in words)
    assert str(caught.value) == f"class 'b' has {words}, too few for train, val, test; add pictures or remove the class{more}"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10, 10, 10], [10, 10, 10]),  # 21, 4.5, 4.5: each split must have one
        ([50, 1, 1], [50, 1, 1]),  # 36.4, 7.8, 7.8
        ([2, 2, 2, 8], [10, 2, 2]),  # 9.8, 2.1, 2.1
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_group_of_more_than_twice_a_smaller_share_is_in_train(sizes, expected, seed):
    assert counts_of(partition.deal(*grouped(a=sizes), FRACTIONS, seed), "a") == expected


def share_moved(before, after):
    return sum(after[image_id] != split for image_id, split in before.items()) / len(before)


@pytest.mark.parametrize("seed", range(5))
def test_one_percent_more_pictures_move_at_most_one_percent_of_the_others(seed):
    before = deal(labels(a=1000, b=1000), FRACTIONS, seed)
    more = {f"{label}/{number:03d}b": label for label in "ab" for number in range(10)}  # they sort between the others
    assert share_moved(before, deal({**labels(a=1000, b=1000), **more}, FRACTIONS, seed)) <= 0.01
    fewer = {image_id: label for number, (image_id, label) in enumerate(labels(a=1000, b=1000).items()) if number % 100}
    assert share_moved({image_id: before[image_id] for image_id in fewer}, deal(fewer, FRACTIONS, seed)) <= 0.01


@pytest.mark.parametrize("seed", range(5))
def test_no_test_picture_is_ever_in_train_while_a_folder_grows(seed):
    pictures = labels(a=200, b=40)
    first = deal(pictures, FRACTIONS, seed)
    for day in range(5):
        pictures |= {f"{label}/{day}/{number}": label for label, count in (("a", 20), ("b", 4)) for number in range(count)}
        later = deal(pictures, FRACTIONS, seed)
        assert not [image_id for image_id, split in first.items() if split == "test" and later[image_id] == "train"]


def test_a_group_keeps_its_split_while_it_grows():
    def dealt(size):
        pictures, groups = grouped(a=[size, *[3] * 40])
        return partition.deal(pictures, groups, FRACTIONS, 0, groups)["a/0/0"]

    assert len({dealt(size) for size in (1, 3, 5, 7)}) == 1


def test_a_lone_picture_fills_the_split_that_is_still_empty():
    # 2, 5, 2 are wanted: a group of four lies in val, which still lacks one, the other in train or test
    dealt = partition.deal(*grouped(a=[4, 4, 1]), {"train": 0.2, "val": 0.6, "test": 0.2}, seed=0)
    assert sorted(counts_of(dealt, "a")) == [1, 4, 4]


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_two_classes_that_leave_too_few_for_every_split_are_dealt_out_to_the_end(seed):
    groups = {"b1": "0", "b2": "0", "a1": "0", "a2": "1", "b3": "1", "b4": "2", "b5": "2", "b6": "2", "a3": "3"}
    pictures = {image_id: image_id[0] for image_id in groups}
    assert partition.deal(pictures, groups, {"train": 0.2, "val": 0.6, "test": 0.2}, seed).keys() == pictures.keys()


def test_the_order_in_which_python_keeps_sets_does_not_matter():
    code = (
        "from pipeline.pictures.splits import deal; "
        "groups = {f'{label}/{number}': f'{label}{number // 5}' for label in 'ab' for number in range(20)}; "
        "print(deal({name: name[0] for name in groups}, groups, {'train': 0.7, 'val': 0.15, 'test': 0.15}, 0))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("2", "3")  # these two keep the splits in different orders
    }
    assert len(found) == 1


@often
@given(mixed_groups(), fractions, seeds)
def test_every_picture_is_in_one_split(found, fractions, seed):
    dealt = partition.deal(*found, fractions, seed)
    assert dealt.keys() == found[0].keys()
    assert set(dealt.values()) <= set(fractions)


@often
@given(mixed_groups(), fractions, seeds)
def test_a_group_is_never_torn(found, fractions, seed):
    dealt = partition.deal(*found, fractions, seed)
    assert {len(splits) for splits in splits_by_group(dealt, found[1]).values()} == {1}


@often
@given(singles, fractions, seeds)
def test_where_nothing_is_grouped_shares_are_met_to_within_one_picture(pictures, fractions, seed):
    dealt = deal(pictures, fractions, seed)
    for label in "ab":
        count = sum(each == label for each in pictures.values())
        exact = [fraction * count for fraction in fractions.values()]
        if min(exact) >= 1:  # else one picture each comes first
            assert all(abs(share - wanted) < 1 + 1e-9 for share, wanted in zip(counts_of(dealt, label), exact, strict=True))


@often
@given(one_class_groups, fractions, seeds)
def test_every_class_is_in_every_split(found, fractions, seed):
    dealt = partition.deal(*found, fractions, seed)
    assert min(*counts_of(dealt, "a"), *counts_of(dealt, "b")) > 0


@often
@given(one_class_groups, fractions, seeds)
def test_no_split_is_above_its_share_by_the_largest_group(found, fractions, seed):
    dealt = partition.deal(*found, fractions, seed)
    for label in "ab":
        in_groups = Counter(group for image_id, group in found[1].items() if found[0][image_id] == label)
        for share, fraction in zip(counts_of(dealt, label), fractions.values(), strict=True):
            assert share < fraction * in_groups.total() + max(in_groups.values()) + 1e-9


@often
@given(mixed_groups(), fractions, seeds)
def test_the_order_of_any_listing_does_not_matter(found, fractions, seed):
    turned = [dict(reversed(each.items())) for each in found]
    assert partition.deal(*turned, fractions, seed) == partition.deal(*found, fractions, seed)


@often
@given(st.integers(30, 60), fractions, seeds)
def test_the_next_seed_deals_otherwise(count, fractions, seed):
    assert deal(labels(a=count), fractions, seed) != deal(labels(a=count), fractions, seed + 1)


def test_another_seed_deals_groups_of_one_size_otherwise():
    found = grouped(a=[5] * 20)
    assert partition.deal(*found, FRACTIONS, seed=0) != partition.deal(*found, FRACTIONS, seed=1)
