"""What can be said of new pictures without their labels: the shares of the classes, and the accuracy. Each with its assumption."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.drift.reference import Reference, Sample
from pipeline.evaluation.intervals import Array, Bootstrap, Interval, percentile_interval, proportion_interval

METHOD = "doc"  # of the accuracy; bench/drift.py compares the three
ASSUMPTIONS = {
    "confidence": "the probabilities are as well calibrated on the new pictures as they should be on the test pictures",
    "atc": "the share of pictures above a threshold of confidence is the accuracy, as on the test pictures (Garg et al., 2022)",
    "doc": "the accuracy falls by as much as the mean confidence does (Guillory et al., 2021)",
}
_DRAWS = 400
_MOST_CLASSES = 100  # of which shares of true classes are estimated
_MOST_CONDITION = 20.0  # of a confusion matrix: beyond it, an error of the shares is multiplied by more


def class_shares(reference: Reference, sample: Sample, confidence: float) -> list[dict[str, Any]]:
    """Per class: the share of it among the predictions for the reference and for the new pictures, with an interval.

    Keys: `class`, `reference`, `value`, `low`, `high`.
    """
    rows = []
    for number, name in enumerate(reference.class_names):
        is_class = sample.predicted == number
        low, high = proportion_interval(is_class, sample.groups, confidence)
        shares = {"reference": float((reference.sample.predicted == number).mean()), "value": float(is_class.mean())}
        rows.append({"class": name, **shares, "low": low, "high": high})
    return rows


def estimate_shares(reference: Reference, sample: Sample, confidence: float, seed: int = 0) -> tuple[list[dict[str, float | None]], str]:
    """Per class: its true share among the new pictures, by black-box shift estimation (Lipton et al., 2018), and why there is none.

    It assumes that pictures of a class look as before. Keys: `reference` (the share of the labels), `value`, `low`, `high`. Either the
    rows or the reason is empty.
    """
    count = len(reference.class_names)
    matrix = _confusion(reference, np.ones(len(reference.labels)))
    if count > _MOST_CLASSES:
        return [], f"more than {_MOST_CLASSES} classes"
    if not matrix.sum(axis=0).all():
        return [], "a class has no test pictures"
    if np.linalg.cond(matrix / matrix.sum(axis=0)) > _MOST_CONDITION:
        return [], "the model confuses its classes too much"
    predicted = sample.predicted
    value = _solve(matrix, np.bincount(predicted, minlength=count) / len(predicted))
    draws = []
    old, new = Bootstrap(reference.sample.groups, seed), Bootstrap(sample.groups, seed + 1)
    for old_weights, new_weights in _both(old, new):
        drawn = _confusion(reference, old_weights)
        if drawn.sum(axis=0).all():
            draws.append(_solve(drawn, np.bincount(predicted, new_weights, count) / new_weights.sum()))
    widening = max(old.widening(confidence), new.widening(confidence))
    ends = [percentile_interval(column, confidence, widening) for column in np.array(draws).T]
    known = np.bincount(reference.labels, minlength=count) / len(reference.labels)
    return [{"reference": float(share), **_share(*found)} for share, *found in zip(known, value, ends, strict=True)], ""


def _share(value: float, ends: Interval) -> dict[str, float | None]:
    """A share with its interval, both within 0 and 1; None if the interval is undefined."""
    low, high = ends if np.isfinite(ends).all() else (None, None)
    kept = {"value": value, "low": low if low is None else min(low, value), "high": high if high is None else max(high, value)}
    return {name: end if end is None else float(np.clip(end, 0, 1)) for name, end in kept.items()}


def _both(old: Bootstrap, new: Bootstrap) -> Iterator[tuple[Array, Array]]:
    """How often each picture of both samples is in each of the bootstrap samples."""
    rows = [(row for block in each.counts(_DRAWS) for row in block) for each in (old, new)]
    yield from zip(*rows, strict=True)


def _confusion(reference: Reference, weights: Array) -> Array:
    """Weighted counts: float (classes, classes), the predicted class by the true one."""
    count = len(reference.class_names)
    keys = reference.sample.predicted * count + reference.labels
    return np.asarray(np.bincount(keys, weights, count * count).reshape(count, count))


def _solve(matrix: Array, predicted: Array) -> Array:
    """The shares of the true classes, none below 0, by which the shares of the predicted ones are explained best."""
    from scipy.optimize import nnls

    found = nnls(matrix / matrix.sum(axis=0), predicted)[0]
    return np.asarray(found / max(found.sum(), 1e-12))


def _by_confidence(new: Array, new_weights: Array, old: Array, correct: Array, old_weights: Array) -> float:
    return float(np.average(new, weights=new_weights))


def _by_difference(new: Array, new_weights: Array, old: Array, correct: Array, old_weights: Array) -> float:
    return float(np.average(correct, weights=old_weights) + np.average(new, weights=new_weights) - np.average(old, weights=old_weights))


def _by_threshold(new: Array, new_weights: Array, old: Array, correct: Array, old_weights: Array) -> float:
    order = np.argsort(old)
    below = np.cumsum(old_weights[order])
    wrong = ((1 - correct) * old_weights).sum()
    place = int(np.searchsorted(below, wrong, "right"))
    threshold = old[order][place] if place < len(old) else np.inf
    return float(np.average(new >= threshold, weights=new_weights))


METHODS: Mapping[str, Callable[[Array, Array, Array, Array, Array], float]] = {
    "confidence": _by_confidence,
    "atc": _by_threshold,
    "doc": _by_difference,
}


def estimate_accuracy(reference: Reference, sample: Sample, confidence: float, method: str = METHOD, seed: int = 0) -> dict[str, Any]:
    """The accuracy of these new pictures by one of METHODS, and that on the reference.

    Keys: `value`, `low`, `high` (by a bootstrap of the groups of both, and the chance of each answer), `reference`, `method`, `assumption`.
    """
    old, new = reference.sample.confidence, sample.confidence
    correct = (reference.sample.predicted == reference.labels).astype(float)
    estimate = METHODS[method]
    value = estimate(new, np.ones(len(new)), old, correct, np.ones(len(old)))
    samples = Bootstrap(reference.sample.groups, seed), Bootstrap(sample.groups, seed + 1)
    draws = np.array([estimate(new, weights, old, correct, old_weights) for old_weights, weights in _both(*samples)])
    # What is estimated is the accuracy of these pictures, which differs from that of all such pictures by chance.
    chance = np.sqrt((new * (1 - new)).mean() / samples[1].drawn)
    draws += np.random.default_rng(seed + 2).normal(0, chance, len(draws))
    ends = percentile_interval(draws, confidence, max(each.widening(confidence) for each in samples))
    return {**_share(value, ends), "reference": float(correct.mean()), "method": method, "assumption": ASSUMPTIONS[method]}
