"""How well probabilities order pictures: areas under the ROC and the precision-recall curve, one class against the rest."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_CHUNK = 4_000_000  # numbers that are worked on at once


def ranking_areas(labels: Array, probs: Array, counts: Array) -> tuple[Array, Array]:
    """Areas under the ROC curve and average precisions: each float (samples, classes), NaN where a class or its rest is not drawn.

    `counts`: float (samples, pictures), how often each picture is in a sample; ones for the pictures as they are.
    """
    pairs = [_areas(labels == index, probs[:, index], counts) for index in range(probs.shape[1])]
    roc, precision = (np.stack(areas, axis=1) for areas in zip(*pairs, strict=True))
    return roc, precision


def macro(areas: Array) -> Array:
    """A sample: the mean area of the classes that have one. float (samples,)."""
    there = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, areas, 0).sum(axis=1) / there.sum(axis=1))


def _areas(is_class: Array, scores: Array, counts: Array) -> tuple[Array, Array]:
    """Both areas of one class, a sample each: pictures in the order of their scores, equal scores as one step."""
    order = np.argsort(-scores, kind="stable")
    steps = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    is_class = is_class[order]
    size = max(1, _CHUNK // len(order))
    parts = [_areas_of_steps(is_class, counts[start : start + size][:, order], steps) for start in range(0, len(counts), size)]
    roc, precision = (np.concatenate(areas) for areas in zip(*parts, strict=True))
    return roc, precision


def _areas_of_steps(is_class: Array, counts: Array, steps: Array) -> tuple[Array, Array]:
    hits = np.add.reduceat(np.where(is_class, counts, 0), steps, axis=1, dtype=np.float64)
    others = np.add.reduceat(np.where(is_class, 0, counts), steps, axis=1, dtype=np.float64)
    hits_so_far, others_so_far = hits.cumsum(axis=1), others.cumsum(axis=1)
    all_hits, all_others = hits_so_far[:, -1], others_so_far[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        roc = (others * (hits_so_far - hits / 2)).sum(axis=1) / (all_hits * all_others)
        answered = hits_so_far + others_so_far
        precision = (hits * np.divide(hits_so_far, answered, out=np.zeros_like(hits), where=answered > 0)).sum(axis=1) / all_hits
    defined = (all_hits > 0) & (all_others > 0)
    return np.where(defined, roc, np.nan), np.where(defined, precision, np.nan)
