"""What to label next: far, unsure, and unlike one another."""

import numpy as np
import pytest

from pipeline.drift.choosing import choose_next, distances, reason, scores
from pipeline.drift.reference import Sample


def sample_of(features):
    ones = np.ones(len(features))
    return Sample(np.array(features, np.float16), np.ones((len(features), 2)), np.arange(len(features)), ones, ones, ones, ones)


def around(angle, count):
    angles = angle + np.linspace(-0.1, 0.1, count)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def test_a_picture_among_the_test_pictures_is_near_and_another_is_far():
    found = distances(sample_of(around(0, 41)), sample_of([[1, 0], [0, 1], [-1, 0]]))
    assert found[0] < 1 < found[1] < found[2]


def test_one_test_picture_in_twenty_is_farther_than_usual():
    features = np.random.default_rng(0).normal(size=(400, 8))
    assert (distances(sample_of(features[:200]), sample_of(features[200:])) > 1).mean() == pytest.approx(0.05, abs=0.05)


def test_the_score_is_highest_for_far_and_unsure():
    found = scores(np.array([2.0, 2.0, 0.1, 0.1]), np.array([0.5, 0.99, 0.5, 0.99]), 2)
    assert found.argmax() == 0
    assert found.argmin() == 3
    assert found[0] == pytest.approx(1)


def test_choices_are_unlike_one_another_and_copies_are_chosen_once():
    features = [[1, 0], [1, 0], [1, 0.01], [0, 1], [-1, 0]]
    score = np.array([1.0, 1.0, 0.95, 0.5, 0.6])
    assert choose_next(sample_of(features), score, 3) == [0, 4, 3]
    assert choose_next(sample_of(features), score, 9) == [0, 4, 3, 2]
    assert choose_next(sample_of(features), score, 3) == choose_next(sample_of(features), score, 3)


def test_the_reason_says_what_made_the_choice():
    assert reason(1.62, 0.4) == "1.6 times as far as usual and unsure"
    assert reason(0.5, 0.4) == "unsure"
    assert reason(0.5, 0.99) == "unlike the others"
