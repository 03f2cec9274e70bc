"""The tables as they are written."""

import numpy as np

from pipeline.core.files import read_table
from pipeline.evaluation.scores import shares, write_classes, write_matrix

MATRIX = np.array([[3, 1], [0, 2]])


def test_the_matrix_says_which_axis_is_the_truth(tmp_path):
    write_matrix(tmp_path / "matrix.csv", MATRIX, ["ants", "bees"])
    assert (tmp_path / "matrix.csv").read_text() == "true/predicted,ants,bees\nants,3,1\nbees,0,2\n"


def test_shares_are_those_of_the_true_class(tmp_path):
    write_matrix(tmp_path / "matrix.csv", shares(MATRIX), ["ants", "bees"])
    assert (tmp_path / "matrix.csv").read_text() == "true/predicted,ants,bees\nants,0.75,0.25\nbees,0.0,1.0\n"


def test_a_class_without_pictures_has_shares_of_nothing():
    assert shares(np.array([[2, 0], [0, 0]])).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_class_has_its_figures_and_empty_places_for_what_is_not_defined(tmp_path):
    classes = {"ants": {"recall": {"value": 0.75, "low": 0.5, "high": None}, "support": 4}}
    write_classes(tmp_path / "classes.csv", classes)
    assert read_table(tmp_path / "classes.csv") == [
        {"class": "ants", "support": "4", "recall": "0.75", "recall_low": "0.5", "recall_high": ""}
    ]
