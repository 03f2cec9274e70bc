"""Two models' answers side by side: which classes both know, which test pictures are judged, and the figures of each side."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.calibration import expected_calibration_error
from pipeline.evaluation.comparison import holm
from pipeline.evaluation.intervals import Array, mean_of_proportions_interval, proportion_interval
from pipeline.promotion.looks import LEVEL, sign_flip_p, stratified_mean

if TYPE_CHECKING:
    from pipeline.promotion.gate import Candidate, TestSet

Rows = Sequence[Mapping[str, str]]  # of predictions.csv
_CONFIDENCE = 0.95  # of each side's own interval


@dataclass(frozen=True)
class Classes:
    """How the classes of a challenger differ from the champion's. `renamed`: the new name by the old one; the others are in order.

    `divided`: a class of the champion that became several, with their names, which are also among the new ones.
    """

    new: Sequence[str]
    vanished: Sequence[str]
    renamed: Mapping[str, str]
    divided: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Side:
    """One model's answers on the pictures of a `Pair`. Each: (pictures,)."""

    correct: Array  # bool
    probability: Array  # float, of its answer; NaN if unknown
    label_probability: Array  # float, of the label; NaN if the model does not know the class

    def part(self, numbers: Array) -> "Side":
        """Some of the pictures."""
        return Side(self.correct[numbers], self.probability[numbers], self.label_probability[numbers])


@dataclass(frozen=True)
class Pair:
    """Judged pictures: those whose class both models know. Each array: (pictures,). Without a champion, all that the challenger knows."""

    image_ids: Sequence[str]
    labels: Array  # str
    groups: Array  # int
    challenger: Side
    champion: Side | None
    is_same: bool  # every answer of the two

    @property
    def gains(self) -> Array:
        """1 if the challenger alone is right, -1 if the champion alone is right, else 0: int (pictures,)."""
        assert self.champion is not None  # noqa: S101 - whoever asks has a champion
        return np.asarray(self.challenger.correct.astype(int) - self.champion.correct)

    def strata(self, metric: str) -> Array:
        """The strata over whose means the metric is the mean: one, or the classes. int (pictures,)."""
        return np.unique(self.labels, return_inverse=True)[1] if metric == "balanced_accuracy" else np.zeros(len(self.labels), int)

    def figures(self, metric: str) -> dict[str, dict[str, float] | None]:
        """The metric of each side with its own interval at 95 %: `value`, `low`, `high`."""
        champion = None if self.champion is None else self._figure(self.champion, metric)
        return {"challenger": self._figure(self.challenger, metric), "champion": champion}

    def _figure(self, side: Side, metric: str) -> dict[str, float]:
        strata = self.strata(metric)
        if metric == "balanced_accuracy":
            low, high = mean_of_proportions_interval(side.correct, strata, self.groups, _CONFIDENCE)
        else:
            low, high = proportion_interval(side.correct, self.groups, _CONFIDENCE)
        return {"value": stratified_mean(side.correct, strata), "low": low, "high": high}

    def chance(self, metric: str) -> float:
        """The metric of a model that answers every picture with the most frequent class."""
        counts = np.unique(self.labels, return_counts=True)[1]
        return float(1 / len(counts) if metric == "balanced_accuracy" else counts.max() / counts.sum())

    def count_groups(self) -> int:
        """The number of groups."""
        return len(np.unique(self.groups))

    def part(self, chosen: Sequence[bool]) -> "Pair":
        """Some of the pictures. `chosen`: (pictures,)."""
        numbers = np.flatnonzero(chosen)
        groups = np.unique(self.groups[numbers], return_inverse=True)[1]
        ids = [self.image_ids[number] for number in numbers.tolist()]
        champion = self.champion and self.champion.part(numbers)
        return Pair(ids, self.labels[numbers], groups, self.challenger.part(numbers), champion, self.is_same)


def compare_classes(challenger: "Candidate", champion: "Candidate | None") -> Classes:
    """New, vanished, renamed and divided classes; none without a champion.

    A new class is a vanished one under another name if the champion gives that name to more than half of its test pictures, and to no
    other new class so. Raises PipelineError if the rows are not of the same pictures in the same order.
    """
    if champion is None:
        return Classes((), (), {}, {})
    if [row["image_id"] for row in challenger.rows] != [row["image_id"] for row in champion.rows]:
        counts = f"{len(challenger.rows)} and {len(champion.rows)} predictions"
        raise PipelineError(f"gate: {counts} are not of the same pictures in the same order; run `pipeline retrain`")
    new, vanished = (set(one.class_names) - set(other.class_names) for one, other in ((challenger, champion), (champion, challenger)))
    answers = defaultdict[str, Counter[str]](Counter)
    for row, champion_row in zip(challenger.rows, champion.rows, strict=True):
        if row["label"] in new:
            answers[row["label"]][champion_row["predicted"]] += 1
    claims = defaultdict[str, list[str]](list)
    for name in sorted(answers):
        answer, count = answers[name].most_common(1)[0]
        if answer in vanished and 2 * count > answers[name].total():
            claims[answer].append(name)
    renamed = {old: claimed[0] for old, claimed in claims.items() if len(claimed) == 1}
    return Classes(
        new=sorted(new - set(renamed.values())),
        vanished=sorted(vanished - set(renamed)),
        renamed=dict(sorted(renamed.items())),
        divided={old: claimed for old, claimed in sorted(claims.items()) if len(claimed) > 1},
    )


def align(challenger: "Candidate", champion: "Candidate | None", classes: Classes) -> Pair:
    """The judged pictures. The labels are those of the challenger's rows. The rows are of the same pictures in the same order."""
    known = set(challenger.class_names)
    if champion is not None:
        known &= {classes.renamed.get(name, name) for name in champion.class_names}
    numbers = [number for number, row in enumerate(challenger.rows) if row["label"] in known]
    rows = [challenger.rows[number] for number in numbers]
    labels, groups = [row["label"] for row in rows], [row.get("group") or row["image_id"] for row in rows]
    side, other, is_same = _side(rows, labels, {}, challenger.class_names), None, False
    if champion is not None:
        others = [champion.rows[number] for number in numbers]
        other = _side(others, labels, classes.renamed, champion.class_names)
        answers = [classes.renamed.get(row["predicted"], row["predicted"]) for row in others]
        is_same = answers == [row["predicted"] for row in rows]
    numbered = np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
    return Pair([row["image_id"] for row in rows], np.array(labels, dtype=str), numbered, side, other, is_same)


def _side(rows: Rows, labels: Sequence[str], renamed: Mapping[str, str], names: Sequence[str]) -> Side:
    known = set(names)
    correct = [renamed.get(row["predicted"], row["predicted"]) == label for row, label in zip(rows, labels, strict=True)]
    # The probability in the table is that of the label in the table, which may be another one than today's.
    is_of_label = [
        row["label"] in known and renamed.get(row["label"], row["label"]) == label for row, label in zip(rows, labels, strict=True)
    ]
    label_probability = np.where(np.array(is_of_label, bool), _numbers(rows, "label_probability"), np.nan)
    return Side(np.array(correct, bool), _numbers(rows, "probability"), label_probability)


def _numbers(rows: Rows, column: str) -> Array:
    """A column of probabilities; NaN where there is none. float (pictures,)."""

    def parse(text: str | None) -> float:
        try:
            value = float(text or "nan")
        except ValueError:
            return np.nan
        return value if isfinite(value) and 0 <= value <= 1 else np.nan

    return np.array([parse(row.get(column)) for row in rows], float)


def log_losses(pair: Pair) -> tuple[float, float] | None:
    """The mean log losses of challenger and champion on the pictures where both are known; None if there is none."""
    return _means(pair, "label_probability", lambda answers: float(answers.log_losses.mean()))


def calibration_errors(pair: Pair) -> tuple[float, float] | None:
    """The expected calibration errors of challenger and champion on the pictures where both are known; None if there is none."""
    return _means(pair, "probability", expected_calibration_error)


def _means(pair: Pair, column: str, measure: Any) -> tuple[float, float] | None:
    assert pair.champion is not None  # noqa: S101
    sides = pair.challenger, pair.champion
    known = np.logical_and.reduce([np.isfinite(getattr(side, column)) for side in sides])
    if not known.any():
        return None
    nothing = np.zeros(int(known.sum()))
    first, second = (
        measure(
            Answers(
                nothing + 1, side.correct[known].astype(float), side.probability[known], side.label_probability[known], nothing, nothing
            )
        )
        for side in sides
    )
    return first, second


def class_table(pair: Pair, challenger: "Candidate", classes: Classes, fewest: int, drop: float | None) -> list[dict[str, Any]]:
    """A row per class of either model: its test pictures, both recalls, the adjusted p-value that the challenger's is lower, `passed`.

    `passed`: None if the class has fewer than `fewest` pictures, if the champion does not know it, or if any drop is allowed (None).
    """
    order = np.argsort(pair.labels, kind="stable")
    found, starts = np.unique(pair.labels[order], return_index=True)
    members = dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
    rows = [_class_row(pair, name, members.get(name, np.array([], int))) for name in [*challenger.class_names, *classes.vanished]]
    _add_new_recalls(rows, challenger, classes)
    judged = [row for row in rows if drop is not None and row["champion"] is not None and row["pictures"] >= fewest]
    p_values = [_class_p(pair, members[row["class"]]) for row in judged]
    for row, p in zip(judged, holm(p_values), strict=True):
        row["p"], row["passed"] = p, not (p <= LEVEL and row["champion"] - row["challenger"] > (drop or 0))
    return rows


def _add_new_recalls(rows: list[dict[str, Any]], challenger: "Candidate", classes: Classes) -> None:
    """The pictures of new classes are not judged, but the challenger's recall is shown."""
    correct = {name: list[bool]() for name in classes.new}
    for row in challenger.rows:
        if row["label"] in correct:
            correct[row["label"]].append(row["predicted"] == row["label"])
    for row in rows:
        if answers := correct.get(row["class"]):
            row.update(pictures=len(answers), challenger=float(np.mean(answers)))


def _class_row(pair: Pair, name: str, members: Array) -> dict[str, Any]:
    recalls = [float(side.correct[members].mean()) if side and len(members) else None for side in (pair.challenger, pair.champion)]
    return {"class": name, "pictures": len(members), "challenger": recalls[0], "champion": recalls[1], "p": None, "passed": None}


def _class_p(pair: Pair, members: Array) -> float:
    """How likely so large a loss of recall is if every group's loss may as well be a gain."""
    _, groups = np.unique(pair.groups[members], return_inverse=True)
    return sign_flip_p(-np.bincount(groups, pair.gains[members]))


def notes(challenger: "Candidate", champion: "Candidate | None", test: "TestSet", pair: Pair, classes: Classes) -> list[str]:
    """Sentences about test set, classes, preprocessing and shadow."""
    known = set(pair.labels.tolist())
    sentences = [
        _counted(
            test.learned,
            "left out, because one of the two models learned from it",
            "left out, because one of the two models learned from them",
        ),
        _counted(
            len(challenger.rows) - len(pair.image_ids),
            "not judged: not both models know its class",
            "not judged: not both models know their classes",
        ),
        "all judged test pictures are of one group, so they show nothing" if pair.count_groups() == 1 else "",
        f"all judged test pictures are of class {known.pop()}" if len(known) == 1 else "",
    ]
    if champion is not None:
        added = sum(row["image_id"] not in test.old for row in challenger.rows)
        sentences += [
            _counted(test.left, "no longer there", "no longer there"),
            _counted(added, "new to the champion", "new to the champion"),
            *(f"class {name} is new" for name in classes.new),
            *(f"class {name} has vanished" for name in classes.vanished),
            *(
                f"class {old} is called {name} now: the champion answers {old} to most of its pictures"
                for old, name in classes.renamed.items()
            ),
            *(f"class {old} is divided into {', '.join(names)}" for old, names in classes.divided.items()),
        ]
        keys = sorted({*challenger.preprocessing, *champion.preprocessing})
        other = [key for key in keys if challenger.preprocessing.get(key) != champion.preprocessing.get(key)]
        sentences += [f"the preprocessing of the two models differs: {', '.join(other)}" if other else "", challenger.shadow]
    return [sentence for sentence in sentences if sentence]


def _counted(number: int, one: str, several: str) -> str:
    return "" if number == 0 else f"1 test picture is {one}" if number == 1 else f"{number:,} test pictures are {several}"
