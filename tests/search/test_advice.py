"""The favourite is the simplest that none is shown to beat; the distance is the fraction of errors that pretraining leaves."""

import numpy as np
import pytest

from pipeline.pictures.manifest import Manifest, Picture
from pipeline.search.advice import RULE_OF_THUMB, describe_data, distance, find_favourite
from pipeline.search.probing import Sample

NOISE = np.random.default_rng(0).normal(0, 0.3, 200)


def test_the_simplest_stays_the_favourite_where_no_other_is_shown_to_be_better():
    favourite, (_, second) = find_favourite({"frozen": 0.5 + NOISE, "partial": 0.49 + NOISE[::-1]}, 0.95, 0)
    assert favourite == "frozen"
    assert second.rival == "frozen"
    assert not second.is_better
    assert second.interval[0] < second.difference < second.interval[1]


def test_another_takes_its_place_where_the_paired_difference_is_shown():
    losses = {"frozen": 0.5 + NOISE, "partial": 0.3 + NOISE + 0.1 * NOISE[::-1], "finetuned": 0.29 + NOISE[::-1]}
    favourite, (first, second, third) = find_favourite(losses, 0.95, 0)
    assert favourite == "partial"
    assert (first.rival, second.rival, third.rival) == (None, "frozen", "partial")
    assert (second.is_better, third.is_better) == (True, False)
    assert second.difference == pytest.approx(-0.2 + 0.1 * NOISE.mean())


def test_a_worse_one_is_not_better_however_surely_it_differs():
    assert find_favourite({"frozen": 0.1 + 0.1 * NOISE, "finetuned": 0.9 + 0.1 * NOISE[::-1]}, 0.95, 0)[0] == "frozen"


def test_losses_that_do_not_differ_leave_the_simplest():
    favourite, (_, second) = find_favourite({"frozen": NOISE, "partial": NOISE.copy()}, 0.95, 0)
    assert favourite == "frozen"
    assert second.difference == 0


@pytest.mark.parametrize(
    ("pretrained", "untrained", "expected"),
    [([0, 0, 0, 1], [1, 1, 1, 1], 0.25), ([0, 0, 0, 0], [1, 0, 0, 0], 0), ([1, 1, 0, 0], [1, 0, 0, 0], 1), ([0, 0], [0, 0], 1)],
)
def test_the_distance_is_the_share_of_errors_that_training_did_not_take_away(pretrained, untrained, expected):
    assert distance(np.array(pretrained, bool), np.array(untrained, bool)) == expected


@pytest.mark.parametrize(
    ("per_class", "wrong", "key"),
    [(999, 49, (False, False)), (1000, 49, (True, False)), (10, 50, (False, True)), (1000, 100, (True, True))],
)
def test_the_rule_of_thumb_follows_from_the_amount_of_data_and_the_distance(per_class, wrong, key):
    manifest = Manifest([Picture(f"{name}{number}", "", "", name, "train", "", 8, 8) for name in "ab" for number in range(per_class)])
    facts = describe_data(Sample(manifest, [], []), "resnet18", np.arange(100) < wrong, np.ones(100, bool))
    assert (facts["is_much"], facts["distance"]["is_far"]) == key
    assert (facts["a_class"], facts["distance"]["remaining"], facts["sketch"]) == (per_class, wrong / 100, RULE_OF_THUMB[key])
