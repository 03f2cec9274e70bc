"""Class activation maps worked by hand, and what they look like on a picture."""

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.galleries import class_activation, overlay, scaled

FEATURES = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])  # one channel speaks above left, one above right
WEIGHT = np.array([[3.0, 1.0], [1.0, 3.0]])


def test_a_place_speaks_for_the_class_whose_row_is_larger_there():
    # Rows less their mean: (1, -1) and (-1, 1). Times the channels: 1 and -2 for the first class, -1 and 2 for the second.
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT, 0), [[1, 0], [0, 0]])
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT, 1), [[0, 1], [0, 0]])


def test_what_all_rows_share_changes_nothing():
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT + 5, 0), class_activation(FEATURES, WEIGHT, 0))


def test_a_map_that_speaks_against_everywhere_is_dark():
    assert scaled(np.array([[-1.0, -2.0]])).tolist() == [[0.0, 0.0]]


def test_the_highest_place_is_one():
    np.testing.assert_allclose(scaled(np.array([[-1.0, 2.0], [4.0, 0.0]])), [[0, 0.5], [1, 0]])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_overlay_is_as_large_as_the_picture(mode):
    assert overlay(Image.new(mode, (40, 30)), np.eye(2)).size == (40, 30)


def test_an_overlay_is_brightest_where_the_map_is():
    shown = np.asarray(overlay(Image.new("RGB", (40, 40), "grey"), np.array([[1.0, 0.0], [0.0, 0.0]])).convert("L"))
    assert shown[2, 2] > shown[37, 37] + 50
