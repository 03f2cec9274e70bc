"""How far a figure can be trusted: intervals for one model, paired tests for two."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]

RESAMPLES = 2000


def wilson_interval(right: int, count: int, confidence: float) -> Interval:
    """Wilson's score interval of a proportion."""
    interval = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(statistic: Callable[[Array], Any], count: int, confidence: float, seed: int) -> tuple[Any, Any]:
    """The percentile bootstrap interval of a statistic of the numbers of pictures, int (count,), drawn with replacement.

    A statistic may be an array; its interval is then a pair of arrays. Draws in which it is NaN do not count.
    """
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, count, count)) for _ in range(RESAMPLES)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # what is never defined has no interval
        low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def paired_difference(first: Array, second: Array, confidence: float, seed: int) -> tuple[float, Interval]:
    """How much more of the same pictures the second model gets right (bool arrays), with a paired bootstrap interval."""
    gains = second.astype(float) - first.astype(float)
    low, high = bootstrap_interval(lambda drawn: gains[drawn].mean(), len(gains), confidence, seed)
    return float(gains.mean()), (float(low), float(high))


def mcnemar_p(first: Array, second: Array) -> float:
    """McNemar's exact test, two-sided: how likely so uneven a split of the differing answers is if neither is better."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
