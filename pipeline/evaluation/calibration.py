"""Calibration: reliability, expected calibration error, accuracy by coverage."""

from typing import Any

import numpy as np

from pipeline.evaluation.intervals import Interval, wilson_interval

Array = np.ndarray[Any, np.dtype[Any]]
TableRow = dict[str, float]
BINS = 15
_STEPS = 60  # at which the interval of the ECE is looked for


def without_temperature(probs: Array, temperature: float) -> Array:
    """What a model would say without its temperature: softmax(logits), from softmax(logits / temperature). float64."""
    logits = temperature * np.log(np.maximum(probs.astype(float), np.finfo(np.float32).tiny))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def reliability(labels: Array, probs: Array, confidence: float) -> list[TableRow]:
    """Of the pictures in each of 15 equal bins of the top probability: how many, how sure and how right on average.

    `accuracy` has Wilson's interval; bins without pictures are left out.
    """
    sure, right = probs.max(axis=1).astype(float), probs.argmax(axis=1) == labels
    bins = _bins(sure)
    rows = []
    for number in np.unique(bins):
        within = bins == number
        low, high = wilson_interval(int(right[within].sum()), int(within.sum()), confidence)
        means = {"probability": float(sure[within].mean()), "accuracy": float(right[within].mean())}
        rows.append({"from": number / BINS, "to": (number + 1) / BINS, "pictures": int(within.sum()), **means,
                     "accuracy_low": low, "accuracy_high": high})  # fmt: skip
    return rows


def expected_calibration_error(labels: Array, probs: Array) -> float:
    """ECE of the top answer over 15 bins of equal width (Guo et al., 2017): 0 to 1."""
    return float(np.abs(_gaps(labels, probs).mean(axis=0)).sum())


def ece_interval(labels: Array, probs: Array, counts: Array, confidence: float) -> Interval:
    """The interval of the ECE: the true values under which so large an error as was seen is not unusual.

    The ECE of a sample is larger than the true one, and so is that of a bootstrap sample again, so percentiles would
    miss it. Here bootstrap deviations (their variance corrected after Bessel, a bin each) are laid on gaps of growing
    size, spread over the bins as the noise is. `counts`: what `draw_counts` gives.
    """
    gaps, filled = _gaps(labels, probs), np.bincount(_bins(probs.max(axis=1)), minlength=BINS)
    there = filled > 0
    gaps, filled, size = gaps[:, there], filled[there], len(labels)
    mean = gaps.mean(axis=0)
    noise = (counts @ gaps / size - mean) * np.sqrt(filled / np.maximum(filled - 1, 0.5))
    spread = np.where(mean < 0, -1, 1) * noise.std(axis=0)
    found, unit = np.abs(mean).sum(), np.abs(spread).sum()
    if unit == 0:
        return float("nan"), float("nan")
    truths = np.linspace(0, 1.5 * found + 3 * unit, _STEPS)
    seen = np.abs(truths[:, None, None] / unit * spread + noise).sum(axis=2)
    least, most = np.quantile(seen, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return float(np.interp(found, most, truths)), min(1.0, float(np.interp(found, least, truths)))


def coverage(labels: Array, probs: Array, confidence: float) -> list[TableRow]:
    """What if the model answered only where it is surest: a row for each hundredth of the pictures, the surest first.

    `threshold` is the least top probability that is answered, `accuracy` (with Wilson's interval) that of what is answered.
    """
    sure, right = probs.max(axis=1).astype(float), probs.argmax(axis=1) == labels
    order = np.argsort(-sure, kind="stable")
    right_so_far = np.cumsum(right[order])
    rows = []
    for answered in np.unique(np.ceil(np.linspace(0.01, 1, 100) * len(labels) - 1e-9).astype(int)):
        low, high = wilson_interval(int(right_so_far[answered - 1]), int(answered), confidence)
        rows.append({"coverage": answered / len(labels), "threshold": float(sure[order[answered - 1]]),
                     "accuracy": float(right_so_far[answered - 1] / answered), "accuracy_low": low, "accuracy_high": high})  # fmt: skip
    return rows


def _bins(sure: Array) -> Array:
    """The bin of each top probability, int (pictures,)."""
    return np.asarray(np.minimum((sure * BINS).astype(int), BINS - 1))


def _gaps(labels: Array, probs: Array) -> Array:
    """A picture: in the column of its bin, how much more right than sure the answer is. float (pictures, bins)."""
    sure = probs.max(axis=1).astype(float)
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), _bins(sure)] = (probs.argmax(axis=1) == labels) - sure
    return gaps
