"""Intervals and paired tests against values worked by hand, a simulation and scipy's binomial test."""

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.evaluation import statistics
from pipeline.evaluation.statistics import bootstrap_interval, mcnemar_p, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # with z = 1.959964: (right + z²/2 ± z √(right · wrong / count + z²/4)) / (count + z²)
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilsons_interval_is_the_one_worked_by_hand(right, count, low, high):
    assert wilson_interval(right, count, 0.95) == pytest.approx((low, high), abs=1e-6)


def test_a_higher_confidence_widens_wilsons_interval():
    narrow, wide = wilson_interval(8, 10, 0.9), wilson_interval(8, 10, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = generator.normal(5, 1, 40)
        low, high = bootstrap_interval(lambda drawn, values=values: values[drawn].mean(), 40, 0.9, seed)
        covered += low <= 5 <= high
    assert 0.84 <= covered / 200 <= 0.95


def test_an_interval_of_the_mean_is_near_the_one_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0, 1, 400)
    half = 1.96 * values.std() / 20
    low, high = bootstrap_interval(lambda drawn: values[drawn].mean(), 400, 0.95, 0)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_a_bootstrap_of_one_seed_is_always_the_same():
    values = np.arange(20.0)
    assert bootstrap_interval(lambda d: values[d].mean(), 20, 0.95, 7) == bootstrap_interval(lambda d: values[d].mean(), 20, 0.95, 7)


def test_an_array_statistic_has_the_intervals_of_its_parts():
    values = np.random.default_rng(0).normal(size=(30, 2))
    low, high = bootstrap_interval(lambda drawn: values[drawn].mean(axis=0), 30, 0.95, 0)
    parts = [bootstrap_interval(lambda drawn, column=column: values[drawn, column].mean(), 30, 0.95, 0) for column in (0, 1)]
    np.testing.assert_allclose(np.array([low, high]).T, parts, rtol=1e-12)


def test_a_draw_in_which_the_statistic_is_not_defined_does_not_count():
    low, high = bootstrap_interval(lambda drawn: 3.0 if 0 in drawn else np.nan, 5, 0.95, 0)
    assert (low, high) == (3.0, 3.0)


def test_a_statistic_that_is_never_defined_has_no_interval():
    low, high = bootstrap_interval(lambda drawn: np.array([1.0, np.nan]), 5, 0.95, 0)
    np.testing.assert_array_equal([low, high], [[1.0, np.nan], [1.0, np.nan]])


def test_the_difference_is_second_minus_first():
    first, second = np.array([True, True, False, False]), np.array([True, True, True, False])
    assert paired_difference(first, second, 0.95, 0)[0] == 0.25


def test_equal_answers_differ_by_nothing():
    answers = np.array([True, False, True])
    assert paired_difference(answers, answers, 0.95, 0) == (0.0, (0.0, 0.0))


def test_pairs_that_all_differ_alike_leave_no_doubt():
    assert paired_difference(np.zeros(5, bool), np.ones(5, bool), 0.95, 0) == (1.0, (1.0, 1.0))


def test_the_interval_of_a_difference_holds_it():
    generator = np.random.default_rng(1)
    first, second = generator.random(100) < 0.6, generator.random(100) < 0.8
    difference, (low, high) = paired_difference(first, second, 0.95, 0)
    assert low < difference < high


def make_answers(only_first, only_second, both=10, neither=4):
    """The right answers of two models, with so many pictures on which they differ."""
    first = np.array([True] * only_first + [False] * only_second + [True] * both + [False] * neither)
    second = np.array([False] * only_first + [True] * only_second + [True] * both + [False] * neither)
    return first, second


def test_mcnemars_p_is_the_one_worked_by_hand():
    assert mcnemar_p(*make_answers(1, 5)) == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (2, 21), (12, 4), (40, 0)])
def test_mcnemars_p_is_the_binomial_tests(only_first, only_second):
    wanted = binomtest(only_second, only_first + only_second, 0.5).pvalue
    assert mcnemar_p(*make_answers(only_first, only_second)) == pytest.approx(wanted, rel=1e-9)


def test_answers_that_do_not_differ_have_a_p_of_one():
    assert mcnemar_p(*make_answers(0, 0)) == 1.0


def test_pictures_on_which_both_agree_do_not_change_mcnemars_p():
    assert mcnemar_p(*make_answers(1, 5)) == mcnemar_p(*make_answers(1, 5, both=500, neither=100))
