"""Metrics of a classifier with their intervals, overall and per class, and the tables that contain them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.files import write_table
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error, without_temperature
from pipeline.evaluation.intervals import (
    Array,
    Bootstrap,
    Interval,
    f1_interval,
    logit_interval,
    mean_interval,
    mean_of_proportions_interval,
    percentile_interval,
    proportion_interval,
)
from pipeline.pictures.manifest import Picture

Figure = dict[str, float | None]  # value, low, high; None if undefined
_ENDS = {"value": "", "low": "_low", "high": "_high"}
_AREAS = ("roc_auc", "pr_auc")
_AREA_SAMPLES = 500  # bootstrap samples for areas and F1, which cost the most
_CHUNK = 4_000_000  # numbers per intermediate array
_LEAST_PROB = np.finfo(np.float32).eps
_MOST_LOSS = float(-np.log(_LEAST_PROB))
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
    """Per class: the harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn). float (…, classes); takes a stack of matrices."""
    return _ratio(2 * np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-2) + matrix.sum(axis=-1))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """NaN if the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator))


def balanced_accuracy(matrix: Array) -> float:
    """The mean recall of the classes that have pictures, 0 to 1."""
    return float(np.nanmean(recall_per_class(matrix)))


def macro_f1(matrix: Array) -> Array:
    """The mean F1 of the classes that have pictures or predictions, 0 to 1: float (), or (samples,) for a stack of matrices."""
    return np.asarray(np.nanmean(f1_per_class(matrix), axis=-1))


def log_losses(labels: Array, probs: Array) -> Array:
    """Per picture: -log of the probability of its true class, in nats. Probabilities below float32's epsilon count as epsilon."""
    true_probs = probs[np.arange(len(labels)), labels].astype(float)
    return np.asarray(-np.log(np.clip(true_probs, _LEAST_PROB, 1)))


def brier_scores(labels: Array, probs: Array) -> Array:
    """Per picture: the squared distance between the probabilities and the one-hot label, over all classes (Brier, 1950): 0 to 2."""
    truth = np.arange(probs.shape[1]) == labels[:, None]
    return np.asarray(((probs.astype(float) - truth) ** 2).sum(axis=1))


def among_the_first(labels: Array, probs: Array, k: int) -> Array:
    """Per picture: whether its class is among the k most probable ones. Among equal probabilities the first class wins. bool."""
    true_probs = probs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    return np.asarray(((probs > true_probs) | ((probs == true_probs) & earlier)).sum(axis=1) < k)


def ranking_areas(labels: Array, probs: Array, counts: Array) -> tuple[Array, Array]:
    """ROC AUC and average precision per class, one against the rest: each float (samples, classes).

    `counts`: float (samples, pictures), how often each picture is in a sample; ones for the pictures themselves. NaN if a sample
    contains no picture of the class, or nothing else.
    """
    pairs = [_class_areas(labels == index, probs[:, index], counts) for index in range(probs.shape[1])]
    roc, precision = (np.stack(areas, axis=1) for areas in zip(*pairs, strict=True))
    return roc, precision


def macro(areas: Array) -> Array:
    """Per sample: the mean area of the classes that have one. float (samples,)."""
    there = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, areas, 0).sum(axis=1) / there.sum(axis=1))


@dataclass(frozen=True)
class _Steps:
    """The runs of equal scores that contain a picture of the class. Pictures are sorted by descending score.

    Both curves change direction only at the end of such a run, so that neither area needs the other runs.
    """

    hits: Array  # positions of the pictures of the class
    firsts: Array  # per run: the index in `hits` of its first one
    starts: Array  # per run: its first position
    ends: Array  # per run: its last position


def _class_areas(is_class: Array, scores: Array, counts: Array) -> tuple[Array, Array]:
    """Both areas of one class: each float (samples,)."""
    order = np.argsort(-scores, kind="stable")
    edges = np.flatnonzero(np.diff(scores[order], prepend=np.inf, append=-np.inf))
    hits = np.flatnonzero(is_class[order])
    runs, firsts = np.unique(np.searchsorted(edges, hits, side="right") - 1, return_index=True)
    steps = _Steps(hits, firsts, edges[runs], edges[runs + 1] - 1)
    size = max(1, _CHUNK // len(order))
    parts = [_areas_of_steps(counts[start : start + size, order], steps) for start in range(0, len(counts), size)]
    roc, precision = (np.concatenate(areas) for areas in zip(*parts, strict=True))
    return roc, precision


def _areas_of_steps(counts: Array, steps: _Steps) -> tuple[Array, Array]:
    """The areas by the trapezoidal rule (ROC) and by steps (average precision), as scikit-learn defines them for weighted pictures."""
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


def drawn_matrices(labels: Array, predicted: Array, counts: Array, num_classes: int) -> Array:
    """The confusion matrix of each bootstrap sample: float (samples, classes, classes). `counts`: of a `Bootstrap`."""
    cells, where = np.unique(labels * num_classes + predicted, return_inverse=True)
    order = np.argsort(where, kind="stable")
    sums = np.add.reduceat(counts[:, order], np.searchsorted(where[order], np.arange(len(cells))), axis=1)
    matrices = np.zeros((len(counts), num_classes**2))
    matrices[:, cells] = sums
    return matrices.reshape(-1, num_classes, num_classes)


def score(
    labels: Array, probs: Array, groups: Array, class_names: Sequence[str], temperature: float, confidence: float, seed: int
) -> dict[str, Any]:
    """All figures with their intervals: `{"figures": {name: figure}, "classes": {class name: {name: figure}}}`.

    `labels`: int (pictures,); `probs`: float (pictures, classes); `groups`: see `intervals`; `seed`: of the bootstrap. Figures whose
    names end in `_unscaled` are those of the probabilities before temperature scaling.
    """
    predicted = probs.argmax(axis=1)
    correct, matrix = predicted == labels, confusion_matrix(labels, predicted, len(class_names))
    bootstrap = Bootstrap(groups, seed)
    few, widening = bootstrap.counts[:_AREA_SAMPLES], bootstrap.widening(confidence)
    areas, area_draws = ranking_areas(labels, probs, np.ones((1, len(labels)))), ranking_areas(labels, probs, few)
    f1_draws = macro_f1(drawn_matrices(labels, predicted, few, len(class_names)))
    figures = {
        "top1_accuracy": _figure(top1_accuracy(matrix), proportion_interval(correct, groups, confidence)),
        **_top_k(labels, probs, groups, confidence),
        "balanced_accuracy": _figure(balanced_accuracy(matrix), mean_of_proportions_interval(correct, labels, groups, confidence)),
        "macro_f1": _figure(float(macro_f1(matrix)), percentile_interval(f1_draws, confidence, widening)),
        **{
            name: _figure(macro(area)[0], logit_interval(macro(area)[0], macro(draws), confidence, widening))
            for name, area, draws in zip(_AREAS, areas, area_draws, strict=True)
        },
        **_probability_figures(labels, probs, bootstrap, confidence, ""),
        **_probability_figures(labels, without_temperature(probs, temperature), bootstrap, confidence, "_unscaled"),
    }
    classes = _classes(labels, predicted, groups, class_names, confidence)
    for index, facts in enumerate(classes.values()):
        for name, area, draws in zip(_AREAS, areas, area_draws, strict=True):
            facts[name] = _figure(area[0, index], logit_interval(area[0, index], draws[:, index], confidence, widening))
    return {"figures": figures, "classes": classes}


def _top_k(labels: Array, probs: Array, groups: Array, confidence: float) -> dict[str, Figure]:
    """Top-5 accuracy; nothing if there are ten classes or fewer, where it says little."""
    if probs.shape[1] <= 2 * _TOP:
        return {}
    correct = among_the_first(labels, probs, _TOP)
    return {f"top{_TOP}_accuracy": _figure(float(correct.mean()), proportion_interval(correct, groups, confidence))}


def _probability_figures(labels: Array, probs: Array, bootstrap: Bootstrap, confidence: float, suffix: str) -> dict[str, Figure]:
    """Log loss, Brier score and ECE."""
    losses = {"log_loss": (log_losses(labels, probs), _MOST_LOSS), "brier": (brier_scores(labels, probs), 2.0)}
    means = {name: _figure(float(each.mean()), mean_interval(each, bootstrap, confidence), most) for name, (each, most) in losses.items()}
    ece = _figure(expected_calibration_error(labels, probs), ece_interval(labels, probs, bootstrap, confidence))
    return {f"{name}{suffix}": figure for name, figure in {**means, "ece": ece}.items()}


def _classes(labels: Array, predicted: Array, groups: Array, class_names: Sequence[str], confidence: float) -> dict[str, dict[str, Any]]:
    """Per class: precision, recall and F1 with their intervals, and `support`, its number of pictures."""
    classes: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(class_names):
        is_class, is_predicted = labels == index, predicted == index
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


def write_predictions(path: Path, pictures: Sequence[Picture], probs: Array, class_names: Sequence[str]) -> None:
    """Write a row per picture: image_id, group, label, predicted class, and the probability of every class to six decimal places."""
    rows = [
        {
            "image_id": picture.image_id,
            "group": picture.group,
            "label": picture.label,
            "predicted": class_names[int(row.argmax())],
            **{f"prob_{name}": f"{prob:.6f}" for name, prob in zip(class_names, row, strict=True)},
        }
        for picture, row in zip(pictures, probs, strict=True)
    ]
    write_table(path, list(rows[0]), rows)


def most_doubted(predictions: Sequence[Mapping[str, str]], count: int) -> list[Mapping[str, str]]:
    """At most `count` rows of predictions.csv whose predicted class is not the label, the least probable labels first."""
    wrong = [row for row in predictions if row["predicted"] != row["label"]]
    return sorted(wrong, key=lambda row: (float(row[f"prob_{row['label']}"]), row["image_id"]))[:count]


def write_matrix(path: Path, matrix: Array, class_names: Sequence[str]) -> None:
    """Write a row per true class and a column per predicted class, with their names. Shares have six decimal places."""
    columns = ["true/predicted", *class_names]  # no class has a slash in its name
    cells = np.round(matrix, 6).tolist()
    write_table(path, columns, [dict(zip(columns, [name, *row], strict=True)) for name, row in zip(class_names, cells, strict=True)])


def write_classes(path: Path, classes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a row per class: its number of test pictures, and each figure with its interval. Undefined ones are empty."""
    rows = [
        {"class": name, "support": facts["support"], **flat({key: facts[key] for key in facts if key != "support"})}
        for name, facts in classes.items()
    ]
    write_table(path, list(rows[0]), [{key: "" if value is None else value for key, value in row.items()} for row in rows])
