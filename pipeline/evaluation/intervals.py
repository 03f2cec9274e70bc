"""Confidence intervals of one model's figures, and paired tests of two models."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]  # low, high; NaN if it is undefined
RESAMPLES = 2000
UNDEFINED = (float("nan"), float("nan"))


def wilson_interval(hits: int, count: int, confidence: float) -> Interval:
    """Wilson's score interval of the proportion hits / count; NaN if the count is 0."""
    from scipy.stats import binomtest

    if count == 0:
        return UNDEFINED
    interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_of_proportions_interval(hits: Array, counts: Array, confidence: float) -> Interval:
    """The interval of the mean of several proportions: Wilson's with an effective sample size.

    `hits`, `counts`: int (proportions,). Proportions with a count of 0 are left out.
    """
    from scipy.special import ndtri

    hits, counts = hits[counts > 0], counts[counts > 0]
    # The effective size is the number of draws from one proportion whose mean varies as much. The variance uses proportions that are
    # shrunk towards 1/2 by half a draw each: with hits / counts it is 0 if all are perfect, and the interval is [1, 1].
    shrunk = (hits + 0.5) / (counts + 1)
    variance = (shrunk * (1 - shrunk) / counts).sum() / len(counts) ** 2
    size = shrunk.mean() * (1 - shrunk.mean()) / variance
    mean, z = (hits / counts).mean(), ndtri((1 + confidence) / 2)
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(mean * (1 - mean) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return float(centre - half), float(centre + half)


def f1_interval(hits: int, misses: int, confidence: float) -> Interval:
    """The interval of a class's F1, from Wilson's interval of its Jaccard index J = hits / (hits + misses).

    `misses`: the pictures of the class that were not predicted as it, plus the pictures predicted as it by mistake.
    """
    low, high = wilson_interval(hits, hits + misses, confidence)
    return 2 * low / (1 + low), 2 * high / (1 + high)  # F1 = 2 J / (1 + J), which rises with J


def draw_counts(count: int, seed: int) -> Array:
    """How often each of `count` pictures is in each of 2,000 bootstrap samples: float32 (samples, count)."""
    generator = np.random.default_rng(seed)
    counts = np.empty((RESAMPLES, count), np.float32)
    for sample in counts:
        sample[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return counts


def mean_interval(values: Array, counts: Array, confidence: float) -> Interval:
    """The interval of a mean by the studentised bootstrap (bootstrap-t: Efron, 1982). NaN if the values do not vary.

    `values`: float (pictures,); `counts`: from `draw_counts`.
    """
    # Losses are skewed: a few large ones decide the mean. The percentile bootstrap is then too narrow above, and the distribution of
    # (sample mean - mean) / sample deviation follows the skew.
    size, mean, deviation = len(values), values.mean(), values.std()
    centred = values - mean
    shifts = counts @ centred / size
    deviations = np.sqrt(np.maximum(counts @ centred**2 / size - shifts**2, 0))
    varied = deviations > 1e-9 * deviation
    if not varied.any():
        return UNDEFINED
    low, high = np.quantile(shifts[varied] / deviations[varied], tails(confidence))
    return float(mean - high * deviation), float(mean - low * deviation)


def percentile_interval(draws: Array, confidence: float) -> Interval:
    """The percentile interval of a figure's bootstrap draws, float (samples,), without draws that are NaN.

    NaN if the draws do not vary: a figure that is perfect in every sample may still be imperfect in general.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0 or np.ptp(draws) < 1e-12:
        return UNDEFINED
    low, high = np.quantile(draws, tails(confidence))
    return float(low), float(high)


def logit_interval(value: float, draws: Array, confidence: float) -> Interval:
    """The interval of an area under a curve: normal on the logit scale (Pepe, 2003), with the deviation of its bootstrap draws.

    `draws`: float (samples,). NaN if they do not vary, or if the area is 0 or 1.
    """
    from scipy.special import expit, logit, ndtri

    # Areas are often close to 1. Percentiles never exceed the best draw, so they miss the true value too often; the logit has no bound.
    deviation = np.nanstd(draws) if np.isfinite(draws).any() else 0.0
    if deviation < 1e-12 or not 0 < value < 1:
        return UNDEFINED
    half = ndtri((1 + confidence) / 2) * deviation / (value * (1 - value))  # the slope of the logit is 1 / (value (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def paired_difference(first: Array, second: Array, confidence: float, seed: int) -> tuple[float, Interval]:
    """The second model's accuracy minus the first's on the same pictures, with a paired bootstrap interval.

    `first`, `second`: bool (pictures,), whether each answer is correct. If the two never differ, the interval is Wilson's upper
    bound on how often they might, in both directions.
    """
    gains = second.astype(float) - first.astype(float)
    if not gains.any():
        _, most = wilson_interval(0, len(gains), confidence)
        return 0.0, (-most, most)
    draws = draw_counts(len(gains), seed) @ gains / len(gains)
    low, high = np.quantile(draws, tails(confidence))
    return float(gains.mean()), (float(low), float(high))


def mcnemar_p(first: Array, second: Array) -> float:
    """The p-value of McNemar's exact test, two-sided: how likely so uneven a split of the differing answers is by chance.

    `first`, `second`: bool (pictures,), whether each answer is correct. 1 if the two never differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def tails(confidence: float) -> list[float]:
    """The quantiles that bound the central share `confidence` of a distribution."""
    return [(1 - confidence) / 2, (1 + confidence) / 2]
