"""A few pictures that stand for many."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from pipeline.data.manifest import Picture, class_names, read_manifest

_MOST = {"train": 1000, "val": 500}  # pictures that are looked at, but two of each class at least


@dataclass(frozen=True)
class Sample:
    """All training pictures, how many val pictures there are, and those of both that are looked at."""

    training: list[Picture]
    count_val: int
    train: list[Picture]
    val: list[Picture]

    @property
    def names(self) -> list[str]:
        """The classes in their order."""
        return class_names(self.training)

    @property
    def a_class(self) -> float:
        """The median number of training pictures of a class."""
        return float(median(Counter(picture.label for picture in self.training).values()))

    def labels(self, pictures: Sequence[Picture]) -> list[int]:
        """The numbers of their classes."""
        names = self.names
        return [names.index(picture.label) for picture in pictures]


def read_sample(manifest: Path, seed: int) -> Sample:
    """The tables of train and val, and a sample of each. Test is not read."""
    train, val = (read_manifest(manifest, split) for split in _MOST)
    least = 2 * len(class_names(train))
    of_train, of_val = (draw_sample(pictures, max(most, least), seed) for pictures, most in zip((train, val), _MOST.values(), strict=True))
    return Sample(train, len(val), of_train, of_val)


def draw_sample(pictures: list[Picture], most: int, seed: int) -> list[Picture]:
    """At most so many pictures, in their order: of each class as many as of the others, while it has some left."""
    seen: Counter[str] = Counter()
    turns: dict[int, int] = {}  # how many of its class were drawn before it
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        turns[index] = seen[pictures[index].label]
        seen[pictures[index].label] += 1
    return [pictures[index] for index in sorted(sorted(turns, key=turns.__getitem__)[:most])]
