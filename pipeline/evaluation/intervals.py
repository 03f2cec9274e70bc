"""Confidence intervals of one model's figures, and paired tests of two models.

Pictures of one group, such as frames of one video, are alike, so a group is one draw: `groups` numbers them, int (pictures,).
"""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csc_array

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]  # low, high; NaN if it is undefined
RESAMPLES = 2000
_BLOCK = 4_000_000  # numbers of a block of bootstrap samples
_PRIOR = 1 / 3  # of a group, see `design_effect`: chosen by simulation, so that intervals contain the true value as often as stated
UNDEFINED = (float("nan"), float("nan"))


def proportion_interval(correct: Array, groups: Array, confidence: float) -> Interval:
    """Wilson's score interval of a proportion, for the effective number of pictures (Korn and Graubard, 1998). NaN without pictures.

    `correct`: bool (pictures,).
    """
    count = len(correct)
    if count == 0:
        return UNDEFINED
    share = correct.mean()
    effect = design_effect(correct, np.full(count, share), np.full(count, 1 / count), groups, confidence)
    return wilson_interval(share, count / effect, confidence)


def wilson_interval(share: float, size: float, confidence: float) -> Interval:
    """Wilson's score interval of a share of `size` pictures, which need not be a whole number."""
    from scipy.special import ndtri

    z = ndtri((1 + confidence) / 2)
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def design_effect(correct: Array, shares: Array, weights: Array, groups: Array, confidence: float) -> float:
    """How many times fewer single pictures would measure a mean as precisely as these groups do; 1 if every group is one picture.

    `correct`: bool (pictures,); `shares`: float (pictures,), the share of correct answers in the class of each; `weights`: float
    (pictures,), of each in the mean. The factor includes Student's quantile in place of the normal one, since the variance between few
    groups is itself uncertain.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    drawn = int(numbers.max()) + 1
    if drawn == len(groups):
        return 1.0
    if drawn == 1:
        return float(len(groups))
    # As if a third of one more group had half of its answers correct: otherwise, groups without a mistake look like single pictures.
    more = _PRIOR / drawn
    shrunk = (shares + more / 2) / (1 + more)
    between = (np.bincount(numbers, weights * (correct - shrunk)) ** 2).sum()
    between += _PRIOR * ((0.5 - (weights * shrunk).sum()) * weights.sum() / drawn) ** 2
    within = (weights**2 * shrunk * (1 - shrunk)).sum() * (1 + more)
    return float(max(1.0, between / within) * _widening(drawn, confidence) ** 2)


def _widening(drawn: int, confidence: float) -> float:
    """Student's quantile for so many groups, over the normal one."""
    from scipy.special import ndtri, stdtrit

    upper = (1 + confidence) / 2
    return float(stdtrit(drawn - 1, upper) / ndtri(upper))


def mean_of_proportions_interval(correct: Array, labels: Array, groups: Array, confidence: float) -> Interval:
    """The interval of the mean of the classes' proportions: Wilson's with an effective number of pictures.

    `correct`: bool (pictures,); `labels`: int (pictures,).
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    hits = np.bincount(classes, correct)
    # The effective size is the number of draws from one proportion whose mean varies as much. The variance uses proportions that are
    # shrunk towards 1/2 by half a draw each: with hits / counts it is 0 if all are perfect, and the interval is [1, 1].
    shrunk = (hits + 0.5) / (counts + 1)
    variance = (shrunk * (1 - shrunk) / counts).sum() / len(counts) ** 2
    size = shrunk.mean() * (1 - shrunk.mean()) / variance
    shares = hits / counts
    effect = design_effect(correct, shares[classes], 1 / (len(counts) * counts[classes]), groups, confidence)
    return wilson_interval(shares.mean(), size / effect, confidence)


def f1_interval(is_class: Array, predicted: Array, groups: Array, confidence: float) -> Interval:
    """The interval of a class's F1, from that of its Jaccard index J: the share of hits among pictures of the class or predicted as it.

    `is_class`, `predicted`: bool (pictures,).
    """
    either = is_class | predicted
    low, high = proportion_interval((is_class & predicted)[either], groups[either], confidence)
    return 2 * low / (1 + low), 2 * high / (1 + high)  # F1 = 2 J / (1 + J), which rises with J


class Bootstrap:
    """2,000 bootstrap samples of groups: how often each group, and so each of its pictures, is in each sample.

    Samples that exceed a block are not kept but drawn again from the seed, so that memory does not grow with the number of pictures.
    """

    def __init__(self, groups: Array, seed: int) -> None:
        _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
        self.numbers = np.argsort(np.argsort(first))[numbers]  # groups by their first picture: int (pictures,)
        self.drawn = len(first)
        self.seed = seed

    def group_counts(self, samples: int | None = None) -> Iterator[Array]:
        """How often each group is in each of the first samples (all of them if None), in blocks: float (some samples, groups)."""
        samples = min(samples or RESAMPLES, RESAMPLES)
        if self._size >= RESAMPLES:
            yield self._only_block[:samples]
        else:
            yield from self._draw(samples)

    def counts(self, samples: int | None = None) -> Iterator[Array]:
        """How often each picture is in each of the first samples, in blocks: float (some samples, pictures)."""
        for block in self.group_counts(samples):
            yield block if self.drawn == len(self.numbers) else block[:, self.numbers]

    @property
    def _size(self) -> int:
        """Samples per block: a multiple of 8, since BLAS adds the rows of a product up in groups."""
        return max(8, _BLOCK // len(self.numbers) // 8 * 8)

    @cached_property
    def _only_block(self) -> Array:
        return next(self._draw(RESAMPLES))

    def _draw(self, samples: int) -> Iterator[Array]:
        generator = np.random.default_rng(self.seed)
        for start in range(0, samples, self._size):
            block = np.empty((min(self._size, samples - start), self.drawn))
            for sample in block:
                sample[:] = np.bincount(generator.integers(0, self.drawn, self.drawn), minlength=self.drawn)
            yield block

    def drawn_sums(self, *values: Array) -> list[Array]:
        """The sums over the groups of each sample: each float (samples, …), from float (groups, …)."""
        blocks = [[block @ each for each in values] for block in self.group_counts()]
        return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]

    def sums(self, values: Array) -> Array:
        """The sum of each group's values: float (groups, …), from float (pictures, …)."""
        sums = np.zeros((self.drawn, *values.shape[1:]))
        np.add.at(sums, self.numbers, values)
        return sums

    def widening(self, confidence: float) -> float:
        """The factor for intervals that take the spread of the samples for that of the figure. 1 if every group is one picture."""
        # The spread of resampled groups is too small by sqrt(1 - 1 / groups), and uncertain if they are few.
        if self.drawn == len(self.numbers) or self.drawn == 1:
            return 1.0
        return float(np.sqrt(self.drawn / (self.drawn - 1)) * _widening(self.drawn, confidence))


def mean_interval(values: Array, bootstrap: Bootstrap, confidence: float) -> Interval:
    """The interval of a mean by the studentised bootstrap (bootstrap-t: Efron, 1982). NaN if the values do not vary.

    `values`: float (pictures,).
    """
    # Losses are skewed: a few large ones decide the mean. The percentile bootstrap is then too narrow above, and the distribution of
    # (sample mean - mean) / its standard error follows the skew. The standard errors are those of a ratio: the sum of the
    # groups' values over the sum of their sizes.
    mean = values.mean()
    totals, sizes = bootstrap.sums(values - mean), bootstrap.sums(np.ones(len(values)))
    pictures, sums, *products = bootstrap.drawn_sums(sizes, totals, totals**2, totals * sizes, sizes**2)
    shifts = sums / pictures
    squares = products[0] - 2 * shifts * products[1] + shifts**2 * products[2]
    errors, error = np.sqrt(np.maximum(squares, 0)) / pictures, np.sqrt((totals**2).sum()) / len(values)
    varied = errors > 1e-9 * error
    if not varied.any():
        return UNDEFINED
    low, high = bootstrap.widening(confidence) * np.quantile(shifts[varied] / errors[varied], tails(confidence))
    return float(mean - high * error), float(mean - low * error)


def percentile_interval(draws: Array, confidence: float, widening: float = 1.0) -> Interval:
    """The percentile interval of a figure's bootstrap draws, float (samples,), without draws that are NaN.

    NaN if the draws do not vary: a figure that is perfect in every sample may still be imperfect in general.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0 or np.ptp(draws) < 1e-12:
        return UNDEFINED
    low, middle, high = np.quantile(draws, [tails(confidence)[0], 0.5, tails(confidence)[1]])
    return float(middle - widening * (middle - low)), float(middle + widening * (high - middle))


def logit_interval(value: float, draws: Array, confidence: float, widening: float = 1.0) -> Interval:
    """The interval of an area under a curve: normal on the logit scale (Pepe, 2003), with the deviation of its bootstrap draws.

    `draws`: float (samples,). NaN if they do not vary, or if the area is 0 or 1.
    """
    from scipy.special import expit, logit, ndtri

    # Areas are often close to 1. Percentiles never exceed the best draw, so they miss the true value too often; the logit has no bound.
    deviation = np.nanstd(draws) if np.isfinite(draws).any() else 0.0
    if deviation < 1e-12 or not 0 < value < 1:
        return UNDEFINED
    # The slope of the logit is 1 / (value (1 - value)).
    half = widening * ndtri((1 + confidence) / 2) * deviation / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def paired_difference(first: Array, second: Array, bootstrap: Bootstrap, confidence: float) -> tuple[float, Interval]:
    """The second model's accuracy minus the first's on the same pictures, with a paired bootstrap interval.

    `first`, `second`: bool (pictures,), whether each answer is correct. If the two never differ, the interval is the upper
    bound on how often they might, in both directions.
    """
    gains = second.astype(float) - first.astype(float)
    if not gains.any():
        _, most = proportion_interval(gains != 0, bootstrap.numbers, confidence)
        return 0.0, (-most, most)
    totals, sizes = bootstrap.sums(gains), bootstrap.sums(np.ones(len(gains)))
    drawn_gains, pictures = bootstrap.drawn_sums(totals, sizes)
    draws = drawn_gains / pictures
    if np.ptp(draws) < 1e-12:
        return float(gains.mean()), (float(draws[0]), float(draws[0]))
    mean = gains.mean()
    widening = bootstrap.widening(confidence)
    if bootstrap.drawn < len(gains):  # as in `design_effect`: of one more group, a quarter of the answers differ
        widening *= np.sqrt(1 + (sizes.mean() / 4) ** 2 / ((totals - mean * sizes) ** 2).sum())
    low, high = percentile_interval(draws, confidence, widening)
    return float(gains.mean()), (max(-1.0, low), min(1.0, high))


def mcnemar_p(first: Array, second: Array, groups: Array) -> float:
    """The p-value of McNemar's exact test by group, two-sided: how likely so large a difference is if every group's gain may as well be
    a loss of the same size. If every group is one picture, it is McNemar's own.

    `first`, `second`: bool (pictures,), whether each answer is correct. 1 if the two never differ.
    """
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    _, numbers = np.unique(groups, return_inverse=True)
    gains = np.bincount(numbers, second.astype(float) - first.astype(float)).round().astype(int)
    # The number of positive signs among the gains of one size is binomial, and the total is the sum over the sizes.
    distribution = np.ones(1)
    for size, count in zip(*np.unique(np.abs(gains[gains != 0]), return_counts=True), strict=True):
        steps = np.zeros(2 * count * size + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = fftconvolve(distribution, steps) if len(distribution) > 1 else steps
    most = len(distribution) // 2
    tail = distribution[most + abs(gains.sum()) :].sum()
    return float(min(1.0, 2 * tail)) if gains.sum() else 1.0


def indicator(keys: Array, count: int) -> "csc_array":
    """The sparse matrix, float32 (count, pictures), whose product with an array of pictures adds up the pictures of each key.

    `keys`: int (pictures,), below `count`.
    """
    from scipy.sparse import csc_array

    columns = np.arange(len(keys) + 1, dtype=np.int32)
    return csc_array((np.ones(len(keys), np.float32), keys.astype(np.int32), columns), shape=(count, len(keys)))


def tails(confidence: float) -> list[float]:
    """The quantiles that bound the central share `confidence` of a distribution."""
    return [(1 - confidence) / 2, (1 + confidence) / 2]
