"""Simulate `pipeline drift`: its false-alarm rate over splits of one population, its power, and which estimate of the accuracy is closest.

    python bench/drift.py [--splits 1000] [--small]

The population is scikit-learn's digits; the features are those of a random convolution, its classifier is a logistic regression of
other digits. Every split is compared by `compare` of pipeline/drift/findings.py, with fewer permutations for a single look, which does not
change the false-alarm rate. Writes `bench/drift.json`.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from pipeline.core.files import write_json
from pipeline.drift.findings import compare
from pipeline.drift.reference import Reference, Sample
from pipeline.drift.unlabelled import METHODS, estimate_accuracy
from pipeline.evaluation.intervals import Array, wilson_interval
from pipeline.pictures.inspection import brightness_and_sharpness

ROOT = Path(__file__).parent.parent
ALPHA, PERMUTATIONS = 0.05, 199
LOOKS, LOOK_PERMUTATIONS = 30, 1999  # of the daily looks
LEARNED, TESTED, NEW = 500, 500, 200  # digits: for the classifier, the reference, a look
GROUP = 4
SIZE = 24  # pixels of a side
_FILTERS = 48


def draw(image: Array, group_shade: float = 0.0) -> Image.Image:
    """A digit as a picture. `group_shade`: how much brighter its group is."""
    grey = np.clip(image * (255 / 16) * 0.8 + 20 + group_shade, 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


class Population:
    """Digits, measured as `pipeline drift` measures pictures, and a classifier of others of them. `change`: of every picture."""

    def __init__(self, seed: int) -> None:
        digits, generator = load_digits(), np.random.default_rng(seed)
        order = generator.permutation(len(digits.target))
        self.filters = generator.normal(size=(_FILTERS, 5, 5)) / 5
        learned, self.rows = order[:LEARNED], order[LEARNED:]
        self.images, self.labels = digits.images, digits.target
        pictures = [draw(self.images[row]) for row in learned]
        self.model = LogisticRegression(C=30, max_iter=1000).fit(self.features(pictures), self.labels[learned])

    def features(self, pictures: list[Image.Image]) -> Array:
        """Random convolutions, rectified and averaged in four by four fields: float32 (pictures, 768)."""
        pixels = np.stack([np.asarray(picture.convert("L"), np.float32) / 255 - 0.4 for picture in pictures])
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (5, 5), axis=(1, 2))
        maps = np.maximum(np.einsum("nhwij,fij->nfhw", windows, self.filters, optimize=True), 0)
        return np.asarray(maps.reshape(len(maps), _FILTERS, 4, 5, 4, 5).mean(axis=(3, 5)).reshape(len(maps), -1), np.float32)

    def measure(self, pictures: list[Image.Image], groups: Array) -> Sample:
        """What is known of pictures."""
        features = self.features(pictures)
        probs = self.model.predict_proba(features).astype(np.float32)
        light = np.array([brightness_and_sharpness(picture) for picture in pictures])
        sides = np.array([picture.size for picture in pictures])
        return Sample(features.astype(np.float16), probs, groups, light[:, 0], light[:, 1], sides[:, 0], sides[:, 1])


def split_rates(population: Population, splits: int, group: int, seed: int) -> dict[str, Any]:
    """How often a random split of the population is called drift, by one look at ALPHA. `group`: pictures of a group, of one shade."""
    generator = np.random.default_rng(seed)
    count = len(population.rows) // group * group
    groups = np.arange(count) // group
    shades = generator.normal(0, 25 if group > 1 else 0, count // group)[groups]
    # Pictures of a group are of one class, too.
    rows = population.rows[np.argsort(population.labels[population.rows], kind="stable")] if group > 1 else population.rows
    pictures = [draw(population.images[row], shade) for row, shade in zip(rows[:count], shades, strict=True)]
    everything, labels = population.measure(pictures, groups), population.labels[rows[:count]]
    names = [str(label) for label in range(10)]
    alarms, covered, ignored, start = 0, 0, 0, time.perf_counter()
    for _ in tqdm(range(splits), desc=f"groups of {group}"):
        order = generator.permutation(groups.max() + 1)
        old = np.flatnonzero(np.isin(groups, order[: TESTED // group]))
        new = np.flatnonzero(np.isin(groups, order[TESTED // group : (TESTED + NEW) // group]))
        reference = Reference(everything.take(old), labels[old], names, "")
        found = compare(reference, everything.take(new), ALPHA, count=PERMUTATIONS)
        alarms += found.p is not None and found.p <= ALPHA
        truth = (everything.predicted[new] == labels[new]).mean()
        covered += found.accuracy["low"] is not None and found.accuracy["low"] <= truth <= found.accuracy["high"]
        ignored += found.p is None
    return {
        **_rate(alarms, splits),
        "accuracy_covered": covered / splits,
        "untested": ignored,
        "seconds": round(time.perf_counter() - start),
    }


def period_rate(population: Population, periods: int, seed: int) -> dict[str, Any]:
    """How often any look of a period of LOOKS, each at other pictures of the same population, is called drift."""
    generator = np.random.default_rng(seed)
    everything = population.measure([draw(population.images[row]) for row in population.rows], np.arange(len(population.rows)))
    labels, names = population.labels[population.rows], [str(label) for label in range(10)]
    alarms = 0
    for _ in tqdm(range(periods), desc="periods"):
        order = generator.permutation(len(labels))
        reference = Reference(everything.take(order[:TESTED]), labels[order[:TESTED]], names, "")
        rest, is_alarm = order[TESTED:], False
        for _ in range(LOOKS):
            sample = everything.take(generator.choice(rest, NEW, replace=False))
            found = compare(reference, sample, ALPHA / LOOKS, count=PERMUTATIONS)
            # More permutations, of which these are the first, cannot make a p-value small that is not small by these.
            if found.p is not None and found.p <= ALPHA:
                is_alarm |= compare(reference, sample, ALPHA / LOOKS, count=LOOK_PERMUTATIONS).verdict == "drift"
        alarms += is_alarm
    return _rate(alarms, periods)


def _rate(hits: int, count: int) -> dict[str, float]:
    low, high = wilson_interval(hits / count, count, 0.95)
    return {"rate": hits / count, "low": round(low, 4), "high": round(high, 4), "of": count}


def _foreign(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """One picture in ten is replaced by stripes."""
    if generator.random() > 0.1:
        return picture
    stripes = np.zeros((SIZE, SIZE), np.uint8)
    stripes[:, :: int(generator.integers(2, 6))] = 200
    return Image.fromarray(stripes).convert("RGB")


CHANGES: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "nothing": lambda picture, _: picture,
    "5 % darker": lambda picture, _: ImageEnhance.Brightness(picture).enhance(0.95),
    "10 % darker": lambda picture, _: ImageEnhance.Brightness(picture).enhance(0.9),
    "30 % darker": lambda picture, _: ImageEnhance.Brightness(picture).enhance(0.7),
    "blur of 0.5 pixels": lambda picture, _: picture.filter(ImageFilter.GaussianBlur(0.5)),
    "blur of 1.5 pixels": lambda picture, _: picture.filter(ImageFilter.GaussianBlur(1.5)),
    "turned by 15 degrees": lambda picture, _: picture.rotate(15, fillcolor=(20, 20, 20)),
    "turned by 30 degrees": lambda picture, _: picture.rotate(30, fillcolor=(20, 20, 20)),
    "10 % foreign pictures": _foreign,
}


def power_rows(population: Population, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Per change: how often one look of a period finds it, how often given the class, and the errors of the estimated accuracies."""
    generator = np.random.default_rng(seed)
    rows = [_power(population, name, change, None, repeats, generator) for name, change in CHANGES.items()]
    for share in (0.2, 0.4):
        rows.append(_power(population, f"class 3: {share:.0%} of the pictures", CHANGES["nothing"], share, repeats, generator))
    return rows


def _power(
    population: Population, name: str, change: Callable[..., Image.Image], share: float | None, repeats: int, generator: np.random.Generator
) -> dict[str, Any]:
    names, found, within, errors, covered, fall = [str(label) for label in range(10)], 0, 0, dict[str, list[float]](), 0, list[float]()
    for _ in tqdm(range(repeats), desc=name):
        order = generator.permutation(population.rows)
        old, rest = order[:TESTED], order[TESTED:]
        weights = np.ones(len(rest))
        if share is not None:
            is_three = population.labels[rest] == 3
            weights = np.where(is_three, share / is_three.sum(), (1 - share) / (~is_three).sum())
        new = generator.choice(rest, NEW, replace=False, p=weights / weights.sum())
        reference = Reference(
            population.measure([draw(population.images[row]) for row in old], np.arange(TESTED)), population.labels[old], names, ""
        )
        sample = population.measure([change(draw(population.images[row]), generator) for row in new], np.arange(NEW))
        findings = compare(reference, sample, ALPHA / LOOKS, count=LOOK_PERMUTATIONS)
        found += findings.verdict == "drift"
        within += findings.within is not None and findings.within["p"] <= ALPHA
        truth = float((sample.predicted == population.labels[new]).mean())
        fall.append(truth - findings.accuracy["reference"])
        for method in METHODS:
            errors.setdefault(method, []).append(abs(estimate_accuracy(reference, sample, 0.95, method)["value"] - truth))
        covered += findings.accuracy["low"] is not None and findings.accuracy["low"] <= truth <= findings.accuracy["high"]
    return {
        "change": name, "found": found / repeats, "within": within / repeats, "accuracy_change": round(float(np.mean(fall)), 3),
        "errors": {method: round(float(np.mean(values)), 3) for method, values in errors.items()},
        "covered": covered / repeats, "of": repeats,
    }  # fmt: skip


def tables(facts: Mapping[str, Any]) -> str:
    """The figures as docs/drift.md quotes them."""
    titles = {"single": "one look, single pictures", "grouped": f"one look, groups of {GROUP}", "period": f"a period of {LOOKS} looks"}
    alarms = ["| pictures of one population | false alarms | of | accuracy within its interval |", "| --- " * 4 + "|"]
    for name, title in titles.items():
        found = facts[name]
        covered = f"{found['accuracy_covered']:.3f}" if "accuracy_covered" in found else ""
        alarms.append(f"| {title} | {found['rate']:.3f} [{found['low']:.3f}, {found['high']:.3f}] | {found['of']} | {covered} |")
    power = ["| change | found | given the class | change of the accuracy | error by `doc` | error by `atc` |", "| --- " * 6 + "|"]
    for row in facts["power"]:
        errors = " | ".join(f"{row['errors'][method]:.3f}" for method in ("doc", "atc"))
        power.append(f"| {row['change']} | {row['found']:.2f} | {row['within']:.2f} | {row['accuracy_change']:+.3f} | {errors} |")
    return "\n".join([*alarms, "", *power])


def main() -> None:
    """Simulate, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--small", action="store_true", help="a fiftieth of everything, to see that it works; writes nothing")
    parsed = parser.parse_args()
    splits = parsed.splits // 50 if parsed.small else parsed.splits
    population = Population(0)
    facts = {
        "single": split_rates(population, splits, 1, 1),
        "grouped": split_rates(population, splits, GROUP, 2),
        "period": period_rate(population, max(1, splits // 20), 3),
        "power": power_rows(population, max(2, splits // 50), 4),
    }
    print(tables(facts))
    if not parsed.small:
        write_json(ROOT / "bench/drift.json", facts)


if __name__ == "__main__":
    main()
