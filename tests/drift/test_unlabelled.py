"""What is said without labels: shares of the true classes and the accuracy, against samples whose labels are known here."""

import numpy as np
import pytest

from pipeline.drift.reference import Reference, Sample
from pipeline.drift.unlabelled import METHODS, class_shares, estimate_accuracy, estimate_shares

NAMES = ("a", "b")
ONES = np.ones(4)


def sample_of(probs):
    count = len(probs)
    ones = np.ones(count)
    return Sample(np.zeros((count, 2), np.float16), np.array(probs, np.float32), np.arange(count), ones, ones, ones, ones)


def draw(generator, count, share):
    """Labels, the share of b among them as given, and calibrated probabilities: a logistic regression on a normal variable."""
    labels = (generator.random(count) < share).astype(int)
    values = generator.normal(2 * labels - 1, 1)
    probs = 1 / (1 + np.exp(-2 * values))
    return labels, sample_of(np.column_stack([1 - probs, probs]))


def test_each_estimate_of_the_accuracy_worked_by_hand():
    new, old, correct = np.array([0.9, 0.7, 0.6, 0.6]), np.array([0.95, 0.9, 0.8, 0.55]), np.array([1.0, 1, 1, 0])
    assert METHODS["confidence"](new, ONES, old, correct, ONES) == pytest.approx(0.7)
    assert METHODS["doc"](new, ONES, old, correct, ONES) == pytest.approx(0.75 + 0.7 - 0.8)
    # One of the four is wrong, so the threshold leaves one below it: 0.8, which one new picture reaches.
    assert METHODS["atc"](new, ONES, old, correct, ONES) == pytest.approx(0.25)


def test_a_weight_of_two_is_the_picture_twice():
    new, old, correct = np.array([0.9, 0.7, 0.6, 0.6]), np.array([0.95, 0.9, 0.8, 0.55]), np.array([1.0, 1, 1, 0])
    weights = np.array([2.0, 1, 0, 1])
    rows = np.repeat(np.arange(4), weights.astype(int))
    for method in METHODS.values():
        twice = method(new[rows], np.ones(4), old[rows], correct[rows], np.ones(4))
        assert method(new, weights, old, correct, weights) == pytest.approx(twice)


def test_the_shares_of_the_true_classes_are_found_though_predictions_are_wrong():
    generator = np.random.default_rng(1)
    labels, old = draw(generator, 1500, 0.5)
    _, new = draw(generator, 1500, 0.8)
    reference = Reference(old, labels, NAMES, "")
    rows, untold = estimate_shares(reference, new, 0.95)
    assert untold == ""
    assert rows[1]["low"] < 0.8 < rows[1]["high"]
    assert rows[1]["high"] - rows[1]["low"] < 0.15
    predicted = class_shares(reference, new, 0.95)[1]
    assert predicted["high"] < 0.8  # the predicted shares are pulled to the middle


@pytest.mark.slow
def test_the_interval_of_the_estimated_accuracy_contains_the_true_one_where_its_assumption_holds():
    generator, hits = np.random.default_rng(2), 0
    for _ in range(100):
        labels, old = draw(generator, 300, 0.5)
        truth, new = draw(generator, 300, 0.5)
        found = estimate_accuracy(Reference(old, labels, NAMES, ""), new, 0.95)
        hits += found["low"] <= (new.predicted == truth).mean() <= found["high"]
    assert 88 <= hits <= 99


def test_why_shares_are_not_estimated_is_said():
    labels, old = draw(np.random.default_rng(3), 50, 0.5)
    assert estimate_shares(Reference(old, labels * 0, NAMES, ""), old, 0.95) == ([], "a class has no test pictures")
    coin = sample_of([[0.6, 0.4], [0.4, 0.6]] * 25)
    assert estimate_shares(Reference(coin, np.arange(50) // 25, NAMES, ""), old, 0.95) == ([], "the model confuses its classes too much")


def test_answers_that_never_vary_have_no_interval():
    sure = sample_of([[1.0, 0.0]] * 30)
    found = estimate_accuracy(Reference(sure, np.zeros(30, int), NAMES, ""), sure, 0.95)
    assert (found["value"], found["low"], found["high"]) == (1.0, None, None)
