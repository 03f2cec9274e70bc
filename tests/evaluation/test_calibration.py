"""Calibration against values worked by hand."""

import numpy as np
import pytest

from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.calibration import coverage, ece_interval, expected_calibration_error, reliability
from pipeline.evaluation.intervals import Bootstrap, wilson_interval

LABELS = np.array([0, 1, 1, 1])
ANSWERS = read_answers(LABELS, np.array([[0.90, 0.10], [0.92, 0.08], [0.30, 0.70], [0.55, 0.45]]))


def test_ece_is_the_one_worked_by_hand():
    # 0.90 (correct) and 0.92 (wrong) share a bin: |1 - 1.82|; 0.70 (correct): 0.30; 0.55 (wrong): 0.55. Their sum over 4 pictures.
    assert expected_calibration_error(ANSWERS) == pytest.approx((0.82 + 0.30 + 0.55) / 4)


def test_the_ece_of_certain_and_correct_answers_is_0():
    assert expected_calibration_error(read_answers(np.array([0, 1]), np.eye(2))) == 0


def test_the_ece_of_certain_and_wrong_answers_is_1():
    assert expected_calibration_error(read_answers(np.array([1, 0]), np.eye(2))) == 1


def test_certain_and_correct_answers_give_no_interval_of_the_ece():
    answers = read_answers(np.array([0, 1]), np.eye(2))
    np.testing.assert_array_equal(ece_interval(answers, Bootstrap(np.arange(2), 0), 0.95), [np.nan, np.nan])


def test_each_bin_with_pictures_has_a_row():
    rows = reliability(ANSWERS, np.arange(len(LABELS)), 0.95)
    assert [(row["pictures"], row["probability"], row["accuracy"]) for row in rows] == [
        (1, pytest.approx(0.55), 0.0),
        (1, pytest.approx(0.70), 1.0),
        (2, pytest.approx(0.91), 0.5),
    ]
    assert (rows[2]["from"], rows[2]["to"]) == (pytest.approx(13 / 15), pytest.approx(14 / 15))
    assert (rows[2]["accuracy_low"], rows[2]["accuracy_high"]) == wilson_interval(1 / 2, 2, 0.95)


def test_coverage_begins_with_the_most_confident_answers():
    rows = coverage(ANSWERS, np.arange(len(LABELS)), 0.95)
    assert [(row["coverage"], row["threshold"], row["accuracy"]) for row in rows] == [
        (0.25, 0.92, 0.0),
        (0.5, 0.90, 0.5),
        (0.75, 0.70, pytest.approx(2 / 3)),
        (1.0, 0.55, 0.5),
    ]


def test_the_coverage_of_many_pictures_has_100_rows():
    generator = np.random.default_rng(0)
    probs = generator.dirichlet(np.ones(3), 1234)
    rows = coverage(read_answers(generator.integers(0, 3, 1234), probs), np.arange(1234), 0.95)
    assert (len(rows), rows[-1]["coverage"]) == (100, 1.0)
