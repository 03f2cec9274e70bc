"""Dealing pictures out: shares worked by hand, the same for the same seed, whatever the order."""

from collections import Counter

import pytest

from pipeline.data.partition import deal
from pipeline.errors import PipelineError

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


def labels(**counts):
    return {f"{label}/{number:03d}": label for label, count in counts.items() for number in range(count)}


def counts_of(dealt, label):
    counts = Counter(split for image_id, split in dealt.items() if image_id.startswith(f"{label}/"))
    return [counts[split] for split in FRACTIONS]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, [1, 1, 1]),  # 2.1, 0.45, 0.45: one each is the least
        (4, [2, 1, 1]),  # 2.8, 0.6, 0.6: floors 2, 0, 0, and the two left over go to train and val; test takes one of train's
        (7, [5, 1, 1]),  # 4.9, 1.05, 1.05
        (10, [7, 2, 1]),  # 7, 1.5, 1.5: the first of two equal remainders
        (20, [14, 3, 3]),
        (100, [70, 15, 15]),
    ],
)
def test_each_split_gets_its_share(count, expected):
    assert counts_of(deal(labels(a=count), FRACTIONS, seed=0), "a") == expected


@pytest.mark.parametrize("count", range(7, 60))
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
    assert str(caught.value) == f"class 'b' has {words}, too few for train, val, test; add pictures or take it out"
