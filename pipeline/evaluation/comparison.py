"""Models on the same pictures: the differences of their accuracies, and whether they are significant."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.params import BASELINE

if TYPE_CHECKING:
    from pipeline.evaluation.intervals import Array

Rows = Iterable[Mapping[str, str]]  # of predictions.csv


@dataclass(frozen=True)
class Outcomes:
    """Which test pictures a model answered correctly, and no more, so that many pictures fit into memory."""

    pictures: str  # the sha256 of their ids, in their order
    groups: "Array"  # int (pictures,)
    correct: "Array"  # bool (pictures,)


def compare_all(predictions: Mapping[str, Rows], confidence: float, seed: int) -> dict[str, Any]:
    """Every model against the baseline (`differences`), and, of three models or more, against the most accurate (`best`).

    p-values are adjusted for the number of all pairs (Holm, 1979): the most accurate model is known only after the test, so every pair
    might have become a comparison. Raises PipelineError if the rows are not of the same pictures in the same order.
    """
    outcomes = {name: _read_outcomes(rows) for name, rows in predictions.items()}
    p_values = {frozenset(pair): _p_value(*(outcomes[name] for name in pair)) for pair in combinations(outcomes, 2)}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))

    def against(first: str) -> dict[str, dict[str, Any]]:
        compared = {}
        for second, outcome in outcomes.items():
            if second != first:
                pair = frozenset((first, second))
                facts = compare(outcomes[first], outcome, confidence, seed, p_values[pair], adjusted[pair])
                compared[second] = {"against": first, **facts}
        return compared

    if len(outcomes) < 3:
        return {"differences": against(BASELINE)}
    best = max(outcomes, key=lambda name: int(outcomes[name].correct.sum()))
    return {"differences": against(BASELINE), "best": {"model": best, "differences": against(best)}}


def compare(first: Outcomes, second: Outcomes, confidence: float, seed: int, p: float, adjusted_p: float) -> dict[str, Any]:
    """The second model's accuracy minus the first's, with its interval, and the p-values of McNemar's test by group.

    `is_shown`: whether the difference is significant: the interval excludes 0, and `adjusted_p` agrees.
    """
    from pipeline.evaluation.intervals import Bootstrap, paired_difference

    first_correct, second_correct = first.correct, second.correct
    bootstrap = Bootstrap(first.groups, seed)
    difference, (low, high) = paired_difference(first_correct, second_correct, bootstrap, confidence)
    return {
        "top1_accuracy_difference": round(difference, 6),
        "top1_accuracy_difference_low": round(low, 6),
        "top1_accuracy_difference_high": round(high, 6),
        "only_first_right": int((first_correct & ~second_correct).sum()),
        "only_second_right": int((second_correct & ~first_correct).sum()),
        "mcnemar_p": float(f"{p:.6g}"),
        "mcnemar_p_adjusted": float(f"{adjusted_p:.6g}"),
        # Both must agree: if few answers differ, the bootstrap interval is too narrow, and the exact test is not.
        "is_shown": not low <= 0 <= high and adjusted_p < 1 - confidence,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method (1979): the chance of one false rejection or more stays below each."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _p_value(first: Outcomes, second: Outcomes) -> float:
    from pipeline.evaluation.intervals import mcnemar_p

    if first.pictures != second.pictures:
        raise PipelineError("results: the models were tested on different pictures; run `dvc repro`")
    return mcnemar_p(first.correct, second.correct, first.groups)


def _read_outcomes(rows: Rows) -> Outcomes:
    import numpy as np

    pictures, numbers = sha256(), dict[str, int]()
    groups, correct = array("q"), bytearray()
    for row in rows:
        pictures.update(f"{row['image_id']}\n".encode())
        groups.append(numbers.setdefault(row["group"], len(numbers)))
        correct.append(row["predicted"] == row["label"])
    return Outcomes(pictures.hexdigest(), np.array(groups), np.array(correct, dtype=bool))


def verdict(name: str, comparison: Mapping[str, Any], count: int) -> str:
    """A comparison as a sentence. `comparison`: of `compare_all`; `count`: the number of test pictures."""
    difference, low, high = (100 * comparison[f"top1_accuracy_difference{end}"] for end in ("", "_low", "_high"))
    interval, against = f"interval {low:+.1f} to {high:+.1f}", comparison["against"]
    if difference == 0:
        return f"{name} and {against} are equally accurate on {count} test pictures ({interval} points)."
    word, significance = "better" if difference > 0 else "worse", "significant" if comparison["is_shown"] else "not significant"
    return f"{name} is {word} than {against} by {abs(difference):.1f} points ({interval}): {significance} on {count} test pictures."


def verdicts_against_best(comparison: Mapping[str, Any], count: int) -> list[str]:
    """A sentence per model that is compared with the most accurate one; none if there are two models."""
    return [verdict(name, facts, count) for name, facts in comparison.get("best", {"differences": {}})["differences"].items()]


def other_test_set(before: str | None, now: str | None) -> list[str]:
    """A note if the scores before are of another set of test pictures, else none. Both: the sha256 of the set; None if it is unknown."""
    return ["the scores before are of other test pictures"] if before not in (None, now) else []
