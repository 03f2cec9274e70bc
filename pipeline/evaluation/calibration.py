"""Calibration: reliability by bin, expected calibration error (ECE), accuracy by coverage."""

import numpy as np

from pipeline.evaluation.answers import Answers
from pipeline.evaluation.intervals import UNDEFINED, Array, Bootstrap, Interval, proportion_interval, tails

TableRow = dict[str, float]
BINS = 15
_STEPS = 60  # true values that the interval of the ECE tries


def reliability(answers: Answers, groups: Array, confidence: float) -> list[TableRow]:
    """A row per bin of the confidence, 15 of equal width: number of pictures, mean confidence (`probability`), accuracy.

    `accuracy` has an interval. Bins without pictures are left out.
    """
    top_probs, correct = answers.top_probs, answers.correct
    bins = _bins(top_probs)
    rows = []
    for number in np.unique(bins):
        inside = bins == number
        low, high = proportion_interval(correct[inside], groups[inside], confidence)
        means = {"probability": float(top_probs[inside].mean()), "accuracy": float(correct[inside].mean())}
        rows.append({"from": number / BINS, "to": (number + 1) / BINS, "pictures": int(inside.sum()), **means,
                     "accuracy_low": low, "accuracy_high": high})  # fmt: skip
    return rows


def expected_calibration_error(answers: Answers) -> float:
    """ECE over 15 bins of equal width (Guo et al., 2017): the average gap between confidence and accuracy, 0 to 1."""
    return float(np.abs(_gaps(answers).mean(axis=0)).sum())


def ece_interval(answers: Answers, bootstrap: Bootstrap, confidence: float) -> Interval:
    """The interval of the ECE: the true values for which the measured one is not unusual. NaN if the gaps do not vary."""
    # The ECE sums absolute gaps, and noise makes them larger: a sample's ECE exceeds the true one, and a bootstrap sample's exceeds
    # both. Percentiles of bootstrap samples would miss the true value, so the test is inverted: assume a true ECE, add bootstrap noise
    # to its gaps, and keep the assumed values for which the measured ECE is between the tails of what comes out.
    gaps = bootstrap.sums(_gaps(answers))
    sizes = bootstrap.sums(np.eye(BINS)[_bins(answers.top_probs)])
    filled = (sizes > 0).sum(axis=0)  # groups per bin
    there = filled > 0
    gaps, filled = gaps[:, there], filled[there]
    mean = gaps.sum(axis=0) / len(answers.labels)
    sums, pictures = bootstrap.drawn_sums(gaps, sizes.sum(axis=1))
    bessel = np.sqrt(filled / np.maximum(filled - 1, 0.5))  # Bessel's correction, per bin
    noise = (sums / pictures[:, None] - mean) * bessel * bootstrap.widening(confidence)
    spread = np.where(mean < 0, -1, 1) * noise.std(axis=0)  # assumed gaps: the signs as measured, the sizes in proportion to the noise
    measured, unit = np.abs(mean).sum(), np.abs(spread).sum()
    if unit == 0:
        return UNDEFINED
    assumed = np.linspace(0, 1.5 * measured + 3 * unit, _STEPS)
    drawn = np.abs(assumed[:, None, None] / unit * spread + noise).sum(axis=2)
    low, high = np.quantile(drawn, tails(confidence), axis=1)
    return float(np.interp(measured, high, assumed)), min(1.0, float(np.interp(measured, low, assumed)))


def coverage(answers: Answers, groups: Array, confidence: float) -> list[TableRow]:
    """Accuracy by coverage: a row per percent of the pictures answered, the most confident answers first.

    `threshold`: the lowest confidence among the answered pictures; `accuracy`: of these pictures, with its interval.
    """
    top_probs, correct = answers.top_probs, answers.correct
    order = np.argsort(-top_probs, kind="stable")
    correct, groups = correct[order], groups[order]
    rows = []
    for answered in np.unique(np.ceil(np.linspace(0.01, 1, 100) * len(correct) - 1e-9).astype(int)):  # 1e-9: 0.07 * 100 is above 7
        low, high = proportion_interval(correct[:answered], groups[:answered], confidence)
        rows.append({"coverage": answered / len(correct), "threshold": float(top_probs[order[answered - 1]]),
                     "accuracy": float(correct[:answered].mean()), "accuracy_low": low, "accuracy_high": high})  # fmt: skip
    return rows


def _bins(top_probs: Array) -> Array:
    """The bin of each confidence: int (pictures,)."""
    return np.asarray(np.minimum((top_probs * BINS).astype(int), BINS - 1))


def _gaps(answers: Answers) -> Array:
    """Per picture, in the column of its bin: 1 if the answer is correct, else 0, minus its confidence. float (pictures, bins)."""
    gaps = np.zeros((len(answers.labels), BINS))
    gaps[np.arange(len(gaps)), _bins(answers.top_probs)] = answers.correct - answers.top_probs
    return gaps
