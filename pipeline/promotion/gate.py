"""The gate: whether a challenger takes the place of the champion, decided from two stored tables of predictions and from params alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.core.sections import Section

Rows = Sequence[Mapping[str, str]]  # of predictions.csv, all columns
Share = Annotated[float, Field(gt=0, lt=1)]


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

    `megabytes`: of model.onnx; `milliseconds`: per picture, both measured in turn; None if not measured.
    """

    name: str
    sha256: str
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    rows: Rows
    megabytes: float
    milliseconds: float | None


@dataclass(frozen=True)
class TestSet:
    """The judged pictures.

    `sha256`: of the set, as `sha256_of_pictures`; `old`: the image ids of those on which the champion was scored when it was promoted;
    `left`: how many of the champion's test pictures are no longer there; `learned`: how many were left out because one of the two learned
    from them.
    """

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
    evaluation/scores has it. `counts`: whether it spends a look; `look`: its number at this test set, from 1; `alpha`: the one-sided level of this look.
    `classes`: a row per class: `class`, `pictures`, `challenger` and `champion` (recall), `p` (adjusted), `passed` (None: not judged).
    `old`: the same comparison on the champion's own test pictures, None if they are all; `notes`: sentences about classes,
    preprocessing and test set.
    """

    verdict: Literal["PROMOTE", "HOLD", "REJECT", "PENDING"]
    reason: str
    values: Mapping[str, Any]
    checks: Sequence[Check]
    classes: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    test: Mapping[str, Any]  # sha256, pictures, groups
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
    """Decide. `champion`: None if there is none yet; `spent`: the looks at this test set so far; `age_days`: of the champion.

    A pure function: the same arguments give the same judgement, with every float rounded to six places.
    """
    raise NotImplementedError
