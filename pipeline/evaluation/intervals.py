"""Confidence intervals of one model's figures, and paired tests of two models."""

from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit, logit

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]
RESAMPLES = 2000
UNDEFINED = (float("nan"), float("nan"))


def wilson_interval(right: int, count: int, confidence: float) -> Interval:
    """Wilson's score interval of a proportion; NaN where there is nothing to count."""
    if count == 0:
        return UNDEFINED
    interval = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_of_proportions_interval(right: Array, count: Array, confidence: float) -> Interval:
    """The interval of the mean of proportions: Wilson's, for as many pictures as would make one proportion vary as much.

    `right`, `count`: int (proportions,); those of nothing do not count. The variance is that of proportions drawn half a
    picture towards 1/2 each, so that it is not 0 where all are right (a bootstrap would say [1, 1] there).
    """
    right, count = right[count > 0], count[count > 0]
    drawn_in = (right + 0.5) / (count + 1)
    variance = (drawn_in * (1 - drawn_in) / count).sum() / len(count) ** 2
    size = drawn_in.mean() * (1 - drawn_in.mean()) / variance
    mean, z = (right / count).mean(), stats.norm.ppf((1 + confidence) / 2)
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(mean * (1 - mean) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return float(centre - half), float(centre + half)


def f1_interval(hits: int, misses: int, confidence: float) -> Interval:
    """The interval of a class's F1: Wilson's of its Jaccard index J (hits among hits and misses), as F1 = 2 J / (1 + J).

    `misses`: pictures that are of the class or were answered so, but not both.
    """
    low, high = wilson_interval(hits, hits + misses, confidence)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def draw_counts(count: int, seed: int) -> Array:
    """How often each of `count` pictures is in each of 2,000 bootstrap samples: float32 (samples, count)."""
    generator = np.random.default_rng(seed)
    counts = np.empty((RESAMPLES, count), np.float32)
    for sample in counts:
        sample[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return counts


def mean_interval(values: Array, counts: Array, confidence: float) -> Interval:
    """The interval of a mean by the studentised bootstrap (bootstrap-t: Efron, 1982), which follows the skew of losses.

    `values`: float (pictures,); `counts`: what `draw_counts` gives.
    """
    size, mean, deviation = len(values), values.mean(), values.std()
    centred = values - mean
    shifts = counts @ centred / size
    deviations = np.sqrt(np.maximum(counts @ centred**2 / size - shifts**2, 0))
    varied = deviations > 1e-9 * deviation
    if not varied.any():
        return UNDEFINED
    low, high = np.quantile(shifts[varied] / deviations[varied], _tails(confidence))
    return float(mean - high * deviation), float(mean - low * deviation)


def percentile_interval(draws: Array, confidence: float) -> Interval:
    """The percentile interval of a figure's bootstrap draws, float (samples,), without those in which it is NaN.

    NaN where the draws do not vary: what is perfect in every sample is not therefore perfect for sure.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0 or np.ptp(draws) < 1e-12:
        return UNDEFINED
    low, high = np.quantile(draws, _tails(confidence))
    return float(low), float(high)


def logit_interval(value: float, draws: Array, confidence: float) -> Interval:
    """The interval of an area: its logit, give or take what its bootstrap draws, float (samples,), vary (Pepe, 2003).

    Percentiles, which cannot go beyond the best draw, miss the truth of areas near 1 too often. NaN where the draws do not vary.
    """
    deviation = np.nanstd(draws) if np.isfinite(draws).any() else 0.0
    if deviation < 1e-12 or not 0 < value < 1:
        return UNDEFINED
    half = stats.norm.ppf((1 + confidence) / 2) * deviation / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def paired_difference(first: Array, second: Array, confidence: float, seed: int) -> tuple[float, Interval]:
    """How much more of the same pictures the second model gets right (bool (pictures,) each), with a paired bootstrap interval.

    Where the two never differ, the interval is Wilson's bound on how often they might, either way.
    """
    gains = second.astype(float) - first.astype(float)
    if not gains.any():
        _, most = wilson_interval(0, len(gains), confidence)
        return 0.0, (-most, most)
    draws = draw_counts(len(gains), seed) @ gains / len(gains)
    low, high = np.quantile(draws, _tails(confidence))
    return float(gains.mean()), (float(low), float(high))


def mcnemar_p(first: Array, second: Array) -> float:
    """McNemar's exact test, two-sided, of bool (pictures,) each: how likely so uneven a split of differing answers is by chance alone."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]
