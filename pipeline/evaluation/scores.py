"""Metrics of a classifier with their intervals, overall and per class, and the tables they are written to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.files import write_table
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error, without_temperature
from pipeline.evaluation.intervals import (
    Interval,
    draw_counts,
    f1_interval,
    logit_interval,
    mean_interval,
    mean_of_proportions_interval,
    percentile_interval,
    wilson_interval,
)
from pipeline.pictures.manifest import Picture

Array = np.ndarray[Any, np.dtype[Any]]


def confusion_matrix(labels: Array, predicted: Array, num_classes: int) -> Array:
    """How often each class (rows: the truth) was answered by each (columns): int, (classes, classes)."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def top1_accuracy(matrix: Array) -> float:
    """The share of right answers, 0 to 1."""
    return float(np.trace(matrix) / matrix.sum())


def recall_per_class(matrix: Array) -> Array:
    """A class: the share of its pictures that were recognised; NaN where it has none. float, (classes,)."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def precision_per_class(matrix: Array) -> Array:
    """A class: the share of its answers that were right; NaN where it was never answered. float, (classes,)."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def f1_per_class(matrix: Array) -> Array:
    """A class: the harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn). float, (…, classes) of a stack of matrices."""
    return _ratio(2 * np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-2) + matrix.sum(axis=-1))


def balanced_accuracy(matrix: Array) -> float:
    """The mean recall of the classes that are there, 0 to 1."""
    return float(np.nanmean(recall_per_class(matrix)))


def macro_f1(matrix: Array) -> Array:
    """The mean F1 of the classes that are there or were answered, 0 to 1: one, or one for each of a stack of matrices."""
    return np.asarray(np.nanmean(f1_per_class(matrix), axis=-1))


def log_losses(labels: Array, probs: Array) -> Array:
    """A picture: -log of the probability of its true class, in nats, the probability bounded below by float32's epsilon."""
    true_probs = probs[np.arange(len(labels)), labels].astype(float)
    return np.asarray(-np.log(np.clip(true_probs, np.finfo(np.float32).eps, 1)))


def brier_scores(labels: Array, probs: Array) -> Array:
    """A picture: the squared distance of its probabilities from the truth, summed over the classes (Brier, 1950): 0 to 2."""
    truth = np.arange(probs.shape[1]) == labels[:, None]
    return np.asarray(((probs.astype(float) - truth) ** 2).sum(axis=1))


def among_the_first(labels: Array, probs: Array, k: int) -> Array:
    """A picture: whether its class is among the k most probable ones; of equal probabilities the first class comes first. bool."""
    true_probs = probs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    return np.asarray(((probs > true_probs) | ((probs == true_probs) & earlier)).sum(axis=1) < k)


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(above / np.where(below == 0, np.nan, below))


_CHUNK = 4_000_000  # numbers that are worked on at once


def ranking_areas(labels: Array, probs: Array, counts: Array) -> tuple[Array, Array]:
    """Areas under the ROC curve and average precisions: each float (samples, classes), NaN where a class or its rest is not drawn.

    `counts`: float (samples, pictures), how often each picture is in a sample; ones for the pictures as they are.
    """
    pairs = [_areas(labels == index, probs[:, index], counts) for index in range(probs.shape[1])]
    roc, precision = (np.stack(areas, axis=1) for areas in zip(*pairs, strict=True))
    return roc, precision


def macro(areas: Array) -> Array:
    """A sample: the mean area of the classes that have one. float (samples,)."""
    there = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, areas, 0).sum(axis=1) / there.sum(axis=1))


def _areas(is_class: Array, scores: Array, counts: Array) -> tuple[Array, Array]:
    """Both areas of one class, a sample each: pictures in the order of their scores, equal scores as one step."""
    order = np.argsort(-scores, kind="stable")
    steps = _Steps.of(scores[order], is_class[order])
    size = max(1, _CHUNK // len(order))
    parts = [_areas_of_steps(counts[start : start + size, order], steps) for start in range(0, len(counts), size)]
    roc, precision = (np.concatenate(areas) for areas in zip(*parts, strict=True))
    return roc, precision


@dataclass(frozen=True)
class _Steps:
    """Runs of equal scores that hold a picture of the class: neither area needs any other."""

    hits: Array  # positions of the class's own pictures
    firsts: Array  # of each step: the place in `hits` where its own begin
    starts: Array  # its first position
    ends: Array  # its last position

    @staticmethod
    def of(scores: Array, is_class: Array) -> "_Steps":
        """Of scores in descending order."""
        edges = np.flatnonzero(np.diff(scores, prepend=np.inf, append=-np.inf))
        hits = np.flatnonzero(is_class)
        which, firsts = np.unique(np.searchsorted(edges, hits, side="right") - 1, return_index=True)
        return _Steps(hits, firsts, edges[which], edges[which + 1] - 1)


def _areas_of_steps(counts: Array, steps: _Steps) -> tuple[Array, Array]:
    if not len(steps.hits):
        return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    hits = np.add.reduceat(counts[:, steps.hits], steps.firsts, axis=1, dtype=np.float64)
    hits_so_far = hits.cumsum(axis=1)
    answered = counts.cumsum(axis=1, dtype=np.float64)
    before, so_far, everything = answered[:, steps.starts] - counts[:, steps.starts], answered[:, steps.ends], answered[:, -1]
    others, others_so_far = so_far - before - hits, so_far - hits_so_far
    all_hits, all_others = hits_so_far[:, -1], everything - hits_so_far[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        roc = 1 - (hits * (others_so_far - others / 2)).sum(axis=1) / (all_hits * all_others)
        precision = (hits * np.divide(hits_so_far, so_far, out=np.zeros_like(hits), where=so_far > 0)).sum(axis=1) / all_hits
    defined = (all_hits > 0) & (all_others > 0)
    return np.where(defined, roc, np.nan), np.where(defined, precision, np.nan)


Figure = dict[str, float | None]  # value, low, high; None for what is not defined
_TOP = 5  # of so many answers, where there are more than twice as many classes
_AREA_SAMPLES = 500  # of the bootstrap, for areas and F1, which cost the most


def score(labels: Array, probs: Array, class_names: Sequence[str], temperature: float, confidence: float, seed: int) -> dict[str, Any]:
    """`figures`, and `classes` with a figure each. Labels int (pictures,), probabilities float (pictures, classes).

    Wilson's interval for proportions and what follows from them, the bootstrap for the rest. `*_unscaled` is what the
    model would have scored without its temperature.
    """
    predicted = probs.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, len(class_names))
    counts = draw_counts(len(labels), seed)
    areas, area_draws = _areas_and_draws(labels, probs, counts[:_AREA_SAMPLES])
    f1_draws = macro_f1(drawn_matrices(labels, predicted, counts[:_AREA_SAMPLES], len(class_names)))
    support, hits = matrix.sum(axis=1), np.diag(matrix)
    figures = {
        "top1_accuracy": _figure(top1_accuracy(matrix), wilson_interval(int(hits.sum()), len(labels), confidence)),
        **_top_k(labels, probs, confidence),
        "balanced_accuracy": _figure(balanced_accuracy(matrix), mean_of_proportions_interval(hits, support, confidence)),
        "macro_f1": _figure(float(macro_f1(matrix)), percentile_interval(f1_draws, confidence)),
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
    losses = {"log_loss": log_losses(labels, probs), "brier": brier_scores(labels, probs)}
    means = {name: _figure(float(each.mean()), mean_interval(each, counts, confidence)) for name, each in losses.items()}
    ece = _figure(expected_calibration_error(labels, probs), ece_interval(labels, probs, counts, confidence))
    return {f"{name}{end}": figure for name, figure in {**means, "ece": ece}.items()}


def _top_k(labels: Array, probs: Array, confidence: float) -> dict[str, Figure]:
    if probs.shape[1] <= 2 * _TOP:
        return {}
    right = among_the_first(labels, probs, _TOP)
    return {f"top{_TOP}_accuracy": _figure(float(right.mean()), wilson_interval(int(right.sum()), len(right), confidence))}


def _areas_and_draws(labels: Array, probs: Array, counts: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
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
    precisions, recalls, f1_scores = precision_per_class(matrix), recall_per_class(matrix), f1_per_class(matrix)
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


def write_predictions(path: Path, pictures: Sequence[Picture], probs: Array, class_names: Sequence[str]) -> None:
    """A row a picture: its class, the answer, and the probability of every class to six places."""
    rows = [
        {
            "image_id": picture.image_id,
            "label": picture.label,
            "predicted": class_names[int(row.argmax())],
            **{f"prob_{name}": f"{prob:.6f}" for name, prob in zip(class_names, row, strict=True)},
        }
        for picture, row in zip(pictures, probs, strict=True)
    ]
    write_table(path, list(rows[0]), rows)


def most_doubted(predictions: Sequence[Mapping[str, str]], count: int) -> list[Mapping[str, str]]:
    """At most `count` rows whose answer differs from the label, those of the least probable labels first."""
    wrong = [row for row in predictions if row["predicted"] != row["label"]]
    return sorted(wrong, key=lambda row: (float(row[f"prob_{row['label']}"]), row["image_id"]))[:count]


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
