"""Permutation tests: the statistics agree with scipy's and scikit-learn's, and the p-values hold their level."""

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from pipeline.drift import permuting
from pipeline.drift.findings import compare
from pipeline.drift.reference import Reference, Sample

GENERATOR = np.random.default_rng(0)


def pool_of(old, new, old_groups=None, new_groups=None):
    groups = [np.arange(len(each)) if given is None else given for each, given in ((old, old_groups), (new, new_groups))]
    return permuting.make_pool((old, new), tuple(groups))


def test_the_distance_of_a_trait_is_that_of_scipy_also_with_equal_values():
    values = GENERATOR.integers(0, 9, 80).astype(float)
    labels = np.stack([GENERATOR.permutation(80) < 30 for _ in range(5)])
    expected = [ks_2samp(values[row], values[~row]).statistic for row in labels]
    assert permuting.ks_distances(labels, values) == pytest.approx(expected)


def test_the_auc_is_that_of_scikit_learn_within_folds_and_strata():
    scores, labels = GENERATOR.normal(size=(60, 1)).astype(np.float32), GENERATOR.random((1, 60)) < 0.4
    zeros = np.zeros(60, int)
    right, pairs = permuting._pair_sums(scores, labels, zeros, zeros)[0]
    assert right / pairs == pytest.approx(roc_auc_score(labels[0], scores[:, 0]))
    strata = np.arange(60) % 2
    right, pairs = permuting._pair_sums(scores, labels, zeros, strata)[0]
    parts = [
        (roc_auc_score(labels[0, rows], scores[rows, 0]), np.prod(np.bincount(labels[0, rows]))) for rows in (strata == 0, strata == 1)
    ]
    assert right / pairs == pytest.approx(np.average([auc for auc, _ in parts], weights=[count for _, count in parts]))


def test_the_distance_of_shares_is_zero_for_equal_shares_and_known_for_others():
    labels, classes = np.array([[True, True, False, False]]), np.array([0, 1, 0, 1])
    assert permuting.share_distances(labels, classes) == pytest.approx([0])
    # All of one class here and of the other there: gaps of 1 and -1, over shares of a half each.
    assert permuting.share_distances(np.array([[True, False, True, False]]), classes) == pytest.approx([2])


def test_the_gap_of_a_share_is_signed():
    labels = np.array([[True, True, False, False], [False, False, True, True]])
    assert permuting.share_gaps(labels, np.array([True, True, True, False])) == pytest.approx([0.5, -0.5])


def test_permutations_keep_groups_whole_and_their_number():
    pool = pool_of(np.zeros((12, 3)), np.zeros((6, 3)), np.arange(12) // 3, np.arange(6) // 3)
    labels = permuting.permute(pool, 50)
    assert np.array_equal(labels[0], pool.is_new)
    assert (labels.sum(axis=1) == 6).all()  # all groups have three pictures
    of_groups = [labels[:, pool.groups == group] for group in range(6)]
    assert all((each == each[:, :1]).all() for each in of_groups)
    assert len(np.unique(labels, axis=0)) > 5


def test_permutations_within_strata_keep_the_number_in_each():
    pool = pool_of(np.zeros((20, 3)), np.zeros((10, 3)))
    strata = np.arange(30) % 3
    labels = permuting.permute(pool, 20, strata=strata)
    counts = [labels[:, strata == stratum].sum(axis=1) for stratum in range(3)]
    assert all((each == each[0]).all() for each in counts)


def test_the_classifier_tells_shifted_pictures_apart_and_others_not():
    old, new = GENERATOR.normal(size=(150, 10)), GENERATOR.normal(size=(100, 10))
    same, shifted = pool_of(old, new), pool_of(old, new + 1.5)
    found = permuting.classify_domain(shifted, permuting.permute(shifted, 99))
    assert found.aucs[0] > 0.95
    assert found.p == pytest.approx(0.01)
    assert found.interval[0] > 0.9
    not_found = permuting.classify_domain(same, permuting.permute(same, 99))
    assert not_found.p > 0.05
    assert not_found.interval[0] < 0.5 < not_found.interval[1]


def test_the_interval_of_perfect_separation_stays_below_certainty():
    pool = pool_of(GENERATOR.normal(size=(60, 4)), GENERATOR.normal(size=(40, 4)) + 50)
    low, high = permuting.classify_domain(pool, permuting.permute(pool, 9)).interval
    assert 0.85 < low < 1
    assert high == 1


def test_other_shares_of_classes_are_no_difference_given_the_class():
    centres = np.array([[0] * 6, [4] * 6])
    old_classes, new_classes = np.arange(200) % 2, (np.arange(120) % 6 == 0).astype(int)
    old, new = (centres[each] + GENERATOR.normal(size=(len(each), 6)) for each in (old_classes, new_classes))
    pool = pool_of(old, new)
    classes = np.concatenate([old_classes, new_classes])[pool.order]
    assert permuting.classify_domain(pool, permuting.permute(pool, 99)).p <= 0.02
    assert permuting.classify_domain(pool, permuting.permute(pool, 99, strata=classes), classes).p > 0.05


def test_groups_that_look_alike_raise_no_false_alarm():
    def is_alarm(seed, grouped):
        generator = np.random.default_rng(seed)
        centres = generator.normal(size=(30, 5)) * 2
        groups = np.repeat(np.arange(30), 6)
        features = centres[groups] + generator.normal(size=(180, 5))
        old, new = groups < 20, groups >= 20
        given = (groups[old], groups[new]) if grouped else (np.arange(120), np.arange(60))
        pool = permuting.make_pool((features[old], features[new]), given)
        return permuting.classify_domain(pool, permuting.permute(pool, 39)).p <= 0.05

    assert sum(is_alarm(seed, True) for seed in range(60)) <= 8  # 3 are expected; 9 or more have a probability of 0.3 %
    assert sum(is_alarm(seed, False) for seed in range(20)) >= 10


def test_the_largest_of_several_statistics_holds_the_level():
    generator = np.random.default_rng(4)
    alarms = sum(
        permuting.global_p([generator.normal(size=100), generator.exponential(size=100), np.zeros(100)]) <= 0.05 for _ in range(2000)
    )
    assert 0.03 < alarms / 2000 < 0.07


def test_the_smallest_p_value_is_one_in_all_permutations():
    assert permuting.tail_p(np.array([9.0, *range(9)])) == pytest.approx(0.1)
    assert permuting.global_p([np.array([9.0, *range(9)]), np.arange(10) % 3]) == pytest.approx(0.1)


def test_the_interval_of_the_auc_contains_a_half_where_nothing_differs():
    generator, missed = np.random.default_rng(5), 0
    for seed in range(150):
        pool = permuting.make_pool(
            (generator.normal(size=(120, 24)), generator.normal(size=(100, 24))), (np.arange(120), np.arange(100)), seed
        )
        low, high = permuting.classify_domain(pool, permuting.permute(pool, 60)).interval
        missed += not low <= 0.5 <= high
    assert missed <= 15  # of 150, at 95 %; by DeLong's variance alone about 25


def sample_in_groups(generator, groups, size):
    """Pictures whose group decides most of their features."""
    numbers = np.repeat(np.arange(groups), size)
    features = generator.normal(size=(groups, 12))[numbers] + generator.normal(size=(len(numbers), 12)) / 2
    probs = np.exp(features[:, :3])
    ones = np.ones(len(numbers))
    light = 100 + 10 * features[:, 3]
    return Sample(features.astype(np.float16), probs / probs.sum(axis=1, keepdims=True), numbers, light, ones, ones, ones)


def test_groups_of_another_size_than_those_of_the_reference_raise_no_false_alarm():
    generator, alarms = np.random.default_rng(3), 0
    for _ in range(30):
        old, new = sample_in_groups(generator, 15, 10), sample_in_groups(generator, 100, 1)
        alarms += compare(Reference(old, old.predicted, ["a", "b", "c"], ""), new, 0.05, count=59).p <= 0.05
    assert alarms <= 5  # without an even number of pictures per group, more than 20
