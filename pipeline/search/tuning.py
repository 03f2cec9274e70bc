"""Studies: trials of a recipe proposed and pruned by Optuna, one after the other, kept in one file."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, create_model

from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir, sha256_of_json, write_json
from pipeline.core.hardware import choose_hardware, key_here
from pipeline.core.params import Section, nearest, read_section
from pipeline.networks.artifact import identity
from pipeline.networks.classifier import load_backbone
from pipeline.networks.regimes import make_plan
from pipeline.training.batches import TrainingData, decode_val
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.loop import describe_training, prepare, start_classifier, train
from pipeline.training.recipe import DivergedError, EpochMetrics, Recipe, resolve_auto

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_JUDGE = "monitor"
_TUNABLE = [key for key in Recipe.model_fields if key not in ("seed", "threads", _JUDGE)]


class Params(Section):  # section `tune` of params.yaml
    trials: PositiveInt
    startup_trials: PositiveInt  # drawn at random; none of them is pruned
    space: dict[str, dict[str, Any]]


class Range(Section):
    """All numbers from `low` to `high`, or, with `log`, all orders of magnitude alike; whole numbers where the ends are."""

    low: Any
    high: Any
    log: bool


class Choices(Section):
    """One of several values."""

    choices: list[Any]


Space = dict[str, Range | Choices]


def read_space(path: Path = Path("params.yaml")) -> Space:
    """What each key of `tune.space` may be. Raises PipelineError where it is no key of the recipe, or a bound no value of it."""
    entries = read_section("tune", Params, path).space
    if not entries:
        raise PipelineError(f"{path}: tune.space: names nothing to vary; known are {', '.join(_TUNABLE)}")
    return {key: _read_entry(key, entry, path) for key, entry in entries.items()}


def _read_entry(key: str, entry: dict[str, Any], path: Path) -> Range | Choices:
    where = f"{path}: tune.space.{key}"
    if key == _JUDGE:
        raise PipelineError(f"{where}: tells which trial is the best; leave it out")
    if key not in _TUNABLE:
        raise PipelineError(f"{where}: unknown key{nearest(key, _TUNABLE)}")
    kind: Any = Recipe.model_fields[key].rebuild_annotation()
    if "choices" in entry:
        several = Annotated[list[kind], Field(min_length=1)]
        choices = read_section(f"tune.space.{key}", create_model("Choices", __base__=Choices, choices=(several, ...)), path)
        if endless := [value for value in choices.choices if isinstance(value, float) and not math.isfinite(value)]:
            raise PipelineError(f"{where}.choices: {endless[0]} is not a finite number")
        return choices
    found = read_section(f"tune.space.{key}", create_model("Range", __base__=Range, low=(kind, ...), high=(kind, ...)), path)
    _check_range(found, where)
    return found


def _check_range(found: Range, where: str) -> None:
    for end in ("low", "high"):
        value = getattr(found, end)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise PipelineError(f"{where}.{end}: {value!r} is not a finite number; list what to try as choices: […]")
    if found.low >= found.high:
        raise PipelineError(f"{where}.high: {found.high} is not above low, {found.low}")
    if found.log and found.low <= 0:
        raise PipelineError(f"{where}.low: {found.low} has no logarithm; say log: false, or begin above 0")


_DIGITS = 4  # of a proposed number: who reads params.yaml must not read sixteen
State = Literal["complete", "pruned", "failed"]


class Trial(BaseModel):
    """What was tried and what came of it, epoch by epoch; `value`: that of the best epoch, None where training broke down."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    number: int  # from 1 on
    params: dict[str, Any]
    state: State
    value: float | None
    history: list[EpochMetrics]


@dataclass
class Study:
    """The trials that are over, as the file at `path` holds them. `facts`: what they are made from."""

    facts: Mapping[str, Any]
    path: Path
    space: Space
    startup_trials: int
    seed: int
    monitor: str
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take up what the file holds. Raises PipelineError where it is damaged."""
        if self.path.is_file():
            try:
                self.trials = TypeAdapter(list[Trial]).validate_json(self.path.read_bytes())
            except ValidationError:
                raise PipelineError(f"{self.path}: is damaged; remove it, and the study begins anew") from None

    def add(self, params: dict[str, Any], state: State, history: list[EpochMetrics]) -> Trial:
        """Keep a trial that is over."""
        value = None if state == "failed" else min((row[self.monitor] for row in history), key=lambda figure: self._sign * figure)
        trial = Trial(number=len(self.trials) + 1, params=params, state=state, value=value, history=history)
        write_json(self.path, [kept.model_dump() for kept in (*self.trials, trial)])
        self.trials.append(trial)
        return trial

    def propose(self) -> "Proposal":
        """The next trial, by Optuna's TPE, which learns from those before it (Bergstra et al., 2011; Watanabe, 2023)."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study that is made
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(n_startup_trials=self.startup_trials, seed=_mix(self.seed, len(self.trials))),
            # By the median, not Hyperband: that parts a study of twenty into brackets, in each of which it must learn anew.
            # Not at epoch 0, which all begin with.
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=1),
            direction="minimize" if self._sign > 0 else "maximize",
        )
        distributions = {key: _distribution(varied) for key, varied in self.space.items()}
        study.add_trials([self._as_optuna(trial, distributions) for trial in self.trials])
        trial = study.ask(distributions)
        return Proposal(trial, {key: _rounded(trial.params[key], varied) for key, varied in self.space.items()}, self.monitor)

    @property
    def ranking(self) -> list[Trial]:
        """The trials that came to their end, the best first; of equal ones the earlier."""
        complete = (trial for trial in self.trials if trial.state == "complete" and trial.value is not None)
        return sorted(complete, key=lambda trial: self._sign * float(trial.value or 0))

    @property
    def _sign(self) -> int:
        return 1 if self.monitor.endswith("loss") else -1

    def _as_optuna(self, trial: Trial, distributions: "dict[str, BaseDistribution]") -> "optuna.trial.FrozenTrial":
        import optuna

        states = optuna.trial.TrialState
        return optuna.trial.create_trial(
            # TPE learns nothing from a failed trial, and would go where training breaks down again and again; a pruned one it avoids.
            state=states.COMPLETE if trial.state == "complete" else states.PRUNED,
            value=trial.value if trial.state == "complete" else None,
            params=trial.params,
            distributions=distributions,
            intermediate_values={int(row["epoch"]): row[self.monitor] for row in trial.history},
        )


@dataclass(frozen=True)
class Proposal:
    """A trial that is under way, and the params to try."""

    trial: "optuna.Trial"
    params: dict[str, Any]
    monitor: str

    def is_hopeless(self, row: EpochMetrics) -> bool:
        """Whether the best epoch so far, this one included, is worse than the median of those that came to their end, at this epoch."""
        self.trial.report(row[self.monitor], int(row["epoch"]))
        return self.trial.should_prune()


def _mix(seed: int, number: int) -> int:
    """A seed for each trial of a study."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(varied: Range | Choices) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(varied, Choices):
        return CategoricalDistribution(varied.choices)
    kind = IntDistribution if isinstance(varied.low, int) and isinstance(varied.high, int) else FloatDistribution
    return kind(varied.low, varied.high, log=varied.log)


def _rounded(value: Any, varied: Range | Choices) -> Any:
    if isinstance(varied, Choices) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), varied.low), varied.high)


class _Hopeless(Exception):  # noqa: N818 - no error: the trial is given up
    pass


@contextmanager
def open_study(name: str, stated: Recipe, space: Space, startup_trials: int, data: TrainingData) -> Iterator[Study]:
    """The study of an entry of `models`, with the trials that are over, for this process alone.

    Other inputs, code or packages, another seed, space or recipe are another study; what the entry says of the keys of the
    space plays no part. Raises PipelineError where another process has it, its file is damaged, or the space goes beyond the network.
    """
    _check_stages(stated, space, data)
    facts = _facts(name, stated, space, startup_trials, data)
    key = key_here(sha256_of_json([identity(facts), version("optuna")]))
    facts["inputs_sha256"]["study"] = key
    path = cache_dir("tune") / name / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path.with_suffix(".lock")).acquire(timeout=0)
    except Timeout:
        raise PipelineError(f"{path}: another `pipeline tune {name}` is running; wait for it") from None
    with lock:
        yield Study(facts, path, space, startup_trials, stated.seed, stated.monitor)


def _check_stages(stated: Recipe, space: Space, data: TrainingData) -> None:
    """Raise PipelineError where a trial could ask for more stages than there are, after hours of other trials."""
    regimes = {stated.regime, *_all_of(space.get("regime"))}
    if "stages" in space and "partial" in regimes:
        size = data.preprocessing.image_size
        make_plan("partial", max(_all_of(space["stages"])), "auto", 1, False, load_backbone(data.backbone)[0], size)


def _all_of(varied: Range | Choices | None) -> list[Any]:
    """The choices, or the ends of a range."""
    if varied is None:
        return []
    return varied.choices if isinstance(varied, Choices) else [varied.low, varied.high]


def run_trials(study: Study, stated: Recipe, data: TrainingData, count: int) -> Iterator[Trial]:
    """Run trials until the study has so many, and give each when it is kept. Raises PipelineError.

    One that a kill cut short goes on after its last whole epoch.
    """
    while len(study.trials) < count:
        yield _run_trial(study, stated, data)


def _run_trial(study: Study, stated: Recipe, data: TrainingData) -> Trial:
    proposal = study.propose()
    settings = Recipe.model_validate({**stated.model_dump(), **proposal.params})
    recipe = resolve_auto(settings, len(data.train_paths))
    hardware = choose_hardware(recipe.seed, recipe.threads, recipe.precision)
    facts = describe_training(study.facts["model"], recipe, data, hardware, __name__)
    checkpoint = find_checkpoint(study.facts["model"], identity(facts))
    trainer = prepare(start_classifier(recipe, data), decode_val(data, recipe), recipe, data, hardware, checkpoint.activations)
    history: list[EpochMetrics] = []

    def log(row: EpochMetrics) -> None:
        history.append(row)
        if proposal.is_hopeless(row):
            raise _Hopeless

    state: State = "complete"
    try:
        train(trainer, log, checkpoint)
    except _Hopeless:
        state = "pruned"
    except DivergedError:
        state = "failed"
    trial = study.add(proposal.params, state, history)
    checkpoint.remove()
    return trial


def _facts(name: str, stated: Recipe, space: Space, startup_trials: int, data: TrainingData) -> dict[str, Any]:
    """What a study is made from, as a model's facts are told."""
    facts = describe_training(f"tune {name}", stated, data, choose_hardware(stated.seed, stated.threads, stated.precision), __name__)
    fixed = {key: value for key, value in facts["params"].items() if key not in space}
    params = {**fixed, "startup_trials": startup_trials, "space": {key: varied.model_dump() for key, varied in space.items()}}
    hardware = {key: value for key, value in facts["hardware"].items() if key not in space}
    return {**facts, "params": params, "hardware": hardware, "inputs_sha256": {**facts["inputs_sha256"], "params": sha256_of_json(params)}}
