"""Simulate the gate: how often it promotes a challenger that is no better, how often its intervals miss, and which gains it sees.

    python bench/gate.py

Every look is decided by `weigh` of pipeline/promotion/looks.py and `Evidence.is_better`, as in the gate; the power table is made by
`power`, and checked with simulated looks. Writes `bench/gate.json`; a test compares it with its bars and with docs/promotion.md.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.files import write_json
from pipeline.core.sections import read_section
from pipeline.evaluation.intervals import Array, wilson_interval
from pipeline.promotion.gate import Params
from pipeline.promotion.looks import LEVEL, power, weigh

ROOT = Path(__file__).parent.parent
PICTURES, ACCURACY = 300, 0.85
FIRST_ACCURACY, GAIN = 0.6, 0.1  # of the second simulation, in which the champion gets better
GROUP, ALIKE = 5, 0.7  # pictures a group, and the share of them that share the fate of their group
BETTER_WEEKS = (3, 11, 19)  # in which the challenger of the second simulation is truly better
SIZES, GAINS, DISAGREEMENT = (50, 100, 153, 300, 500, 1000, 2000, 5000), (1, 2, 3, 4, 6, 8, 10), 0.1


class Simulation:
    """Models on one set of test pictures, in groups of one size."""

    def __init__(self, group: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.groups = np.arange(PICTURES) // group
        self.one = np.zeros(PICTURES, int)

    def uniform(self) -> Array:
        """A number from 0 to 1 per picture; many pictures have that of their group."""
        own, common = self.generator.random(PICTURES), self.generator.random(PICTURES)[self.groups]
        return np.where(self.generator.random(PICTURES) < ALIKE, common, own)

    def challenger(self, champion: Array, accuracy: float, disagreement: float, gain: float) -> Array:
        """Its right answers: of all pictures there are, `gain` more than of the champion, whose accuracy is given."""
        lost, gained = (disagreement - gain) / 2 / accuracy, (disagreement + gain) / 2 / (1 - accuracy)
        return champion ^ (self.uniform() < np.where(champion, lost, gained))

    def is_shown(self, champion: Array, challenger: Array, alpha: float, margin: float) -> bool:
        """Whether the gate would say that the challenger is better."""
        gains = challenger.astype(int) - champion
        sums = np.bincount(self.groups, gains)
        # The interval of a gain below two standard deviations is not above 0 at any level of these looks.
        if sums.sum() <= 2 * np.sqrt((sums**2).sum()):
            return False
        return weigh(gains, self.one, self.groups, alpha).is_better(margin, alpha)


def looks(draws: int, disagreement: float, group: int, better_weeks: tuple[int, ...], params: Params) -> dict[str, Any]:
    """The share of histories in which a challenger that is no better is promoted, and of truly better ones that are.

    A history ends with its first false promotion. A look that promotes is given back, so it goes on for longer than `looks` weeks.
    """
    simulation, alpha = Simulation(group, seed=0), params.error_rate / params.looks
    false = promoted = better = 0
    for _ in tqdm(range(draws), f"disagreement {disagreement}, groups of {group}"):
        accuracy, spent, week = FIRST_ACCURACY if better_weeks else ACCURACY, 0, 0
        champion = simulation.uniform() < accuracy
        while spent < params.looks:
            gain = GAIN if week in better_weeks else 0.0
            challenger = simulation.challenger(champion, accuracy, disagreement, gain)
            better += gain > 0
            week += 1
            if not simulation.is_shown(champion, challenger, alpha, params.margin):
                spent += 1
            elif gain:
                champion, accuracy, promoted = challenger, accuracy + gain, promoted + 1
            else:
                false += 1
                break
    low, high = wilson_interval(false / draws, draws, 0.95)
    facts = {"disagreement": disagreement, "group": group, "false": false / draws, "low": round(low, 4), "high": round(high, 4)}
    return facts | ({"better": better, "promoted": round(promoted / better, 4)} if better_weeks else {})


def uneven(generator: np.random.Generator, sizes: list[int], gained: list[float], lost: list[float]) -> tuple[Array, Array, Array]:
    """Gains, classes and groups of single pictures of classes with these shares."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    drawn = generator.random(len(labels))
    gains = np.where(drawn < np.array(gained)[labels], 1, 0) - (drawn > 1 - np.array(lost)[labels])
    return gains, labels, np.arange(len(labels))


def grouped(generator: np.random.Generator, count: int, group: int, gained: float, lost: float) -> tuple[Array, Array, Array]:
    """Gains of one stratum, and their groups, which are alike."""
    groups = np.arange(count * group) // group
    common, own = generator.random(count)[groups], generator.random(len(groups))
    drawn = np.where(generator.random(len(groups)) < ALIKE, common, own)
    return (drawn < gained).astype(int) - (drawn > 1 - lost), np.zeros(len(groups), int), groups


def lost_in_whole(generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Many pictures gained one by one, and a few groups lost in whole: the worst case for any interval of few groups."""
    groups = np.arange(300) // 5
    is_lost = generator.random(60)[groups] < 0.05 / 1.05
    return np.where(is_lost, -1, generator.random(300) < 0.05).astype(int), np.zeros(300, int), groups


Draw = Callable[[np.random.Generator], tuple[Array, Array, Array]]
CASES: dict[str, tuple[float, Draw]] = {  # the true difference, and pictures
    "153 pictures, 5 % gained, 5 % lost": (0.0, lambda generator: grouped(generator, 153, 1, 0.05, 0.05)),
    "300 pictures, 6 % gained, 3 % lost": (0.03, lambda generator: grouped(generator, 300, 1, 0.06, 0.03)),
    "1,000 pictures, 2 % gained, 1 % lost": (0.01, lambda generator: grouped(generator, 1000, 1, 0.02, 0.01)),
    "60 groups of 5, 10 % gained, 10 % lost": (0.0, lambda generator: grouped(generator, 60, 5, 0.1, 0.1)),
    "100 groups of 5, 6 % gained, 3 % lost": (0.03, lambda generator: grouped(generator, 100, 5, 0.06, 0.03)),
    "balanced, 10 classes of 15": (0.0, lambda generator: uneven(generator, [15] * 10, [0.05] * 10, [0.05] * 10)),
    "balanced, 200 gained and 20 lost": (0.0, lambda generator: uneven(generator, [200, 20], [0.06, 0], [0, 0.06])),
    "groups of 5, some lost in whole": (0.0, lost_in_whole),
}


def coverage(draws: int, alpha: float) -> dict[str, dict[str, float]]:
    """How often the interval is above and below the true difference, as multiples of the stated rate, for a look and at 90 %."""
    found = {}
    for title, (true, draw) in CASES.items():
        generator, misses = np.random.default_rng(0), np.zeros(4)
        for _ in tqdm(range(draws), title):
            evidence = weigh(*draw(generator), alpha)
            (low, high), (low_wide, high_wide) = evidence.interval, evidence.wide
            misses += [low > true, high < true, low_wide > true, high_wide < true]
        rates = misses / draws / [alpha, alpha, LEVEL, LEVEL]
        found[title] = {name: round(float(rate), 2) for name, rate in zip(("above", "below", "above_90", "below_90"), rates, strict=True)}
    return found


def simulated_power(draws: int, pictures: int, gain: float, alpha: float) -> float:
    """How often the gate's rule shows a gain."""
    generator, disagreement = np.random.default_rng(0), max(DISAGREEMENT, gain)
    shown = 0
    for _ in range(draws):
        evidence = weigh(*grouped(generator, pictures, 1, (disagreement + gain) / 2, (disagreement - gain) / 2), alpha)
        shown += evidence.is_better(0.0, alpha)
    return shown / draws


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="histories (default: %(default)s)")
    draws, begun = parser.parse_args().draws, time.process_time()
    params = read_section("gate", Params, ROOT / "params.yaml")
    alpha = params.error_rate / params.looks
    settings = [(disagreement, group) for group in (1, GROUP) for disagreement in (0.05, 0.1, 0.2)]
    report = {
        "draws": draws,
        "error_rate": params.error_rate,
        "looks": params.looks,
        "test_pictures": PICTURES,
        "no_better": [looks(draws, disagreement, group, (), params) for disagreement, group in settings],
        "some_better": [looks(draws, 0.2, group, BETTER_WEEKS, params) for group in (1, GROUP)],
        "misses": coverage(2 * draws, alpha),
        "disagreement": DISAGREEMENT,
        "power": {size: {gain: round(power(size, gain / 100, DISAGREEMENT, alpha), 3) for gain in GAINS} for size in SIZES},
        "simulated_power": {size: {gain: simulated_power(draws // 2, size, gain / 100, alpha) for gain in GAINS} for size in (153, 1000)},
    }
    write_json(ROOT / "bench/gate.json", report)
    print(f"bench/gate.json: written in {time.process_time() - begun:.0f} seconds of CPU")


if __name__ == "__main__":
    main()
