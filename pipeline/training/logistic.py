"""Multinomial logistic regression with an L2 penalty: many problems on the same features, solved side by side.

A pass over the features evaluates a point of every problem. So the matrix products are wide, and features that are larger than memory are
read some twenty times for all problems together. Products are float32; parameters and sums are float64. Blocks of rows are dealt to
threads of one BLAS thread each and summed in their order: the same features give the same bytes with any number of threads.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np

from pipeline.core.arrays import release
from pipeline.core.errors import PipelineError

Array = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")
_BLOCK = 1024  # rows
_SAMPLE = 16  # rows per feature from which axes are found
_NULL = 1e-10  # of the largest variance; smaller ones are rounding errors
_PAIRS = 10  # that L-BFGS remembers
_PARAMETERS = 2**22  # of the problems that are solved side by side
_ENOUGH = 3e-7  # nats: a step that gains less is the last
_DECREASE = 1e-4  # of Armijo's rule: the share of the predicted decrease that a step must bring


@dataclass(frozen=True)
class Axes:
    """Principal axes of features: their centre, float32 (D,), directions, float32 (D, R), and the variance along each, float64 (R,)."""

    centre: Array
    directions: Array
    variances: Array


def principal_axes(features: Array, threads: int) -> Axes:
    """The axes of features, float32 (N, D). R is D, or smaller where N <= D; then the axes span the centred features.

    Of many rows, 16 D are used, evenly from the first to the last: the axes make `fit_logistic` fast and do not change its optimum.
    Raises PipelineError if the features contain NaN or infinity.
    """
    if not all(over_blocks(features, threads, lambda part: bool(np.isfinite(features[part]).all()))):
        raise PipelineError("the features: contain NaN or infinity; use other weights for the backbone")
    with _one_blas_thread():
        count, width = features.shape
        if count <= width:
            centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
            rows = (features - centre).astype(np.float64)
            variances, vectors = np.linalg.eigh(rows @ rows.T / count)
            kept = variances > max(_NULL * variances[-1], 0)
            directions = rows.T @ (vectors[:, kept] / np.sqrt(count * variances[kept]))
            return Axes(centre, directions.astype(np.float32), variances[kept])
        sample = features[:: -(-count // (_SAMPLE * width))]
        total = sum(over_blocks(sample, threads, lambda part: sample[part].sum(axis=0, dtype=np.float64)), np.zeros(width))
        centre = (total / len(sample)).astype(np.float32)
        gram = sum(over_blocks(sample, threads, lambda part: _gram(sample[part] - centre)), np.zeros((width, width)))
        variances, vectors = np.linalg.eigh(gram / len(sample))
        return Axes(centre, vectors.astype(np.float32), np.maximum(variances, 0))


def _gram(rows: Array) -> Array:
    return np.asarray(rows.T @ rows)


def fit_logistic(features: Array, labels: Array, used: Array, l2: Sequence[float], axes: Axes, threads: int) -> list[tuple[Array, Array]]:
    """Minimise, for each problem, the mean cross entropy + l2/2 · |weight|² on features that are centred, and scaled by one factor.

    `features`: float32 (N, D); `labels`: int (N,); `used`: bool (problems, N), the rows of each problem; `l2`: a penalty per problem.
    The factor is the standard deviation of all numbers in these rows. `axes`: the principal axes of these features, or of more.

    Returns weight, float32 (classes, D), and bias, float32 (classes,), for the features as they are. The loss is within 1e-4 nats of the
    optimum, and mostly within 1e-6. The bias of a class without rows is -inf.
    """
    with _one_blas_thread():
        objective = _Objective(features, labels, used, np.asarray(l2), axes, threads)
        together = max(1, _PARAMETERS // objective.start[0].size)
        points: dict[int, Array] = {}
        for first in range(0, len(used), together):
            points |= _minimise_together(objective, range(first, min(first + together, len(used))))
        return [objective.head(problem, points[problem]) for problem in range(len(used))]


class _Objective:
    """The objectives of all problems, by points: float64 (classes, R + 1), a coordinate per axis, and the bias.

    Coordinates are scaled by the root of their curvature, roughly that of equal probabilities. So the objective is nearly round.
    """

    def __init__(self, features: Array, labels: Array, used: Array, l2: Array, axes: Axes, threads: int) -> None:
        self.features, self.labels, self.used, self.axes, self.threads = features, labels, used, axes, threads
        self.num_classes = int(labels.max()) + 1
        self.counts = used.sum(axis=1)
        self.penalties = l2 * self._variances()
        curvature = max(self.num_classes - 1, 1) / self.num_classes**2
        squares = curvature * axes.variances + self.penalties[:, None]
        scale = np.sqrt(np.where(squares > 0, squares, 1))
        self.scale = np.concatenate([scale, np.full((len(used), 1), np.sqrt(curvature))], axis=1)[:, None]  # (problems, 1, R + 1)
        shares = np.stack([np.bincount(labels[rows], minlength=self.num_classes) for rows in used]) / self.counts[:, None]
        self.absent = np.where(shares > 0, 0, -np.inf).astype(np.float32)  # is added to the biases
        self.start = np.zeros((len(used), self.num_classes, self.scale.shape[-1]))
        self.start[..., -1] = np.log(np.where(shares > 0, shares, 1)) * self.scale[..., -1]

    def _variances(self) -> Array:
        """Of all numbers in the rows of each problem: float64 (problems,)."""
        middle = self.axes.centre.mean()

        def sums(part: slice) -> Array:
            rows = self.features[part] - middle
            return np.stack([rows.sum(axis=1, dtype=np.float64), np.square(rows).sum(axis=1, dtype=np.float64)], axis=1)

        of_rows = np.concatenate(list(over_blocks(self.features, self.threads, sums)))
        mean, mean_square = (self.used @ of_rows / (self.counts * self.features.shape[1])[:, None]).T
        return np.asarray(np.maximum(mean_square - mean**2, 0))

    def evaluate(self, problems: Sequence[int], points: Array) -> tuple[Array, Array]:
        """The values, float64 (some problems,), and gradients of some problems, each at its point."""
        coordinates = points / self.scale[problems]
        weight, bias = self._linear_map(coordinates)
        bias += self.absent[problems]
        losses, by_weight, by_bias = np.zeros(len(points)), np.zeros(weight.shape), np.zeros(bias.shape)
        for sums in over_blocks(self.features, self.threads, lambda part: self._sums(part, problems, weight, bias)):
            losses += sums[0]
            by_weight += sums[1]
            by_bias += sums[2]
        rotated = _wide_product(by_weight.astype(np.float32), self.axes.directions)
        gradients = np.concatenate([rotated, by_bias[..., None]], axis=2) / self.counts[problems, None, None]
        penalised = coordinates[..., :-1] * self.penalties[problems, None, None]
        gradients[..., :-1] += penalised
        values = losses / self.counts[problems] + np.einsum("pkr,pkr->p", penalised, coordinates[..., :-1]) / 2
        return values, gradients / self.scale[problems]

    def _sums(self, part: slice, problems: Sequence[int], weight: Array, bias: Array) -> tuple[Array, Array, Array]:
        """Over the rows of a block: the cross entropy, and its derivatives by weight and by bias."""
        rows, labels, used = self.features[part] - self.axes.centre, self.labels[part], self.used[problems, part]
        logits = (weight.reshape(-1, weight.shape[-1]) @ rows.T).reshape(*bias.shape, len(rows))  # (some problems, classes, rows)
        logits += bias[..., None]
        logits -= logits.max(axis=1, keepdims=True)
        places = np.s_[:, labels, np.arange(len(rows))]
        losses = -logits[places]
        errors = np.exp(logits, out=logits)
        totals = errors.sum(axis=1)
        losses += np.log(totals)
        errors /= totals[:, None]
        errors[places] -= 1
        errors *= used[:, None]
        by_weight = errors.reshape(-1, len(rows)) @ rows
        return losses.sum(axis=1, dtype=np.float64, where=used), by_weight.reshape(weight.shape), errors.sum(axis=2, dtype=np.float64)

    def _linear_map(self, coordinates: Array) -> tuple[Array, Array]:
        """Weight and bias for centred features: float32 (…, classes, D), (…, classes)."""
        weight = _wide_product(coordinates[..., :-1].astype(np.float32), self.axes.directions.T)
        return weight, coordinates[..., -1].astype(np.float32)

    def head(self, problem: int, point: Array) -> tuple[Array, Array]:
        """Weight and bias for features as they are."""
        coordinates = point / self.scale[problem]
        coordinates -= coordinates.mean(axis=0)  # changes no probability, and no weight but for rounding
        weight, bias = self._linear_map(coordinates)
        return weight, bias + self.absent[problem] - weight @ self.axes.centre


def _wide_product(left: Array, right: Array) -> Array:
    """left @ right, by one matrix product where NumPy would compute one per problem, which takes three times as long."""
    return np.asarray(left.reshape(math.prod(left.shape[:-1]), len(right)) @ right).reshape(*left.shape[:-1], right.shape[1])


def _minimise_together(objective: _Objective, problems: Sequence[int]) -> dict[int, Array]:
    """The lowest points of some problems, each by a minimiser of its own."""
    minimisers = {problem: _minimise(objective.start[problem]) for problem in problems}
    candidates = {problem: next(minimiser) for problem, minimiser in minimisers.items()}
    lowest: dict[int, Array] = {}
    while candidates:
        values, gradients = objective.evaluate(list(candidates), np.stack(list(candidates.values())))
        for problem, value, gradient in zip(list(candidates), values, gradients, strict=True):
            try:
                candidates[problem] = minimisers[problem].send((float(value), gradient))
            except StopIteration as end:
                lowest[problem] = end.value
                del candidates[problem]
    return lowest


def _minimise(point: Array) -> Generator[Array, tuple[float, Array], Array]:
    """L-BFGS (Nocedal and Wright, 2006, 7.2) from a point. Yields points, is sent their values and gradients, and returns the lowest."""
    value, gradient = yield point
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=_PAIRS)
    while True:
        direction, step = _quasi_newton(gradient, pairs), 1.0
        slope = float(np.vdot(gradient, direction))
        new_value, new_gradient = yield point + direction
        while not new_value <= value + _DECREASE * step * slope + _ENOUGH:  # also if it is NaN
            step /= 2
            new_value, new_gradient = yield point + step * direction
        if value - new_value < _ENOUGH:
            return point if value < new_value else point + step * direction
        shift, change = (step * direction).astype(np.float32), (new_gradient - gradient).astype(np.float32)
        curvature = float(np.vdot(shift, change))
        if curvature > 0:
            pairs.append((shift, change, 1 / curvature))
        point, value, gradient = point + step * direction, new_value, new_gradient


def _quasi_newton(gradient: Array, pairs: Sequence[tuple[Array, Array, float]]) -> Array:
    """The direction of the next step, by the two-loop recursion. `pairs`: shift, change of the gradient, 1 / their product."""
    direction, shares = -gradient, []
    for shift, change, inverse in reversed(pairs):
        shares.append(inverse * np.vdot(shift, direction))
        direction -= shares[-1] * change
    if pairs:
        _, change, inverse = pairs[-1]
        direction /= inverse * np.vdot(change, change)
    for (shift, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - inverse * np.vdot(change, direction)) * shift
    return direction


def over_blocks(features: Array, threads: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """Yield the results of some work on blocks of rows, in their order. What was read of a memory map leaves memory again.

    The work is done by that many threads, of one BLAS thread each.
    """
    pending: deque[Future[Result]] = deque()
    with _one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(features), _BLOCK):
            pending.append(pool.submit(work, slice(start, start + _BLOCK)))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
                release(features)
        while pending:
            yield pending.popleft().result()
        release(features)


def _one_blas_thread() -> AbstractContextManager[Any]:
    return cast(AbstractContextManager[Any], _blas().limit(limits=1))


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
