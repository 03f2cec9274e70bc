"""Which network and which way to train the evidence favours: the simplest that no other is shown to beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.statistics import Interval, draw_counts, mean_interval

Array = np.ndarray[Any, np.dtype[Any]]

MUCH = 1000  # pictures a class, as ImageNet has
FAR = 0.5  # share of the errors that remains

# The four corners of a sketch that courses teach from (Stanford's CS231n among them): is it much data, is it far from ImageNet?
SKETCH = {
    (False, False): "the head alone (frozen)",
    (False, True): "the head and the last stages (partial)",
    (True, False): "the whole network (finetuned)",
    (True, True): "the whole network (finetuned), if not from scratch",
}


@dataclass(frozen=True)
class Candidate:
    """One of several that were tried on the same pictures: its mean loss in nats, and how far it is from the favourite so far.

    `rival`: that favourite, None for the first; `difference`: its own mean loss less the rival's; `is_better`: whether that is shown.
    """

    name: str
    loss: float
    rival: str | None = None
    difference: float = 0.0
    interval: Interval = (0.0, 0.0)
    is_better: bool = False


def favour(losses: Mapping[str, Array], confidence: float, seed: int) -> tuple[str, list[Candidate]]:
    """The favourite of some candidates, and each with what speaks for it.

    `losses`: by name, from the simplest candidate to the most costly, float (pictures,) each, of the same pictures. Another takes the
    favourite's place where the interval of the paired difference, by the bootstrap, lies below 0.
    """
    favourite, candidates = "", []
    for name, values in losses.items():
        if not favourite:
            favourite, candidates = name, [Candidate(name, float(values.mean()))]
            continue
        gains = values - losses[favourite]
        interval = mean_interval(gains, draw_counts(len(gains), seed), confidence)
        candidates.append(Candidate(name, float(values.mean()), favourite, float(gains.mean()), interval, interval[1] < 0))
        favourite = name if interval[1] < 0 else favourite
    return favourite, candidates


def distance(pretrained: Array, untrained: Array) -> float:
    """How far the pictures are from the backbone's world: the share of errors that its training did not take away.

    Both: whether a head on the features of the pretrained network, or of the same network with random weights, is wrong about a
    picture, bool (pictures,). 0: near, all errors are gone; 1: far, as many are left. Where a head on random features is never
    wrong there is nothing to take away: 1.
    """
    return min(1.0, float(pretrained.mean() / untrained.mean())) if untrained.any() else 1.0


def corner(pictures_a_class: float, far: float) -> str:
    """What the sketch says of so much data at such a distance."""
    return SKETCH[pictures_a_class >= MUCH, far >= FAR]
