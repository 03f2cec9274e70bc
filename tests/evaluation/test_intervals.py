"""Intervals and paired tests against values worked by hand, Student's interval and scipy's binomial test."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from pipeline.evaluation import intervals
from pipeline.evaluation.intervals import (
    Bootstrap,
    f1_interval,
    logit_interval,
    mcnemar_p,
    mean_interval,
    mean_of_proportions_interval,
    paired_difference,
    percentile_interval,
    proportion_interval,
    wilson_interval,
)


def singles(count, seed):
    """A bootstrap of pictures that are a group each."""
    return Bootstrap(np.arange(count), seed)


def counts_of(bootstrap):
    """All of its samples: float (samples, pictures)."""
    return np.concatenate(list(bootstrap.counts()))


def proportions(*pairs):
    """`correct`, `labels` and `groups` of classes with so many hits among so many pictures."""
    correct = np.concatenate([np.arange(count) < hits for hits, count in pairs])
    return correct, np.repeat(np.arange(len(pairs)), [count for _, count in pairs]), np.arange(len(correct))


def difference_of(first, second):
    return paired_difference(first, second, singles(len(first), 0), 0.95)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # with z = 1.959964: (hits + z²/2 ± z √(hits · misses / count + z²/4)) / (count + z²)
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilsons_interval_is_the_one_worked_by_hand(hits, count, low, high):
    assert wilson_interval(hits / count, count, 0.95) == pytest.approx((low, high), abs=1e-6)


def test_a_higher_confidence_widens_wilsons_interval():
    narrow, wide = wilson_interval(8 / 10, 10, 0.9), wilson_interval(8 / 10, 10, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_proportion_of_0_pictures_has_no_interval():
    np.testing.assert_array_equal(proportion_interval(np.zeros(0, bool), np.zeros(0, int), 0.95), [np.nan, np.nan])


def test_the_mean_of_one_proportion_has_nearly_wilsons_interval():
    found = mean_of_proportions_interval(*proportions((180, 200)), 0.95)
    assert found == pytest.approx(wilson_interval(180 / 200, 200, 0.95), abs=0.002)


def test_perfect_proportions_have_an_interval():
    low, high = mean_of_proportions_interval(*proportions((20, 20), (30, 30)), 0.95)
    assert high == pytest.approx(1)
    assert 0.85 < low < 0.95


def test_the_interval_of_f1_is_that_of_the_jaccard_index():
    low, high = wilson_interval(8 / 10, 10, 0.95)
    numbers = np.arange(10)  # 8 hits, a miss and a false alarm
    found = f1_interval(numbers < 9, numbers > 0, numbers, 0.95)
    assert found == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_a_class_without_pictures_and_predictions_has_no_interval():
    np.testing.assert_array_equal(f1_interval(np.zeros(3, bool), np.zeros(3, bool), np.arange(3), 0.95), [np.nan, np.nan])


def test_each_sample_has_as_many_pictures_as_the_test():
    counts = counts_of(singles(30, 0))
    assert counts.shape == (intervals.RESAMPLES, 30)
    assert (counts.sum(axis=1) == 30).all()


def test_a_seed_always_draws_the_same_samples():
    np.testing.assert_array_equal(counts_of(singles(20, 7)), counts_of(singles(20, 7)))
    assert (counts_of(singles(20, 7)) != counts_of(singles(20, 8))).any()


def test_samples_in_blocks_are_the_same_and_a_block_is_bounded(monkeypatch):
    wanted = counts_of(singles(100, 0))
    monkeypatch.setattr(intervals, "_BLOCK", 100 * 250)
    blocks = list(singles(100, 0).counts())
    assert {len(block) for block in blocks[:-1]} == {248}
    np.testing.assert_array_equal(np.concatenate(blocks), wanted)


def test_the_interval_of_a_mean_is_near_students():
    values = np.random.default_rng(0).normal(0, 1, 400)
    found = mean_interval(values, singles(400, 0), 0.95)
    assert found == pytest.approx(ttest_1samp(values, 0).confidence_interval(0.95), abs=0.01)


def test_the_interval_of_a_mean_follows_the_skew():
    values = np.random.default_rng(0).exponential(1, 30)
    low, high = mean_interval(values, singles(30, 0), 0.95)
    assert high - values.mean() > 1.2 * (values.mean() - low)


def test_equal_values_have_no_interval():
    np.testing.assert_array_equal(mean_interval(np.ones(9), singles(9, 0), 0.95), [np.nan, np.nan])


def test_percentiles_cut_off_the_tails():
    assert percentile_interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))


def test_undefined_draws_are_left_out():
    assert percentile_interval(np.array([np.nan, *range(101)]), 0.9) == pytest.approx((5, 95))


@pytest.mark.parametrize("draws", [[1.0, 1.0, 1.0], [np.nan, np.nan], []])
def test_draws_that_do_not_vary_have_no_interval(draws):
    np.testing.assert_array_equal(percentile_interval(np.array(draws), 0.95), [np.nan, np.nan])


def test_an_areas_interval_is_symmetric_on_the_logit_scale():
    # logit(0.9) = 2.197225; its deviation is 0.01 / (0.9 · 0.1) = 0.111111, times 1.644854 is 0.182762: 1/(1 + exp(-2.014463)), …
    assert logit_interval(0.9, np.array([0.89, 0.91]), 0.9) == pytest.approx((0.882307, 0.915288), abs=1e-6)


@pytest.mark.parametrize(("value", "draws"), [(0.9, [0.9, 0.9]), (0.9, [np.nan]), (1.0, [0.9, 1.0]), (0.0, [0.0, 0.1])])
def test_an_area_without_variation_or_at_its_bound_has_no_interval(value, draws):
    np.testing.assert_array_equal(logit_interval(value, np.array(draws), 0.95), [np.nan, np.nan])


def test_the_difference_is_second_minus_first():
    first, second = np.array([True, True, False, False]), np.array([True, True, True, False])
    assert difference_of(first, second)[0] == 0.25


def test_models_that_never_differ_have_wilsons_bound():
    answers = np.array([True, False, True])
    most = wilson_interval(0 / 3, 3, 0.95)[1]
    assert difference_of(answers, answers) == (0.0, (-most, most))


def test_a_constant_difference_has_an_interval_of_one_value():
    assert difference_of(np.zeros(5, bool), np.ones(5, bool)) == (1.0, (1.0, 1.0))


def test_the_interval_of_a_difference_contains_it():
    generator = np.random.default_rng(1)
    first, second = generator.random(100) < 0.6, generator.random(100) < 0.8
    difference, (low, high) = difference_of(first, second)
    assert low < difference < high


def make_answers(only_first, only_second, both=10, neither=4):
    """Whether the answers of two models are correct, with the numbers of pictures on which one, both or neither are."""
    first = np.array([True] * only_first + [False] * only_second + [True] * both + [False] * neither)
    second = np.array([False] * only_first + [True] * only_second + [True] * both + [False] * neither)
    return first, second


def p_of(only_first, only_second, **others):
    first, second = make_answers(only_first, only_second, **others)
    return mcnemar_p(first, second, np.arange(len(first)))


def test_mcnemars_p_is_the_one_worked_by_hand():
    assert p_of(1, 5) == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (2, 21), (12, 4), (40, 0)])
def test_mcnemars_p_is_the_binomial_tests(only_first, only_second):
    wanted = binomtest(only_second, only_first + only_second, 0.5).pvalue
    assert p_of(only_first, only_second) == pytest.approx(wanted, rel=1e-9)


def test_answers_that_do_not_differ_have_a_p_of_one():
    assert p_of(0, 0) == 1.0


def test_pictures_on_which_both_models_agree_do_not_change_mcnemars_p():
    assert p_of(1, 5) == p_of(1, 5, both=500, neither=100)


@pytest.mark.parametrize(
    ("gains", "p"),
    [  # per group: the gains of its pictures. By hand: the share of the 2^groups choices of signs with so large a total.
        ([[1, 1], [1]], 1 / 2),  # totals of ±2 ± 1: 3, 1, -1, -3
        ([[1, 1, 1], [-1], [1]], 3 / 4),  # ±3 ± 1 ± 1: 5, 3, 3, 1 and their negatives; measured: 3
        ([[1, -1], [1], [1], [1]], 1 / 4),  # the first group has no gain
        ([[1] * 8] * 6, 2 / 64),
        ([[1, -1], [-1, 1]], 1.0),
    ],
)
def test_the_gains_of_a_group_have_one_sign_in_mcnemars_test(gains, p):
    groups = np.repeat(np.arange(len(gains)), [len(group) for group in gains])
    flat = np.concatenate(gains)
    assert mcnemar_p(flat < 0, flat > 0, groups) == pytest.approx(p)


def test_pictures_that_are_copies_of_one_give_the_interval_of_one_picture_each():
    correct, groups = np.repeat(np.arange(20) < 15, 10), np.repeat(np.arange(20), 10)
    low, high = proportion_interval(correct, groups, 0.95)
    alone = wilson_interval(0.75, 20, 0.95)
    assert (low, high) == pytest.approx(alone, abs=0.03)
    assert high - low > alone[1] - alone[0]  # the spread between 20 groups is itself uncertain


def test_one_group_is_one_draw():
    assert proportion_interval(np.array([True] * 7 + [False] * 3), np.zeros(10), 0.95) == wilson_interval(0.7, 1, 0.95)


def test_groups_without_a_mistake_do_not_count_as_single_pictures():
    low, _ = proportion_interval(np.ones(300, bool), np.repeat(np.arange(30), 10), 0.95)
    assert low < wilson_interval(1, 100, 0.95)[0]


def test_a_bootstrap_sample_contains_whole_groups():
    groups = np.array([5, 3, 5, 3, 3, 1])
    counts = counts_of(Bootstrap(groups, 0))
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert {sum(sample) for block in Bootstrap(groups, 0).group_counts() for sample in block} == {3}
