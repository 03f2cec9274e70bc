"""Intervals that say 95 % hold the truth in 95 % of 2,000 seeded simulations, give or take 1.5 points.

The world: three classes, logits drawn from N(0, 2²), labels from their softmax. The model says softmax(logits / T): at T = 1
it is calibrated, below it is too sure. The truth of a figure is that of 400,000 pictures. Areas are looked at in worlds of two and
of ten classes, too, in which the model is nearly always right: there they lie close to 1.
"""

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.evaluation import intervals as statistics
from pipeline.evaluation import scores as metrics
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error
from pipeline.evaluation.intervals import (
    draw_counts,
    f1_interval,
    logit_interval,
    mean_interval,
    mean_of_proportions_interval,
    paired_difference,
    percentile_interval,
    wilson_interval,
)
from pipeline.evaluation.scores import drawn_matrices, macro, ranking_areas

DRAWS, PICTURES, MANY = 2000, 250, 400_000


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def draw_world(generator, count, temperature=1.0, classes=3, scale=2):
    """Labels, and what a model says of their pictures."""
    logits = generator.normal(0, scale, (count, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1).clip(0, classes - 1)
    return labels, softmax(logits / temperature, axis=1)


def assert_covered(interval, truth):
    """`interval(seed)` holds the truth as often as it says."""
    held = sum(low <= truth <= high for low, high in map(interval, range(DRAWS)))
    assert 0.935 <= held / DRAWS <= 0.965, f"{held / DRAWS:.4f}"


def seeded(measure, temperature=1.0, count=PICTURES):
    """`measure(labels, probs, counts)` of a small world, a function of the seed."""
    return lambda seed: measure(*draw_world(np.random.default_rng(seed), count, temperature), draw_counts(count, seed))


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95])
def test_wilsons_interval_of_a_proportion(share):
    generator = np.random.default_rng(0)
    assert_covered(lambda _: wilson_interval(int(generator.binomial(PICTURES, share)), PICTURES, 0.95), share)


@pytest.mark.parametrize(("shares", "counts"), [([0.92] * 10, [27] * 10), ([0.95, 0.95], [70, 83]), ([0.99, 0.8, 0.9], [100, 25, 50])])
def test_the_interval_of_balanced_accuracy(shares, counts):
    generator = np.random.default_rng(0)
    assert_covered(lambda _: mean_of_proportions_interval(generator.binomial(counts, shares), np.array(counts), 0.95), np.mean(shares))


def test_the_interval_of_a_classs_f1():
    labels, probs = draw_world(np.random.default_rng(0), MANY)
    truth = metrics.f1_per_class(metrics.confusion_matrix(labels, probs.argmax(axis=1), 3))[0]

    def interval(labels, probs, _):
        is_class, answered = labels == 0, probs.argmax(axis=1) == 0
        return f1_interval(int((is_class & answered).sum()), int((is_class ^ answered).sum()), 0.95)

    assert_covered(seeded(interval), truth)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("loss", [metrics.log_losses, metrics.brier_scores])
def test_the_interval_of_a_mean_loss(loss, temperature):
    truth = loss(*draw_world(np.random.default_rng(0), MANY, temperature)).mean()
    assert_covered(seeded(lambda labels, probs, counts: mean_interval(loss(labels, probs), counts, 0.95), temperature), truth)


@pytest.mark.parametrize(("temperature", "count"), [(0.5, 200), (0.75, 300), (0.75, 1000), (1.5, 250)])
def test_the_interval_of_the_calibration_error(temperature, count):
    truth = expected_calibration_error(*draw_world(np.random.default_rng(0), MANY, temperature))
    assert_covered(seeded(lambda labels, probs, counts: ece_interval(labels, probs, counts, 0.95), temperature, count), truth)


def test_the_interval_of_the_calibration_error_of_a_calibrated_model_begins_at_nothing():
    intervals = [seeded(lambda labels, probs, counts: ece_interval(labels, probs, counts, 0.95))(seed) for seed in range(400)]
    assert np.mean([low == 0 for low, _ in intervals]) >= 0.95


@pytest.mark.parametrize(("classes", "count", "scale"), [(3, PICTURES, 2), (2, 153, 8), (10, 268, 6)])
def test_the_intervals_of_areas_over_all_classes_and_of_a_class(classes, count, scale):
    def values(labels, probs, counts):
        return [value for areas in ranking_areas(labels, probs, counts) for value in (macro(areas), areas[:, 0])]

    def intervals(seed):
        world = draw_world(np.random.default_rng(seed), count, 1.0, classes, scale)
        found = zip(values(*world, np.ones((1, count))), values(*world, draw_counts(count, seed)), strict=True)
        return [logit_interval(value[0], draws, 0.95) for value, draws in found]

    truths = values(*draw_world(np.random.default_rng(0), MANY, 1.0, classes, scale), np.ones((1, MANY)))
    found = [intervals(seed) for seed in range(DRAWS)]
    for which, truth in enumerate(truths):
        assert_covered(lambda seed, which=which: found[seed][which], truth[0])


def test_the_interval_of_macro_f1():
    labels, probs = draw_world(np.random.default_rng(0), MANY)
    truth = metrics.macro_f1(metrics.confusion_matrix(labels, probs.argmax(axis=1), 3))

    def interval(labels, probs, counts):
        return percentile_interval(metrics.macro_f1(drawn_matrices(labels, probs.argmax(axis=1), counts, 3)), 0.95)

    assert_covered(seeded(interval), truth)


def test_the_interval_of_a_difference():
    def interval(seed):
        chances = np.random.default_rng(seed).random((2, PICTURES))
        first = chances[0] < 0.88
        second = np.where(first, chances[1] < 0.97, chances[1] < 0.6)
        return paired_difference(first, second, 0.95, seed)[1]

    assert_covered(interval, 0.88 * 0.97 + 0.12 * 0.6 - 0.88)
