"""Metrics of a classifier with their intervals, overall and per class, and the tables that contain them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.files import table_rows, write_table
from pipeline.evaluation.answers import MOST_LOSS, Answers
from pipeline.evaluation.areas import macro, ranking_areas
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error
from pipeline.evaluation.intervals import (
    Array,
    Bootstrap,
    Interval,
    f1_interval,
    indicator,
    logit_interval,
    mean_interval,
    mean_of_proportions_interval,
    percentile_interval,
    proportion_interval,
)

Figure = dict[str, float | None]  # value, low, high; None if undefined
_ENDS = {"value": "", "low": "_low", "high": "_high"}
_AREAS = ("roc_auc", "pr_auc")
_AREA_SAMPLES = 500  # bootstrap samples for areas and F1, which cost the most
_TOP = 5  # the k of top-k accuracy, which needs more than 2 k classes


def confusion_matrix(labels: Array, predicted: Array, num_classes: int) -> Array:
    """The number of pictures per true class (rows) and predicted class (columns): int (classes, classes)."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def shares(matrix: Array) -> Array:
    """The matrix with each row divided by its sum; zeros if the true class has no picture."""
    return np.asarray(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))


def top1_accuracy(matrix: Array) -> float:
    """The share of correct answers, 0 to 1."""
    return float(np.trace(matrix) / matrix.sum())


def recall_per_class(matrix: Array) -> Array:
    """Per class: the share of its pictures that are predicted as it; NaN if it has none. float (classes,)."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def f1_per_class(matrix: Array) -> Array:
    """Per class: the harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn); NaN if it has neither. float (classes,)."""
    return _ratio(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """NaN if the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator))


def balanced_accuracy(matrix: Array) -> float:
    """The mean recall of the classes that have pictures, 0 to 1."""
    return float(np.nanmean(recall_per_class(matrix)))


def macro_f1(matrix: Array) -> float:
    """The mean F1 of the classes that have pictures or predictions, 0 to 1."""
    return float(np.nanmean(f1_per_class(matrix)))


def drawn_macro_f1(answers: Answers, counts: Iterable[Array], num_classes: int) -> Array:
    """The macro F1 of each bootstrap sample: float (samples,). `counts`: of a `Bootstrap`."""
    # Only the sums of the samples' confusion matrices are needed, and the diagonals. With a thousand classes a matrix has a million cells.
    hits = np.where(answers.correct, answers.labels, num_classes)
    sums_by = [indicator(keys, num_classes + 1) for keys in (hits, answers.labels, answers.predicted)]
    draws = []
    for block in counts:
        weights = np.ascontiguousarray(block.T, dtype=np.float32)
        hit, true, predicted = (np.ascontiguousarray((each @ weights)[:-1].T, dtype=float) for each in sums_by)
        draws.append(np.nanmean(_ratio(2 * hit, predicted + true), axis=1))
    return np.concatenate(draws)


def score(
    answers: Answers, unscaled: Answers, probs: Array, groups: Array, class_names: Sequence[str], confidence: float, seed: int
) -> dict[str, Any]:
    """All figures with their intervals: `{"figures": {name: figure}, "classes": {class name: {name: figure}}}`.

    `answers`: of `probs`, float (pictures, classes); `unscaled`: of the probabilities before temperature scaling, for the figures whose
    names end in `_unscaled`; `groups`: see `intervals`; `seed`: of the bootstrap.
    """
    labels, correct = answers.labels, answers.correct
    matrix = confusion_matrix(labels, answers.predicted, len(class_names))
    bootstrap = Bootstrap(groups, seed)
    widening = bootstrap.widening(confidence)
    # The first of these samples are the pictures themselves, so that each class is ranked once.
    areas = ranking_areas(labels, probs, lambda: chain([np.ones((1, len(labels)))], bootstrap.counts(_AREA_SAMPLES)))
    f1_draws = drawn_macro_f1(answers, bootstrap.counts(_AREA_SAMPLES), len(class_names))
    figures = {
        "top1_accuracy": _figure(top1_accuracy(matrix), proportion_interval(correct, groups, confidence)),
        **_top_k(answers, groups, len(class_names), confidence),
        "balanced_accuracy": _figure(balanced_accuracy(matrix), mean_of_proportions_interval(correct, labels, groups, confidence)),
        "macro_f1": _figure(macro_f1(matrix), percentile_interval(f1_draws, confidence, widening)),
        **{name: _area(macro(each), confidence, widening) for name, each in zip(_AREAS, areas, strict=True)},
        **_probability_figures(answers, bootstrap, confidence, ""),
        **_probability_figures(unscaled, bootstrap, confidence, "_unscaled"),
    }
    classes = _classes(answers, groups, class_names, confidence)
    for index, facts in enumerate(classes.values()):
        facts.update({name: _area(each[:, index], confidence, widening) for name, each in zip(_AREAS, areas, strict=True)})
    return {"figures": figures, "classes": classes}


def _area(areas: Array, confidence: float, widening: float) -> Figure:
    """An area from that of the pictures, which is first, and those of the bootstrap samples."""
    return _figure(areas[0], logit_interval(areas[0], areas[1:], confidence, widening))


def _top_k(answers: Answers, groups: Array, num_classes: int, confidence: float) -> dict[str, Figure]:
    """Top-5 accuracy; nothing if there are ten classes or fewer, where it says little."""
    if num_classes <= 2 * _TOP:
        return {}
    correct = answers.ranks < _TOP
    return {f"top{_TOP}_accuracy": _figure(float(correct.mean()), proportion_interval(correct, groups, confidence))}


def _probability_figures(answers: Answers, bootstrap: Bootstrap, confidence: float, suffix: str) -> dict[str, Figure]:
    """Log loss, Brier score and ECE."""
    losses = {"log_loss": (answers.log_losses, MOST_LOSS), "brier": (answers.brier_scores, 2.0)}
    means = {name: _figure(float(each.mean()), mean_interval(each, bootstrap, confidence), most) for name, (each, most) in losses.items()}
    ece = _figure(expected_calibration_error(answers), ece_interval(answers, bootstrap, confidence))
    return {f"{name}{suffix}": figure for name, figure in {**means, "ece": ece}.items()}


def _classes(answers: Answers, groups: Array, class_names: Sequence[str], confidence: float) -> dict[str, dict[str, Any]]:
    """Per class: precision, recall and F1 with their intervals, and `support`, its number of pictures."""
    classes: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(class_names):
        is_class, is_predicted = answers.labels == index, answers.predicted == index
        hits, either = is_class & is_predicted, int(is_class.sum() + is_predicted.sum())
        f1 = 2 * hits.sum() / either if either else np.nan
        classes[name] = {
            "precision": _share(hits[is_predicted], groups[is_predicted], confidence),
            "recall": _share(hits[is_class], groups[is_class], confidence),
            "f1": _figure(f1, f1_interval(is_class, is_predicted, groups, confidence)),
            "support": int(is_class.sum()),
        }
    return classes


def _share(correct: Array, groups: Array, confidence: float) -> Figure:
    return _figure(float(correct.mean()) if len(correct) else np.nan, proportion_interval(correct, groups, confidence))


def _figure(value: float, interval: Interval, most: float = 1.0) -> Figure:
    """Six decimal places; None for NaN. The figure is between 0 and `most`, and so is its interval."""
    numbers = zip(_ENDS, (value, *np.clip(interval, 0, most)), strict=True)
    return {key: round(float(number), 6) if np.isfinite(number) else None for key, number in numbers}


def flat(figures: Mapping[str, Figure]) -> dict[str, float | None]:
    """`{x: {value, low, high}}` as `{x, x_low, x_high}`."""
    return {f"{name}{suffix}": figure[key] for name, figure in figures.items() for key, suffix in _ENDS.items()}


def write_matrix(path: Path, matrix: Array, class_names: Sequence[str]) -> None:
    """Write a row per true class and a column per predicted class, with their names. Shares have six decimal places."""
    columns = ["true/predicted", *class_names]  # no class has a slash in its name
    rows = (dict(zip(columns, [name, *np.round(row, 6).tolist()], strict=True)) for name, row in zip(class_names, matrix, strict=True))
    write_table(path, columns, rows)


def read_matrix(path: Path) -> tuple[list[str], Array]:
    """The class names and the counts, int (classes, classes), of a confusion matrix that `write_matrix` wrote."""
    names, rows = [], []
    for row in table_rows(path):
        name, *counts = row.values()
        names.append(name)
        rows.append(np.array(counts, dtype=int))
    return names, np.stack(rows)


def write_classes(path: Path, classes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a row per class: its number of test pictures, and each figure with its interval. Undefined ones are empty."""
    rows = [
        {"class": name, "support": facts["support"], **flat({key: facts[key] for key in facts if key != "support"})}
        for name, facts in classes.items()
    ]
    write_table(path, list(rows[0]), [{key: "" if value is None else value for key, value in row.items()} for row in rows])
