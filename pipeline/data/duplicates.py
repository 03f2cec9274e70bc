"""Pictures that are there more than once: the same pixels, or pixels that look the same."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.data.inspection import Look, Thumbnail

_NEAR_BITS = 6  # of 63: re-encoding a photograph or halving its size changed 2 at the most
_ROWS = 128  # of all pairs, held at once

Pair = tuple[str, str]


class Groups:
    """Names in groups, each called by the first of its names; at the start every name is a group of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._above = {name: name for name in names}

    def of(self, name: str) -> str:
        """The group of a name."""
        while self._above[name] != name:
            self._above[name] = name = self._above[self._above[name]]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Make one group of the groups of all these names."""
        roots = sorted({self.of(name) for name in names})
        self._above.update(dict.fromkeys(roots, roots[0]))


def exact_duplicates(looks: Mapping[str, Look]) -> list[list[str]]:
    """Two and more names whose decoded pixels are equal, in the order of their names."""
    equal: dict[str, list[str]] = defaultdict(list)
    for name in sorted(looks):
        equal[looks[name].pixels_sha256].append(name)
    return [names for names in equal.values() if len(names) > 1]


def near_duplicates(looks: Mapping[str, Look], similarity: float) -> list[Pair]:
    """Pairs of names whose pictures are not equal but look alike: as many pairs as it takes to link all that do.

    Their perceptual hashes differ in 6 bits at the most, and their thumbnails correlate (Pearson's r over all colours)
    with `similarity` or more. Of equal pictures the first stands for all; a picture of one colour is like no other.
    """
    distinct = {looks[name].pixels_sha256: name for name in sorted(looks, reverse=True) if not looks[name].is_one_colour}
    names = sorted(distinct.values())
    groups, pairs = Groups(names), []
    for first, second in _near_hashes([looks[name].perceptual_hash for name in names]):
        pair = names[first], names[second]
        if groups.of(pair[0]) != groups.of(pair[1]) and _correlation(*(looks[name].thumbnail for name in pair)) >= similarity:
            groups.join(pair)
            pairs.append(pair)
    return pairs


def _near_hashes(hashes: list[int]) -> Iterator[tuple[int, int]]:
    column = np.array(hashes, dtype=np.uint64)
    for start in tqdm(range(0, len(hashes), _ROWS), "compare", disable=None, leave=False):
        differing: Any = np.bitwise_count(column[start : start + _ROWS, np.newaxis] ^ column[np.newaxis, start:])
        for first, is_near in enumerate(differing <= _NEAR_BITS, start):
            for second in np.flatnonzero(is_near[first - start + 1 :]).tolist():
                yield first, first + 1 + second


def _correlation(first: Thumbnail, second: Thumbnail) -> float:
    one, other = (thumbnail.ravel() - thumbnail.mean() for thumbnail in (first, second))
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))
