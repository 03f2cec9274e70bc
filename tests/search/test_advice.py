"""The favourite is the simplest that nothing is shown to beat; the distance is what training left of the errors."""

import numpy as np
import pytest

from pipeline.search.advice import SKETCH, corner, distance, favour

NOISE = np.random.default_rng(0).normal(0, 0.3, 200)


def test_the_simplest_stays_the_favourite_where_no_other_is_shown_to_be_better():
    favourite, (_, second) = favour({"frozen": 0.5 + NOISE, "partial": 0.49 + NOISE[::-1]}, 0.95, 0)
    assert favourite == "frozen"
    assert second.rival == "frozen"
    assert not second.is_better
    assert second.interval[0] < second.difference < second.interval[1]


def test_another_takes_its_place_where_the_paired_difference_is_shown():
    losses = {"frozen": 0.5 + NOISE, "partial": 0.3 + NOISE + 0.1 * NOISE[::-1], "finetuned": 0.29 + NOISE[::-1]}
    favourite, (first, second, third) = favour(losses, 0.95, 0)
    assert favourite == "partial"
    assert (first.rival, second.rival, third.rival) == (None, "frozen", "partial")
    assert (second.is_better, third.is_better) == (True, False)
    assert second.difference == pytest.approx(-0.2 + 0.1 * NOISE.mean())


def test_a_worse_one_is_not_better_however_surely_it_differs():
    assert favour({"frozen": 0.1 + 0.1 * NOISE, "finetuned": 0.9 + 0.1 * NOISE[::-1]}, 0.95, 0)[0] == "frozen"


def test_losses_that_do_not_differ_leave_the_simplest():
    favourite, (_, second) = favour({"frozen": NOISE, "partial": NOISE.copy()}, 0.95, 0)
    assert favourite == "frozen"
    assert second.difference == 0


@pytest.mark.parametrize(
    ("pretrained", "untrained", "expected"),
    [([0, 0, 0, 1], [1, 1, 1, 1], 0.25), ([0, 0, 0, 0], [1, 0, 0, 0], 0), ([1, 1, 0, 0], [1, 0, 0, 0], 1), ([0, 0], [0, 0], 1)],
)
def test_the_distance_is_the_share_of_errors_that_training_did_not_take_away(pretrained, untrained, expected):
    assert distance(np.array(pretrained, bool), np.array(untrained, bool)) == expected


@pytest.mark.parametrize(
    ("a_class", "far", "corners"), [(999, 0.49, (False, False)), (1000, 0.49, (True, False)), (10, 0.5, (False, True))]
)
def test_the_corner_of_the_sketch_follows_both(a_class, far, corners):
    assert corner(a_class, far) == SKETCH[corners]
