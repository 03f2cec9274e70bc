"""Looks at a set of test pictures: the test and the interval of one look, and what so many pictures can see.

A gain is 1 if the challenger alone is right, -1 if the champion alone is right, else 0.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from scipy.special import ndtri, stdtrit
from scipy.stats import binom

from pipeline.evaluation.intervals import Array

LEVEL = 0.05  # of every test that is no look: of a class, and whether a challenger is worse or not inferior
_GRID = 1 << 15  # cells of the distribution of a sum that is not one of small whole numbers
_SPREAD = 1500  # cells of its standard deviation, so that a sum beyond the grid has a probability below 1e-25
_STEPS = 40  # of a bisection


@dataclass(frozen=True)
class Evidence:
    """What the judged pictures say about the difference of the metric, challenger minus champion.

    `interval`: at the level of the look; `wide`: at `LEVEL`, so at 90 %; `even_low`: the low end of `wide` if as many answers differed
    and neither side gained; `better_p`, `worse_p`: of `sign_flip_p`; `size`: the effective number of pictures; `disagreement`: the share
    of pictures that one side alone has right.
    """

    difference: float
    interval: tuple[float, float]
    wide: tuple[float, float]
    even_low: float
    better_p: float
    worse_p: float
    size: float
    disagreement: float

    def is_better(self, margin: float, alpha: float) -> bool:
        """Whether it is shown, at the level of the look, that the challenger is better by more than the margin."""
        return self.better_p <= alpha and self.interval[0] > margin

    def is_worse(self) -> bool:
        """Whether it is shown, at `LEVEL`, that the challenger is worse."""
        return self.worse_p <= LEVEL and self.wide[1] < 0

    def is_not_inferior(self, tolerance: float) -> bool:
        """Whether it is shown, at `LEVEL`, that the challenger is not worse by the tolerance.

        If the pictures are too few to show that of equal models, it is enough that the challenger is not worse on them.
        """
        return self.wide[0] > -tolerance or (self.even_low <= -tolerance and self.difference >= 0)


def weigh(gains: Array, strata: Array, groups: Array, alpha: float) -> Evidence:
    """The evidence of one look at a one-sided level. `gains`, `strata`, `groups`: as in `effective_size`."""
    counts = np.bincount(strata)[strata]
    sums = np.bincount(groups, gains * (counts.max() / counts) if np.ptp(counts) else gains)
    sums = sums[sums != 0]
    gained, lost = (stratified_mean(gains == sign, strata) for sign in (1, -1))
    size, wide_size = (effective_size(gains, strata, groups, 1 - 2 * level) for level in (alpha, LEVEL))
    half = (gained + lost) / 2
    return Evidence(
        difference=gained - lost,
        interval=score_interval(gained, lost, size, 1 - 2 * alpha),
        wide=score_interval(gained, lost, wide_size, 1 - 2 * LEVEL),
        even_low=score_interval(half, half, wide_size, 1 - 2 * LEVEL)[0],
        better_p=sign_flip_p(sums),
        worse_p=sign_flip_p(-sums),
        size=size,
        disagreement=gained + lost,
    )


def sign_flip_p(gains: Array) -> float:
    """How likely a sum of gains is that is at least as high, if every group's gain may as well be a loss of the same size.

    `gains`: (groups,), the sum of each group. Of whole numbers it is exact: McNemar's exact test, one-sided, if every group is one
    picture. Other gains are rounded to a grid, which keeps the level, since a rounded gain is as likely a loss as the gain was.
    """
    sizes = gains[gains != 0]
    if len(sizes) == 0:
        return 1.0
    whole = np.rint(sizes)
    if not (np.array_equal(whole, sizes) and np.abs(whole).sum() < _GRID / 2):
        whole = np.rint(sizes * (_SPREAD / np.sqrt((sizes**2).sum())))
    unique, counts = np.unique(np.abs(whole), return_counts=True)
    return _tail(tuple(map(int, unique)), tuple(map(int, counts)), int(whole.sum()))


@lru_cache(100_000)
def _tail(sizes: tuple[int, ...], counts: tuple[int, ...], total: int) -> float:
    """The probability that the sum of so many signed sizes is `total` or more."""
    distribution = _distribution(sizes, counts)
    return float(np.clip(distribution[max(0, total + len(distribution) // 2) :].sum(), 0, 1))


@lru_cache(100)
def _distribution(sizes: tuple[int, ...], counts: tuple[int, ...]) -> Array:
    """The probabilities of the sums of so many signed sizes, 0 in the middle."""
    most = sum(size * count for size, count in zip(sizes, counts, strict=True))
    cells = min(_GRID, 1 << (2 * most + 1).bit_length())
    # The characteristic function of a random sign times a size is a cosine.
    angles = 2 * np.pi * np.arange(cells // 2 + 1) / cells
    product = np.ones(len(angles))
    for size, count in zip(sizes, counts, strict=True):
        product *= np.cos(size * angles) ** count
    return np.fft.fftshift(np.fft.irfft(product, cells))


def score_interval(gained: float, lost: float, size: float, confidence: float) -> tuple[float, float]:
    """Tango's score interval (1998) of a paired difference of proportions, with half a picture as correction for continuity.

    `gained`, `lost`: the shares of the pictures that one side alone has right; `size`: the number of pictures, which need not be whole.
    -1 to 1 if that is below 1.
    """
    # The variance is that of the difference that is tried, so that few differing answers do not make the interval narrow. The
    # correction makes the interval agree with the exact test, also far out in the tails, where one look of many is decided: with half a
    # picture it is sound, and never hides what the exact test shows.
    if size < 1:
        return -1.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    return _lower_end(gained, lost, size, z), -_lower_end(lost, gained, size, z)


@lru_cache(100_000)
def _lower_end(gained: float, lost: float, size: float, z: float) -> float:
    difference = gained - lost
    low, high = -1.0, difference
    for _ in range(_STEPS):
        tried = (low + high) / 2
        # The most likely share that is lost, if the difference is the one tried.
        linear = (2 - difference) * tried - gained - lost
        root = sqrt(max(linear**2 + 8 * lost * tried * (1 - tried), 0.0))
        share = min(max((root - linear) / 4, 0.0, -tried), (1 - tried) / 2)
        variance = max(2 * share + tried * (1 - tried), 0.0) / size
        if difference - tried - 0.5 / size > z * sqrt(variance):
            low = tried
        else:
            high = tried
    return low


def effective_size(gains: Array, strata: Array, groups: Array, confidence: float) -> float:
    """The number of single pictures that measure the mean of the strata's mean gains as precisely. 0 if all are one group.

    `gains`: (pictures,); `strata`: int (pictures,), one for a mean over all pictures, the labels for a mean over classes; `groups`: int
    (pictures,). Both count from 0 without a gap. It includes Student's quantile in place of the normal one, since the variance between
    few groups is uncertain.
    """
    drawn = int(groups.max()) + 1
    if drawn == 1:
        return 0.0
    # As if the answers to one more picture of each stratum differed: otherwise a small class without a difference has no variance, and
    # its rare losses, which weigh much, would be missed.
    sizes = np.bincount(strata)
    gained, lost = (np.bincount(strata, gains == sign) for sign in (1, -1))
    shares = [(each + 1 / 2) / (sizes + 1) for each in (gained, lost)]
    spread = shares[0] + shares[1] - (shares[0] - shares[1]) ** 2
    variance = (spread / sizes).sum() / len(sizes) ** 2
    gained_share, lost_share = (each.mean() for each in shares)
    size = (gained_share + lost_share - (gained_share - lost_share) ** 2) / variance
    if drawn == len(gains):
        return float(size)
    means = (gained - lost) / sizes
    residuals = (gains - means[strata]) / (sizes[strata] * len(sizes))
    # As if all answers to one more group differed, in one direction: otherwise rare groups that are lost in whole would be missed.
    between = (np.bincount(groups, residuals) ** 2).sum() + 1 / drawn**2
    within = (residuals**2).sum() + 1 / (drawn * len(gains))
    upper = (1 + confidence) / 2
    return float(size / max(1.0, between / within * drawn / (drawn - 1)) * (ndtri(upper) / stdtrit(drawn - 1, upper)) ** 2)


def stratified_mean(values: Array, strata: Array) -> float:
    """The mean of the strata's means. `values`: (pictures,); `strata`: int (pictures,), from 0 without a gap."""
    return float((np.bincount(strata, values) / np.bincount(strata)).mean())


def power(pictures: int, gain: float, disagreement: float, alpha: float) -> float:
    """The probability that McNemar's exact test, one-sided at level `alpha`, shows a gain, by binomial sums.

    `gain`: of the accuracy, 0 to 1; `disagreement`: the share of pictures that one side alone has right. It is at least the gain.
    """
    disagreement = min(1.0, max(disagreement, gain))
    if pictures < 1 or disagreement == 0:
        return 0.0
    fewest, most = binom.ppf((1e-9, 1 - 1e-9), pictures, disagreement)
    differing = np.arange(fewest, most + 1)
    # The fewest that the challenger alone must have right.
    needed = binom.isf(alpha, differing, 0.5) + 1
    shown = binom.sf(needed - 1, differing, (1 + gain / disagreement) / 2)
    return float((binom.pmf(differing, pictures, disagreement) * shown).sum())


def detectable_gain(pictures: int, disagreement: float, alpha: float, power_wanted: float = 0.8) -> float | None:
    """The smallest gain, in steps of 0.001, that is shown with the wanted power; None if none is.

    The other arguments are those of `power`.
    """
    low, high = 0, 1000
    if power(pictures, 1.0, disagreement, alpha) < power_wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        is_seen = power(pictures, middle / 1000, disagreement, alpha) >= power_wanted
        low, high = (low, middle) if is_seen else (middle, high)
    return high / 1000
