"""How well probabilities order pictures: areas under the ROC and the precision-recall curve, one class against the rest."""

from dataclasses import dataclass
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
    steps = _Steps.of(scores[order], is_class[order])
    size = max(1, _CHUNK // len(order))
    parts = [_areas_of_steps(counts[start : start + size, order], steps) for start in range(0, len(counts), size)]
    roc, precision = (np.concatenate(areas) for areas in zip(*parts, strict=True))
    return roc, precision


@dataclass(frozen=True)
class _Steps:
    """Runs of equal scores that hold a picture of the class: neither area needs any other."""

    hits: Array  # positions of the class's own pictures
    firsts: Array  # of each step: the place in `hits` where its own begin
    starts: Array  # its first position
    ends: Array  # its last position

    @staticmethod
    def of(scores: Array, is_class: Array) -> "_Steps":
        """Of scores in descending order."""
        edges = np.flatnonzero(np.diff(scores, prepend=np.inf, append=-np.inf))
        hits = np.flatnonzero(is_class)
        which, firsts = np.unique(np.searchsorted(edges, hits, side="right") - 1, return_index=True)
        return _Steps(hits, firsts, edges[which], edges[which + 1] - 1)


def _areas_of_steps(counts: Array, steps: _Steps) -> tuple[Array, Array]:
    if not len(steps.hits):
        return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    hits = np.add.reduceat(counts[:, steps.hits], steps.firsts, axis=1, dtype=np.float64)
    hits_so_far = hits.cumsum(axis=1)
    answered = counts.cumsum(axis=1, dtype=np.float64)
    before, so_far, everything = answered[:, steps.starts] - counts[:, steps.starts], answered[:, steps.ends], answered[:, -1]
    others, others_so_far = so_far - before - hits, so_far - hits_so_far
    all_hits, all_others = hits_so_far[:, -1], everything - hits_so_far[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        roc = 1 - (hits * (others_so_far - others / 2)).sum(axis=1) / (all_hits * all_others)
        precision = (hits * np.divide(hits_so_far, so_far, out=np.zeros_like(hits), where=so_far > 0)).sum(axis=1) / all_hits
    defined = (all_hits > 0) & (all_others > 0)
    return np.where(defined, roc, np.nan), np.where(defined, precision, np.nan)
