"""The tables of an evaluation: matrices and figures a class, as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.scoring import flat
from pipeline.files import write_table

Array = np.ndarray[Any, np.dtype[Any]]


def write_matrix(path: Path, matrix: Array, class_names: Sequence[str]) -> None:
    """A row a true class, a column a predicted one, the names of both in the first column and row. Shares have six places."""
    columns = ["true/predicted", *class_names]  # no class has a slash in its name
    cells = np.round(matrix, 6).tolist()
    write_table(path, columns, [dict(zip(columns, [name, *row], strict=True)) for name, row in zip(class_names, cells, strict=True)])


def shares(matrix: Array) -> Array:
    """The matrix with each row as shares of its true class; zeros where that has no picture."""
    return np.asarray(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))


def write_classes(path: Path, classes: Mapping[str, Mapping[str, Any]]) -> None:
    """A row a class: each figure with its interval, empty where it is not defined, and how many test pictures it has."""
    rows = [
        {"class": name, "support": facts["support"], **flat({key: facts[key] for key in facts if key != "support"})}
        for name, facts in classes.items()
    ]
    write_table(path, list(rows[0]), [{key: "" if value is None else value for key, value in row.items()} for row in rows])
