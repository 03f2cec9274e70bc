"""Permutation tests of two samples: every statistic is computed for the same permutations of the groups.

Under the hypothesis that new pictures are drawn like the test pictures, each assignment of the groups to the two samples is as likely as
the one that was observed. So the p-value of any statistic is exact, and so is that of the largest of several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.intervals import Array, Interval

FOLDS = 5
_MOST_AXES = 64
_GROUPS_PER_AXIS = 10
_SHRINKAGE = 0.05  # of the variances by which axes are scaled: those of little variance are mostly noise
_RIDGE = 0.01  # per training picture
_TAIL = 0.99  # the quantile of a statistic that is its unit
_TIED = 1e-9  # statistics that are closer are equal, up to rounding
_BLOCK = 4_000_000  # numbers of a block of permutations


@dataclass(frozen=True)
class Pool:
    """The pictures of both samples in a random order.

    `axes`: float32 (N, d), from `principal_axes`; `is_new`: bool (N,); `groups`: int (N,), from 0 without a gap, none in both samples;
    `folds`: int (N,), a group is in one fold; `order`: int (N,), the row of each in the reference followed by the new pictures.
    """

    axes: Array
    is_new: Array
    groups: Array
    folds: Array
    order: Array


def make_pool(features: tuple[Array, Array], groups: tuple[Array, Array], seed: int = 0) -> Pool:
    """Pool the reference and the new pictures. `features`: each (pictures, D); `groups`: each int (pictures,)."""
    generator = np.random.default_rng(seed)
    sizes = [len(each) for each in groups]
    # Ties are broken by the order, which must say nothing about the sample.
    order = generator.permutation(sum(sizes))
    first, second = (np.unique(each, return_inverse=True)[1] for each in groups)
    numbers = np.concatenate([first, second + first.max() + 1])[order]
    drawn = int(numbers.max()) + 1
    axes = principal_axes(np.concatenate(features)[order].astype(np.float32), drawn)
    folds = (generator.permutation(drawn) % FOLDS)[numbers]
    return Pool(axes, order >= sizes[0], numbers, folds, order)


def principal_axes(features: Array, drawn: int) -> Array:
    """The coordinates of pictures on their principal axes, scaled to similar variances, and their squared length: float32 (N, d + 1).

    The length shows pictures that are far from all others, to which a linear classifier is blind. `drawn`: the number of groups, by
    which the number of axes is limited.
    """
    centred = features - features.mean(axis=0)
    count, width = centred.shape
    most = max(2, min(_MOST_AXES, drawn // _GROUPS_PER_AXIS, width, count - 1))
    if width <= count:
        values, vectors = np.linalg.eigh(centred.T @ centred / count)
        places, variances = centred @ vectors[:, : -most - 1 : -1], values[: -most - 1 : -1]
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T / count)
        variances = values[: -most - 1 : -1]
        places = vectors[:, : -most - 1 : -1] * np.sqrt(np.maximum(variances, 0) * count)
    scaled = places / np.sqrt(np.maximum(variances, 0) + _SHRINKAGE * max(float(variances.mean()), 1e-12))
    length = np.log1p((scaled**2).sum(axis=1))
    return np.column_stack([scaled, (length - length.mean()) / max(float(length.std()), 1e-6)]).astype(np.float32)


def permute(pool: Pool, count: int, seed: int = 0, strata: Array | None = None) -> Array:
    """Which pictures are new: bool (1 + count, N). The first row is what was observed, the others are permutations of the groups.

    `strata`: int (N,); groups are only exchanged with those of the same stratum, which is that of their first picture.
    """
    generator = np.random.default_rng(seed + 1)
    _, first = np.unique(pool.groups, return_index=True)
    labels = np.repeat(pool.is_new[first][None], count + 1, axis=0)
    of_groups = np.zeros(len(first), int) if strata is None else strata[first]
    for stratum in np.unique(of_groups):
        columns = np.flatnonzero(of_groups == stratum)
        labels[1:, columns] = generator.permuted(labels[1:, columns], axis=1)
    return np.asarray(labels[:, pool.groups])


@dataclass(frozen=True)
class Domain:
    """What the domain classifier finds. `aucs`: float (1 + permutations,), the first of the observed samples; `interval`: of that one."""

    aucs: Array
    interval: Interval

    @property
    def p(self) -> float:
        """The p-value: how often a permutation is told apart as well."""
        return tail_p(self.aucs)


def classify_domain(pool: Pool, labels: Array, strata: Array | None = None, confidence: float = 0.95) -> Domain:
    """The AUC of a ridge classifier that tells the new pictures from the reference, on pictures of other groups than it learned from.

    0.5: they look alike; 1: they differ in every picture. `labels`: of `permute`. `strata`: int (N,); then only pictures of one stratum
    are compared, by what differs within strata. The interval is for a classifier that learned from so many pictures (DeLong et al., 1988,
    summed by group), at least as wide as the permutations vary.
    """
    numbers = np.zeros(len(pool.axes), int) if strata is None else np.unique(strata, return_inverse=True)[1]
    size = max(1, _BLOCK // len(pool.axes))
    blocks = [labels[start : start + size] for start in range(0, len(labels), size)]
    sums = np.concatenate([_pair_sums(_held_out_scores(pool, block, numbers), block, pool.folds, numbers) for block in blocks])
    aucs = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), 0.5), where=sums[:, 1] > 0)
    scores = _held_out_scores(pool, labels[:1], numbers)[:, 0]
    return Domain(aucs, _auc_interval(pool, scores, numbers, aucs, confidence))


def _held_out_scores(pool: Pool, labels: Array, strata: Array) -> Array:
    """The scores of the classifiers that did not see the picture's fold: float32 (N, permutations)."""
    # A ridge regression is linear in its labels, so that a permutation costs two thin matrix products. An indicator of each stratum is a
    # free intercept: what differs between strata is explained by them, not by the axes.
    inputs = np.column_stack([pool.axes, np.eye(strata.max() + 1, dtype=np.float32)[strata]])
    free = np.arange(inputs.shape[1]) >= pool.axes.shape[1]
    targets = labels.T.astype(np.float32)
    scores = np.empty(targets.shape, np.float32)
    for fold in np.unique(pool.folds):
        held = pool.folds == fold
        seen = inputs[~held]
        penalty = np.where(free, 1e-3, _RIDGE * len(seen) + 1e-6)
        solution = np.linalg.solve((seen.T @ seen).astype(float) + np.diag(penalty), (seen.T @ targets[~held]).astype(float))
        scores[held] = inputs[held] @ solution.astype(np.float32)
    return scores


def _pair_sums(scores: Array, labels: Array, folds: Array, strata: Array) -> Array:
    """Per permutation: the pairs of a new and a reference picture of one fold and stratum in the right order, and all such pairs."""
    sums = np.zeros((len(labels), 2))
    for rows in _cells(folds, strata):
        order = np.argsort(scores[rows], axis=0, kind="stable")
        is_new = np.take_along_axis(labels.T[rows], order, axis=0)
        count = is_new.sum(axis=0).astype(float)
        ranks = np.arange(1, len(rows) + 1, dtype=float) @ is_new
        sums += np.stack([ranks - count * (count + 1) / 2, count * (len(rows) - count)], axis=1)
    return sums


def _cells(folds: Array, strata: Array) -> list[Array]:
    """The rows of each pair of a fold and a stratum."""
    keys = folds * (strata.max() + 1) + strata
    return [np.flatnonzero(keys == key) for key in np.unique(keys)]


def _auc_interval(pool: Pool, scores: Array, strata: Array, aucs: Array, confidence: float) -> Interval:
    """The interval on the scale of the logit, from the variance of what each group adds to the AUC. `aucs`: see `Domain`."""
    from scipy.special import expit, logit, stdtrit

    auc, added, pairs = float(aucs[0]), np.zeros(len(scores)), 0.0
    for rows in _cells(pool.folds, strata):
        new, old = rows[pool.is_new[rows]], rows[~pool.is_new[rows]]
        for some, others, sign in ((new, old, 1), (old, new, -1)):
            ranked = np.sort(sign * scores[others])
            places = np.searchsorted(ranked, sign * scores[some], "left") + np.searchsorted(ranked, sign * scores[some], "right")
            added[some] += places / 2 - auc * len(others)
        pairs += len(new) * len(old)
    drawn = [len(np.unique(pool.groups[part])) for part in (pool.is_new, ~pool.is_new)]
    if pairs == 0 or min(drawn) < 2:
        return 0.0, 1.0
    sums = np.bincount(pool.groups, added)
    error = np.sqrt((sums**2).sum() * min(drawn) / (min(drawn) - 1)) / pairs
    inner = float(np.clip(auc, 1 / (2 * min(drawn)), 1 - 1 / (2 * min(drawn))))
    # That variance is of given classifiers. Where little differs, they vary from fold to fold, too, as those of the permutations do. The
    # slope of the logit at 0.5 is 4.
    ratio = max(error / (inner * (1 - inner)), 4 * float(aucs[1:].std()) if len(aucs) > 1 else 0.0)
    # Where every pair is in order, the variance is 0: as if half a group were not.
    half = stdtrit(min(drawn) - 1, (1 + confidence) / 2) * (ratio if inner == auc else max(1.0, ratio))
    return float(min(auc, expit(logit(inner) - half))), float(max(auc, expit(logit(inner) + half)))


def share_distances(labels: Array, classes: Array) -> Array:
    """How far the class shares of the two samples are apart, per permutation: the root of a chi-square distance. float (permutations,)."""
    one_hot = np.eye(classes.max() + 1, dtype=np.float32)[classes]
    counts = _sums(labels, one_hot)
    total = one_hot.sum(axis=0)
    new = labels.sum(axis=1, keepdims=True)
    gaps = counts / new - (total - counts) / (len(classes) - new)
    there = total > 0
    return np.asarray(np.sqrt((gaps[:, there] ** 2 / (total[there] / len(classes))).sum(axis=1)))


def _sums(labels: Array, values: Array) -> Array:
    """The sum of the values of the new pictures, per permutation: float32 (permutations, ...). `values`: 0 or 1, float32 (N, ...)."""
    size = max(1, _BLOCK // len(values))
    return np.concatenate([labels[start : start + size].astype(np.float32) @ values for start in range(0, len(labels), size)])


def ks_distances(labels: Array, values: Array) -> Array:
    """The Kolmogorov-Smirnov distance of the values of the two samples, per permutation: float (permutations,), 0 to 1."""
    order = np.argsort(values, kind="stable")
    ends = np.append(np.diff(values[order]) > 0, True)  # equal values are one step
    size = max(1, _BLOCK // len(values))
    parts = []
    for start in range(0, len(labels), size):
        is_new = labels[start : start + size][:, order]
        new = is_new.cumsum(axis=1, dtype=np.int32)
        old = np.arange(1, len(order) + 1, dtype=np.int32) - new
        gaps = np.abs(new / new[:, -1:] - old / old[:, -1:])
        parts.append(gaps[:, ends].max(axis=1))
    return np.concatenate(parts)


def share_gaps(labels: Array, is_counted: Array) -> Array:
    """By how much a share is higher among the new pictures, per permutation: float (permutations,). `is_counted`: bool (N,)."""
    new = labels.sum(axis=1)
    counts = _sums(labels, is_counted.astype(np.float32))
    return np.asarray(counts / new - (is_counted.sum() - counts) / (len(is_counted) - new))


def tail_p(statistics: Array) -> float:
    """The share of the permutations whose statistic is at least that of the first one, which is what was observed."""
    return float((statistics >= statistics[0] - _TIED).mean())


def global_p(statistics: Sequence[Array]) -> float:
    """The p-value of the largest of several statistics (Westfall and Young, 1993), each in units of its own upper tail."""
    table = np.stack(statistics)
    # By the standard deviation, a skewed statistic would be the largest more often than the others, and hide what they show.
    middle, upper = (np.quantile(table, share, axis=1, keepdims=True) for share in (0.5, _TAIL))
    spread = upper - middle
    return tail_p(np.where(spread > _TIED, (table - middle) / np.maximum(spread, _TIED), 0).max(axis=0))
