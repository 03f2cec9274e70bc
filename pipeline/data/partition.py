"""Dealing pictures out to splits: seeded, stratified, the same for any order of the listing."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from pipeline.errors import PipelineError


def deal(labels: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal `image_id: label` out to `split: fraction`, a class at a time: `image_id: split`.

    The fractions sum to 1. Each split holds its share of every class to within one picture, and at least one.
    Raises PipelineError where a class has fewer pictures than there are splits.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels):
        by_label[labels[image_id]].append(image_id)
    dealt: dict[str, str] = {}
    for number, (label, image_ids) in enumerate(sorted(by_label.items())):
        generator = np.random.default_rng([seed, number])
        shuffled = generator.permutation(np.array(image_ids, dtype=object))
        splits = np.repeat(list(fractions), _shares(label, len(image_ids), fractions))
        dealt.update(zip(shuffled.tolist(), splits.tolist(), strict=True))
    return dealt


def _shares(label: str, count: int, fractions: Mapping[str, float]) -> list[int]:
    """Whole numbers that sum to `count`, nearest to the fractions (largest remainder), none of them 0."""
    if count < len(fractions):
        raise PipelineError(
            f"class {label!r} has {count} picture{'s' * (count != 1)}, too few for {', '.join(fractions)}; add pictures or take it out"
        )
    exact = np.array([fraction * count for fraction in fractions.values()])
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    while shares.min() == 0:
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    return [int(share) for share in shares]
