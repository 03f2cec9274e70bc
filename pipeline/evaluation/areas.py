"""Areas under the ROC and the precision-recall curve, of a model and of its bootstrap samples."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.intervals import Array, indicator

if TYPE_CHECKING:
    from scipy.sparse import csc_array

_RANKED = 8_000_000  # pictures times classes that are ranked at once


def ranking_areas(labels: Array, probs: Array, draw: Callable[[], Iterable[Array]]) -> tuple[Array, Array]:
    """ROC AUC and average precision per class, one against the rest: each float (samples, classes).

    `labels`: int (pictures,); `probs`: float (pictures, classes); `draw`: returns samples in blocks, float (some samples, pictures), how
    often each picture is in each sample, and the same ones at every call. NaN if a sample contains no picture of the class, or nothing
    else.
    """
    size = max(1, _RANKED // len(labels))
    parts = []
    for start in range(0, probs.shape[1], size):
        columns = np.ascontiguousarray(probs[:, start : start + size].T)
        steps = [_steps(labels == start + index, column) for index, column in enumerate(columns)]
        parts.append(np.concatenate([_areas(steps, counts) for counts in draw()], axis=1))
    roc, precision = np.concatenate(parts, axis=2)
    return roc, precision


def macro(areas: Array) -> Array:
    """Per sample: the mean area of the classes that have one. float (samples,)."""
    there = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, areas, 0).sum(axis=1) / there.sum(axis=1))


def _steps(is_class: Array, scores: Array) -> "csc_array":
    """The pictures by rank, from the highest score: as an indicator of 3 k + 1 ranges, where k scores are those of pictures of the class.

    For each such score: the pictures above it (and below the score before), those of the class at it, and the others at it. Last, those
    below all. Both curves change direction only at these scores, so that nothing else of the order matters.
    """
    steps = np.unique(-scores[is_class])
    above = np.searchsorted(steps, -scores)
    tied = np.append(steps, np.nan)[above] == -scores
    return indicator(3 * above + np.where(tied, np.where(is_class, 1, 2), 0), 3 * len(steps) + 1)


def _areas(steps: list["csc_array"], counts: Array) -> Array:
    """Both areas of some classes in a block of samples: float (2, samples, classes)."""
    weights = np.ascontiguousarray(counts.T, dtype=np.float32)  # sums of whole numbers, exact below 2**24 pictures
    return np.stack([_areas_of_class(np.ascontiguousarray((each @ weights).T, dtype=float)) for each in steps], axis=2)


def _areas_of_class(sizes: Array) -> Array:
    """The areas by the trapezoidal rule (ROC) and by steps (average precision), as scikit-learn defines them for weighted pictures.

    `sizes`: float (samples, 3 k + 1), the numbers of pictures in the ranges of `_steps`. float (2, samples).
    """
    if sizes.shape[1] == 1:
        return np.full((2, len(sizes)), np.nan)
    hits, others = sizes[:, 1::3], sizes[:, 2::3]
    hits_so_far, others_so_far = hits.cumsum(axis=1), (sizes[:, :-1:3] + others).cumsum(axis=1)
    so_far = hits_so_far + others_so_far
    all_hits, all_others = hits_so_far[:, -1], others_so_far[:, -1] + sizes[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        roc = 1 - (hits * (others_so_far - others / 2)).sum(axis=1) / (all_hits * all_others)
        precision = (hits * np.divide(hits_so_far, so_far, out=np.zeros_like(so_far), where=so_far > 0)).sum(axis=1) / all_hits
    return np.where((all_hits > 0) & (all_others > 0), [roc, precision], np.nan)
