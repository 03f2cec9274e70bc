"""The classes at a glance: a few pictures of each, drawn at random."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.data.audit import thumbnail_url
from pipeline.data.manifest import Picture

_CLASSES = 150  # at most
_A_CLASS = 8  # pictures at most
_IN_ALL = 320  # some five kilobytes each


def draw(pictures: Iterable[Picture], seed: int) -> dict[str, list[Picture]]:
    """Some of the pictures of each class: eight, fewer the more classes there are; of many classes the first 150."""
    by_class: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture)
    shown = sorted(by_class)[:_CLASSES]
    each = max(2, min(_A_CLASS, _IN_ALL // max(1, len(shown))))
    generator = np.random.default_rng(seed)
    return {label: [by_class[label][number] for number in generator.permutation(len(by_class[label]))[:each]] for label in shown}


def montage(pictures: Iterable[Picture], folder: Path, seed: int) -> Mapping[str, list[str]]:
    """The drawn pictures of each class as data URLs. `folder`: that of their split."""
    return {label: [thumbnail_url((folder / each.path).read_bytes()) for each in drawn] for label, drawn in draw(pictures, seed).items()}
