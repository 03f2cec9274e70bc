"""All that is said of how well a model answered: every figure with its interval, for the whole and a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error, without_temperature
from pipeline.evaluation.ranking import macro, ranking_areas
from pipeline.evaluation.statistics import (
    Interval,
    draw_counts,
    f1_interval,
    logit_interval,
    mean_interval,
    mean_of_proportions_interval,
    percentile_interval,
    wilson_interval,
)

Array = np.ndarray[Any, np.dtype[Any]]
Figure = dict[str, float | None]  # value, low, high; None for what is not defined

_TOP = 5  # of so many answers, where there are more than twice as many classes
_AREA_SAMPLES = 500  # of the bootstrap, for areas and F1, which cost the most


def score(labels: Array, probs: Array, class_names: Sequence[str], temperature: float, confidence: float, seed: int) -> dict[str, Any]:
    """`figures`, and `classes` with a figure each. Labels int (pictures,), probabilities float (pictures, classes).

    Wilson's interval for proportions and what follows from them, the bootstrap for the rest. `*_unscaled` is what the
    model would have scored without its temperature.
    """
    predicted = probs.argmax(axis=1)
    matrix = metrics.confusion_matrix(labels, predicted, len(class_names))
    counts = draw_counts(len(labels), seed)
    areas, area_draws = _areas(labels, probs, counts[:_AREA_SAMPLES])
    f1_draws = metrics.macro_f1(drawn_matrices(labels, predicted, counts[:_AREA_SAMPLES], len(class_names)))
    support, hits = matrix.sum(axis=1), np.diag(matrix)
    figures = {
        "top1_accuracy": _figure(metrics.top1_accuracy(matrix), wilson_interval(int(hits.sum()), len(labels), confidence)),
        **_top_k(labels, probs, confidence),
        "balanced_accuracy": _figure(metrics.balanced_accuracy(matrix), mean_of_proportions_interval(hits, support, confidence)),
        "macro_f1": _figure(float(metrics.macro_f1(matrix)), percentile_interval(f1_draws, confidence)),
        **{
            name: _figure(macro(area)[0], logit_interval(macro(area)[0], macro(draws), confidence))
            for name, area, draws in zip(("roc_auc", "pr_auc"), areas, area_draws, strict=True)
        },
        **_of_probabilities(labels, probs, counts, confidence, ""),
        **_of_probabilities(labels, without_temperature(probs, temperature), counts, confidence, "_unscaled"),
    }
    return {"figures": figures, "classes": _classes(matrix, class_names, areas, area_draws, confidence)}


def _of_probabilities(labels: Array, probs: Array, counts: Array, confidence: float, end: str) -> dict[str, Figure]:
    """Log loss, Brier score and ECE."""
    losses = {"log_loss": metrics.log_losses(labels, probs), "brier": metrics.brier_scores(labels, probs)}
    means = {name: _figure(float(each.mean()), mean_interval(each, counts, confidence)) for name, each in losses.items()}
    ece = _figure(expected_calibration_error(labels, probs), ece_interval(labels, probs, counts, confidence))
    return {f"{name}{end}": figure for name, figure in {**means, "ece": ece}.items()}


def _top_k(labels: Array, probs: Array, confidence: float) -> dict[str, Figure]:
    if probs.shape[1] <= 2 * _TOP:
        return {}
    right = metrics.among_the_first(labels, probs, _TOP)
    return {f"top{_TOP}_accuracy": _figure(float(right.mean()), wilson_interval(int(right.sum()), len(right), confidence))}


def _areas(labels: Array, probs: Array, counts: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """ROC and precision-recall areas: of the pictures as they are (1, classes), and of each sample (samples, classes)."""
    return ranking_areas(labels, probs, np.ones((1, len(labels)))), ranking_areas(labels, probs, counts)


def drawn_matrices(labels: Array, predicted: Array, counts: Array, size: int) -> Array:
    """The confusion matrix of each bootstrap sample: float (samples, classes, classes)."""
    cells, where = np.unique(labels * size + predicted, return_inverse=True)
    order = np.argsort(where, kind="stable")
    sums = np.add.reduceat(counts[:, order], np.searchsorted(where[order], np.arange(len(cells))), axis=1)
    matrices = np.zeros((len(counts), size * size))
    matrices[:, cells] = sums
    return matrices.reshape(-1, size, size)


def _classes(
    matrix: Array, class_names: Sequence[str], areas: tuple[Array, Array], area_draws: tuple[Array, Array], confidence: float
) -> dict[str, dict[str, Any]]:
    hits, answers, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    precisions, recalls, f1_scores = metrics.precisions(matrix), metrics.recalls(matrix), metrics.f1_scores(matrix)
    classes: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(class_names):
        right, misses = int(hits[index]), int(answers[index] + support[index] - 2 * hits[index])
        classes[name] = {
            "precision": _figure(precisions[index], wilson_interval(right, int(answers[index]), confidence)),
            "recall": _figure(recalls[index], wilson_interval(right, int(support[index]), confidence)),
            "f1": _figure(f1_scores[index], f1_interval(right, misses, confidence)),
            **{
                key: _figure(area[0, index], logit_interval(area[0, index], draws[:, index], confidence))
                for key, area, draws in zip(("roc_auc", "pr_auc"), areas, area_draws, strict=True)
            },
            "support": int(support[index]),
        }
    return classes


def flat(figures: Mapping[str, Figure]) -> dict[str, float | None]:
    """`{x: {value, low, high}}` as `{x, x_low, x_high}`."""
    return {f"{name}{end}": figure[key] for name, figure in figures.items() for key, end in _ENDS.items()}


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _figure(value: float, interval: Interval) -> Figure:
    return {key: rounded(number) for key, number in zip(_ENDS, (value, *interval), strict=True)}


def rounded(value: float) -> float | None:
    """Six places, or None for what is not defined."""
    return round(float(value), 6) if np.isfinite(value) else None
