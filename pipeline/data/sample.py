"""A few pictures that stand for many."""

from collections import Counter

import numpy as np

from pipeline.data.manifest import Picture


def draw_sample(pictures: list[Picture], most: int, seed: int) -> list[Picture]:
    """At most so many pictures, in their order: of each class as many as of the others, while it has some left."""
    seen: Counter[str] = Counter()
    turns: dict[int, int] = {}  # how many of its class were drawn before it
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        turns[index] = seen[pictures[index].label]
        seen[pictures[index].label] += 1
    return [pictures[index] for index in sorted(sorted(turns, key=turns.__getitem__)[:most])]
