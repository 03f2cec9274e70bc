"""A 95 % interval contains the true value in 95 % of seeded simulations, for every kind of interval.

The simulated model has logits drawn from N(0, scale²), labels drawn from their softmax, and the probabilities softmax(logits / T): it is
calibrated at T = 1 and overconfident below. The true value of a figure is that of 400,000 pictures. Areas are also simulated with two and
with ten classes and nearly perfect models, since the areas are then close to 1.

coverage.json contains the shares of 2,000 draws, and of the first 300 of them. The short tests repeat these 300. The slow test writes the
file: run it when a formula has changed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.evaluation import intervals, scores
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error
from pipeline.evaluation.intervals import draw_counts, logit_interval, wilson_interval

FILE = Path(__file__).with_name("coverage.json")
DRAWS, FEW = 2000, 300
BARS = (0.935, 0.965)  # of 2,000 draws: 95 % give or take 3 standard errors
FEW_BARS = (0.912, 0.988)  # of 300 draws: the same, with a standard error of 1.26 points
PICTURES, MANY = 250, 400_000


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


def simulate(seed, count, temperature=1.0, classes=3, scale=2):
    """Labels and predicted probabilities of a simulated model."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (count, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1).clip(0, classes - 1)
    return labels, softmax(logits / temperature, axis=1)


# Each of these returns the intervals of one draw as a function of its seed, and the true values of their figures.


def proportion(share):
    return lambda seed: [wilson_interval(int(np.random.default_rng(seed).binomial(PICTURES, share)), PICTURES, 0.95)], [share]


def balanced_accuracy(shares, counts):
    def draw(seed):
        return [intervals.mean_of_proportions_interval(np.random.default_rng(seed).binomial(counts, shares), np.array(counts), 0.95)]

    return draw, [np.mean(shares)]


def class_f1():
    def draw(seed):
        labels, probs = simulate(seed, PICTURES)
        is_class, predicted = labels == 0, probs.argmax(axis=1) == 0
        return [intervals.f1_interval(int((is_class & predicted).sum()), int((is_class ^ predicted).sum()), 0.95)]

    labels, probs = simulate(0, MANY)
    return draw, [scores.f1_per_class(scores.confusion_matrix(labels, probs.argmax(axis=1), 3))[0]]


def macro_f1():
    def draw(seed):
        labels, probs = simulate(seed, PICTURES)
        matrices = scores.drawn_matrices(labels, probs.argmax(axis=1), draw_counts(PICTURES, seed), 3)
        return [intervals.percentile_interval(scores.macro_f1(matrices), 0.95)]

    labels, probs = simulate(0, MANY)
    return draw, [scores.macro_f1(scores.confusion_matrix(labels, probs.argmax(axis=1), 3))]


def mean_loss(loss, temperature):
    def draw(seed):
        return [intervals.mean_interval(loss(*simulate(seed, PICTURES, temperature)), draw_counts(PICTURES, seed), 0.95)]

    return draw, [loss(*simulate(0, MANY, temperature)).mean()]


def calibration_error(temperature, count):
    def draw(seed):
        return [ece_interval(*simulate(seed, count, temperature), draw_counts(count, seed), 0.95)]

    return draw, [expected_calibration_error(*simulate(0, MANY, temperature))]


def areas(classes, count, scale):
    """ROC and precision-recall areas, each as the mean over the classes and of the first class."""

    def values(labels, probs, counts):
        return [value for areas in scores.ranking_areas(labels, probs, counts) for value in (scores.macro(areas), areas[:, 0])]

    def draw(seed):
        answers = simulate(seed, count, 1.0, classes, scale)
        pairs = zip(values(*answers, np.ones((1, count))), values(*answers, draw_counts(count, seed)), strict=True)
        return [logit_interval(value[0], draws, 0.95) for value, draws in pairs]

    return draw, [truth[0] for truth in values(*simulate(0, MANY, 1.0, classes, scale), np.ones((1, MANY)))]


def difference():
    def draw(seed):
        chances = np.random.default_rng(seed).random((2, PICTURES))
        first = chances[0] < 0.88
        return [intervals.paired_difference(first, np.where(first, chances[1] < 0.97, chances[1] < 0.6), 0.95, seed)[1]]

    return draw, [0.88 * 0.97 + 0.12 * 0.6 - 0.88]


SIMULATIONS = {
    **{f"proportion of {share}": (proportion, share) for share in (0.8, 0.9, 0.95)},
    "balanced accuracy, 10 equal classes": (balanced_accuracy, [0.92] * 10, [27] * 10),
    "balanced accuracy, 2 classes": (balanced_accuracy, [0.95, 0.95], [70, 83]),
    "balanced accuracy, 3 unequal classes": (balanced_accuracy, [0.99, 0.8, 0.9], [100, 25, 50]),
    "F1 of a class": (class_f1,),
    "macro F1": (macro_f1,),
    **{f"log loss, T = {t}": (mean_loss, scores.log_losses, t) for t in (0.5, 1.0)},
    **{f"Brier score, T = {t}": (mean_loss, scores.brier_scores, t) for t in (0.5, 1.0)},
    **{
        f"ECE, T = {t}, {count} pictures": (calibration_error, t, count) for t, count in ((0.5, 200), (0.75, 300), (0.75, 1000), (1.5, 250))
    },
    "areas, 3 classes": (areas, 3, PICTURES, 2),
    "areas, 2 classes, nearly perfect": (areas, 2, 153, 8),
    "areas, 10 classes, nearly perfect": (areas, 10, 268, 6),
    "difference of two models": (difference,),
}


def cover(name, draws):
    """Whether each draw's intervals contain the true values: bool (draws, figures)."""
    make, *arguments = SIMULATIONS[name]
    draw, truths = make(*arguments)
    return np.array([[low <= truth <= high for (low, high), truth in zip(draw(seed), truths, strict=True)] for seed in range(draws)])


def within(shares, bars):
    return all(bars[0] <= share <= bars[1] for share in shares)


@pytest.mark.parametrize("name", SIMULATIONS)
def test_an_interval_contains_the_true_value_in_95_of_100_draws(name):
    shares = cover(name, FEW).mean(axis=0)
    assert within(shares, FEW_BARS), shares
    assert shares == pytest.approx(json.loads(FILE.read_text())[name]["300"], abs=1.1 / FEW)


def test_the_recorded_shares_of_2000_draws_are_95_percent_give_or_take_a_point_and_a_half():
    recorded = json.loads(FILE.read_text())
    assert list(recorded) == list(SIMULATIONS)
    assert {name: shares for name, shares in recorded.items() if not within(shares["2000"], BARS)} == {}


@pytest.mark.slow
def test_2000_draws_are_simulated_and_recorded():
    covered = {name: cover(name, DRAWS) for name in SIMULATIONS}
    shares = {
        name: {str(draws): np.round(each[:draws].mean(axis=0), 4).tolist() for draws in (FEW, DRAWS)} for name, each in covered.items()
    }
    FILE.write_text(json.dumps(shares, indent=1) + "\n")
    assert {name: each for name, each in shares.items() if not within(each["2000"], BARS)} == {}


def test_the_interval_of_the_calibration_error_of_a_calibrated_model_begins_at_0():
    lows = [ece_interval(*simulate(seed, PICTURES), draw_counts(PICTURES, seed), 0.95)[0] for seed in range(FEW)]
    assert np.mean(np.array(lows) == 0) >= 0.95
