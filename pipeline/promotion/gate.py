"""The gate: whether a challenger takes the place of the champion, decided from two stored tables of predictions and from params alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.core.sections import Section

if TYPE_CHECKING:
    from pipeline.promotion.looks import Evidence
    from pipeline.promotion.pairs import Classes, Pair

Rows = Sequence[Mapping[str, str]]  # of predictions.csv, all columns
Share = Annotated[float, Field(gt=0, lt=1)]
_WORDS = {"top1_accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
_SLACK = 1e-9  # a figure that equals its bound is within it


class Params(Section):  # section `gate` of params.yaml
    challenger: str  # `auto`, or the name of a model
    metric: Literal["top1_accuracy", "balanced_accuracy"]
    margin: Annotated[float, Field(ge=0, lt=1)]  # the challenger must be better by more than this
    error_rate: Share  # the chance that any of so many looks promotes a challenger that is no better
    looks: PositiveInt  # at one set of test pictures
    tolerance: Share  # not inferior: not worse by this much
    class_drop: Share | None  # a class whose recall is shown to be lower, and is lower by more than this, rejects
    class_pictures: PositiveInt  # classes with fewer test pictures are not judged
    log_loss: NonNegativeFloat | None  # how much higher it may be
    ece: NonNegativeFloat | None
    latency: PositiveFloat | None  # at most so many times the champion's
    size: PositiveFloat | None
    max_age_days: PositiveFloat | None  # of a champion; then a challenger that is not inferior replaces it
    require_approval: bool
    hook: str | None  # a command, run after each verdict with the decision as JSON on stdin


@dataclass(frozen=True)
class Candidate:
    """A model before the gate: what it answered on the judged pictures, in one order for both, and its measures.

    `megabytes`: of model.onnx; `milliseconds`: per picture, both measured in turn; None if not measured; `shadow`: a sentence about the
    challenger in the champion's shadow, which is a note and decides nothing; empty if it was in none.
    """

    name: str
    sha256: str
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    rows: Rows
    megabytes: float
    milliseconds: float | None
    shadow: str = ""


@dataclass(frozen=True)
class TestSet:
    """The judged pictures.

    `sha256`: of the set, as `sha256_of_pictures`; `old`: the image ids of those on which the champion was scored when it was promoted;
    `left`: how many of the champion's test pictures are no longer there; `learned`: how many were left out because one of the two learned
    from them.
    """

    __test__ = False  # it is no test: pytest collects classes whose names begin so

    sha256: str
    old: frozenset[str]
    left: int = 0
    learned: int = 0


@dataclass(frozen=True)
class Check:
    """One line of the gate's table. `passed`: None if it was not judged. `text`: a sentence."""

    name: str  # as top1_accuracy, log_loss, latency, recall
    challenger: float | None
    champion: float | None
    difference: float | None
    low: float | None
    high: float | None
    bound: float | None
    passed: bool | None
    text: str


@dataclass(frozen=True)
class Judgement:
    """What the gate decided, with all figures. `as_dict` is what the journal keeps.

    `values`: the metric of each side with its own interval, `{challenger: {value, low, high}, champion: … or None}`, at 95 %, as
    evaluation/scores has it. `counts`: whether it spends a look; if the verdict is PROMOTE, the look is given back: `spent` leaves it out.
    `look`: its number at this test set, from 1; `alpha`: the one-sided level of this look.
    `classes`: a row per class: `class`, `pictures`, `challenger` and `champion` (recall), `p` (adjusted), `passed` (None: not judged).
    `test`: `sha256`, and the numbers of `pictures`, of those that are `judged` and of their `groups`. `old`: the same comparison on the
    champion's own test pictures, None if they are all or none; `notes`: sentences about classes, preprocessing, test set
    and shadow.
    """

    verdict: Literal["PROMOTE", "HOLD", "REJECT", "PENDING"]
    reason: str
    values: Mapping[str, Any]
    checks: Sequence[Check]
    classes: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    test: Mapping[str, Any]
    old: Mapping[str, Any] | None
    counts: bool
    look: int
    looks: int
    alpha: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge(
    challenger: Candidate, champion: Candidate | None, test: TestSet, spent: int, age_days: float | None, params: Params
) -> Judgement:
    """Decide. `champion`: None if there is none yet; `spent`: the looks at this test set so far, without those that promoted;
    `age_days`: of the champion.

    A pure function: the same arguments give the same judgement, with every float rounded to six places. Raises PipelineError if the two
    tables are not of the same pictures.
    """
    from pipeline.promotion import pairs

    classes = pairs.compare_classes(challenger, champion)
    pair = pairs.align(challenger, champion, classes)
    judgement = Judgement(
        verdict="HOLD",
        reason="no test picture is of a class that is known: new test pictures are needed",
        values={"challenger": None, "champion": None},
        checks=(),
        classes=pairs.class_table(pair, challenger, classes, params.class_pictures, params.class_drop),
        notes=pairs.notes(challenger, champion, test, pair, classes),
        test={"sha256": test.sha256, "pictures": len(challenger.rows), "judged": len(pair.image_ids), "groups": pair.count_groups()},
        old=None,
        counts=False,
        look=spent + 1,
        looks=params.looks,
        alpha=params.error_rate / params.looks,
    )
    if pair.image_ids:
        judgement = replace(judgement, values=pair.figures(params.metric))
        if champion is None:
            judgement = _judge_first(judgement, pair, params)
        else:
            judgement = _compare(judgement, challenger, champion, pair, classes, age_days, params)
            judgement = replace(judgement, old=_compare_old(pair, test, judgement.alpha, params))
    elif any(row["label"] in challenger.class_names for row in challenger.rows):
        reason = "the champion knows no class of the test pictures, so a person must approve the challenger"
        judgement = replace(judgement, verdict="PENDING", reason=reason)
    if judgement.verdict == "PROMOTE" and params.require_approval:
        judgement = replace(judgement, verdict="PENDING", reason=f"{judgement.reason}; a person must approve it")
    return _rounded(judgement)


def _judge_first(judgement: Judgement, pair: "Pair", params: Params) -> Judgement:
    """A first champion must be shown to be better than the most frequent class as the answer to every picture."""
    value, low, high = (judgement.values["challenger"][key] for key in ("value", "low", "high"))
    chance = pair.chance(params.metric)
    is_better = bool(low > chance)
    text = f"{_WORDS[params.metric]} {_percent(value)} (95 % interval {_percent(low)} to {_percent(high)}) is "
    text += f"{'above' if is_better else 'not shown to be above'} the {_percent(chance)} of one answer to every picture"
    check = Check(params.metric, value, None, None, low, high, chance, is_better, text)
    if is_better:
        return replace(judgement, verdict="PROMOTE", reason=f"the first champion: {text}", checks=[check])
    return replace(judgement, reason=f"there is no champion yet: {text}", checks=[check])


def _compare(
    judgement: Judgement,
    challenger: Candidate,
    champion: Candidate,
    pair: "Pair",
    classes: "Classes",
    age_days: float | None,
    params: Params,
) -> Judgement:
    from pipeline.promotion.looks import weigh

    evidence = weigh(pair.gains, pair.strata(params.metric), pair.groups, judgement.alpha)
    lenient = _why_lenient(classes, age_days, params)
    primary = _check_metric(judgement, evidence, lenient, params)
    checks = [primary, *_check_bounds(challenger, champion, pair, params), *_check_recall(judgement.classes, params)]
    judgement = replace(judgement, checks=checks)
    if challenger.sha256 == champion.sha256:
        return replace(judgement, reason="the challenger is the champion")
    # A look is spent where it might have shown that the challenger is better. «Not inferior» claims no gain, so it spends none.
    counts = judgement.look <= judgement.looks and not lenient and evidence.disagreement > 0
    judgement = replace(judgement, counts=counts)
    if failed := [check.text for check in checks if check.passed is False]:
        return replace(judgement, verdict="REJECT", reason="; ".join(failed))
    if classes.vanished and evidence.is_not_inferior(params.tolerance):
        reason = f"the challenger does not know {listed(classes.vanished)} any more, so a person must approve it; {primary.text}"
        return replace(judgement, verdict="PENDING", reason=reason)
    if primary.passed and (lenient or counts):
        return replace(judgement, verdict="PROMOTE", reason=f"{lenient}; {primary.text}" if lenient else primary.text)
    if pair.is_same and not lenient:
        return replace(judgement, reason="the challenger gives the champion's answer to every test picture")
    sentences = [lenient, primary.text]
    if not lenient:
        power = _power_sentence(evidence, pair, judgement.alpha, params.margin)
        sentences = [primary.text, _look_sentence(judgement), power]
    return replace(judgement, reason="; ".join(sentences))


def _look_sentence(judgement: Judgement) -> str:
    left = judgement.looks - judgement.look + 1
    if left < 1:
        return f"all {judgement.looks} looks at these test pictures are spent, so new test pictures are needed"
    return f"look {judgement.look} of {judgement.looks}, {left - judgement.counts} left" if judgement.counts else f"{left} looks left"


def _why_lenient(classes: "Classes", age_days: float | None, params: Params) -> str:
    """Why it is enough that the challenger is not inferior; empty if it must be better."""
    why = []
    if age_days is not None and params.max_age_days is not None and age_days > params.max_age_days:
        why.append(f"the champion is {age_days:.0f} days old, more than {params.max_age_days:g}")
    if classes.new:
        why.append(f"the champion does not know {listed(classes.new)}")
    if classes.renamed:
        why.append(f"the champion knows {listed(list(classes.renamed.values()))} by an earlier name")
    return "; ".join(why)


def _check_metric(judgement: Judgement, evidence: "Evidence", lenient: str, params: Params) -> Check:
    """`passed`: True if better, or if not inferior where that is enough; False if it is shown to be worse; else None."""
    values = [judgement.values[side]["value"] for side in ("challenger", "champion")]
    is_not_inferior = evidence.is_not_inferior(params.tolerance)
    passed: bool | None
    if evidence.is_worse() and not (lenient and is_not_inferior):
        (low, high), bound, passed, shown = evidence.wide, 0.0, False, "shown to be worse"
    elif lenient:
        (low, high), bound, passed = evidence.wide, -params.tolerance, is_not_inferior or None
        shown = f"{'' if passed else 'not '}shown to be not worse by {_points(params.tolerance)}"
        if passed and low <= bound:
            shown = f"not worse on these pictures, which are too few to show a loss of {_points(params.tolerance)}"
    else:
        (low, high), bound, passed = evidence.interval, params.margin, evidence.is_better(params.margin, judgement.alpha) or None
        shown = f"{'' if passed else 'not '}shown to be better" + (f" by more than {_points(bound)}" if bound else "")
    interval = f"{100 * evidence.difference:+.1f} points, interval {100 * low:+.1f} to {100 * high:+.1f}"
    text = f"{_WORDS[params.metric]} {_percent(values[0])} against {_percent(values[1])} ({interval}): {shown}"
    return Check(params.metric, values[0], values[1], evidence.difference, low, high, bound, passed, text)


def _check_bounds(challenger: Candidate, champion: Candidate, pair: "Pair", params: Params) -> list[Check]:
    from pipeline.promotion.pairs import calibration_errors, log_losses

    return [
        _check_difference("log_loss", "log loss", log_losses(pair), params.log_loss),
        _check_difference("ece", "ECE", calibration_errors(pair), params.ece),
        _check_ratio("latency", "ms per picture", challenger.milliseconds, champion.milliseconds, params.latency),
        _check_ratio("size", "MB", challenger.megabytes, champion.megabytes, params.size),
    ]


def _check_difference(name: str, word: str, values: tuple[float, float] | None, bound: float | None) -> Check:
    if values is None:
        return Check(name, None, None, None, None, None, bound, None, f"{word} is not known for both models")
    difference = values[0] - values[1]
    text = f"{word} {values[0]:.3f} against {values[1]:.3f} ({difference:+.3f})"
    if bound is None:
        return Check(name, *values, difference, None, None, None, None, f"{text}: not judged")
    return Check(name, *values, difference, None, None, bound, difference <= bound + _SLACK, f"{text}: at most {bound:+.3f} is allowed")


def _check_ratio(name: str, unit: str, challenger: float | None, champion: float | None, bound: float | None) -> Check:
    known = [value if value is not None and isfinite(value) and value > 0 else None for value in (challenger, champion)]
    first, second = known
    if first is None or second is None:
        return Check(name, first, second, None, None, None, bound, None, f"{name} is not known for both models")
    text = f"{name} {first:.3g} against {second:.3g} {unit} ({first / second:.2f} times)"
    if bound is None:
        return Check(name, first, second, first - second, None, None, None, None, f"{text}: not judged")
    is_within = first <= second * bound * (1 + _SLACK)
    return Check(name, first, second, first - second, None, None, bound, is_within, f"{text}: at most {bound:g} times is allowed")


def _check_recall(rows: Sequence[Mapping[str, Any]], params: Params) -> list[Check]:
    """One check of all classes together, with the figures of the class that loses most."""
    if params.class_drop is None:
        return []
    judged = [row for row in rows if row["passed"] is not None]
    if not judged:
        text = f"recall is not judged: no class has {params.class_pictures} judged test pictures"
        return [Check("recall", None, None, None, None, None, -params.class_drop, None, text)]
    failed = [f"{row['class']} ({_percent(row['challenger'])} against {_percent(row['champion'])})" for row in judged if not row["passed"]]
    worst = min(judged, key=lambda row: float(row["challenger"] - row["champion"]))
    difference = worst["challenger"] - worst["champion"]
    limit = f"lower by more than {_points(params.class_drop)}"
    text = f"recall is shown to be {limit}: {listed(failed)}" if failed else f"recall is not shown to be {limit} in any class"
    if not failed and difference < 0:
        text += f"; {worst['class']} loses most ({100 * difference:+.1f} points)"
    if unjudged := sum(row["passed"] is None for row in rows):
        text += f"; {unjudged} of {len(rows)} classes not judged"
    return [Check("recall", worst["challenger"], worst["champion"], difference, None, None, -params.class_drop, not failed, text)]


def _compare_old(pair: "Pair", test: TestSet, alpha: float, params: Params) -> dict[str, Any] | None:
    """The comparison on the pictures on which the champion was promoted; None if they are all or none."""
    from pipeline.promotion.looks import weigh

    is_old = [image_id in test.old for image_id in pair.image_ids]
    if all(is_old) or not any(is_old):
        return None
    part = pair.part(is_old)
    evidence = weigh(part.gains, part.strata(params.metric), part.groups, alpha)
    values = {side: figure["value"] for side, figure in part.figures(params.metric).items() if figure}
    low, high = evidence.interval
    return {"pictures": len(part.image_ids), **values, "difference": evidence.difference, "low": low, "high": high}


def _power_sentence(evidence: "Evidence", pair: "Pair", alpha: float, margin: float) -> str:
    """Which gain these test pictures show: about as much beyond the margin as they show beyond 0."""
    from pipeline.promotion.looks import detectable_gain

    gain = detectable_gain(int(evidence.size), evidence.disagreement, alpha)
    subject = "1 test picture sees" if len(pair.image_ids) == 1 else f"{len(pair.image_ids):,} test pictures see"
    return f"{subject} {'no gain' if gain is None else f'a gain of {_points(gain + margin)}'} in 80 of 100 cases"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:g} point" + "s" * (round(100 * share, 6) != 1)


def listed(names: Sequence[str]) -> str:
    """At most five names, and how many there are beyond them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _rounded(judgement: Judgement) -> Judgement:
    """Every float with six decimal places; None in place of what is not finite."""

    def clean(value: Any) -> Any:
        if isinstance(value, Check):
            return Check(**clean(vars(value)))
        if isinstance(value, Mapping):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(each) for each in value]
        if isinstance(value, float):
            return round(value, 6) + 0.0 if isfinite(value) else None
        return value

    return Judgement(**clean(vars(judgement)))
