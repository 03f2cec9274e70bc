"""Studies: trials of a recipe, one after the other, proposed and pruned by Optuna and kept in one file."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, create_model

from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir, sha256_of_json, write_json
from pipeline.core.hardware import choose_hardware, key_here
from pipeline.core.params import nearest
from pipeline.core.sections import Section, read_section
from pipeline.networks.artifact import identity
from pipeline.networks.classifier import load_backbone
from pipeline.networks.regimes import make_plan
from pipeline.training.batches import TrainingData, decode_val
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.loop import describe_training, prepare, start_classifier, train
from pipeline.training.recipe import DivergedError, EpochMetrics, Recipe, resolve_auto

_MONITOR = "monitor"  # ranks the trials, so it cannot vary
_TUNABLE = [key for key in Recipe.model_fields if key not in ("seed", "threads", _MONITOR)]
_DIGITS = 4  # of a proposed number, so that params.yaml stays readable
State = Literal["complete", "pruned", "failed"]


class Params(Section):
    """Section `tune` of params.yaml."""

    trials: PositiveInt
    startup_trials: PositiveInt  # drawn at random, never pruned
    space: dict[str, dict[str, Any]]


class Range(Section):
    """All numbers from `low` to `high`, uniform in their logarithm if `log` is set; whole numbers if both ends are."""

    low: Any
    high: Any
    log: bool


class Choices(Section):
    """One of several values."""

    choices: list[Any]


Space = dict[str, Range | Choices]


def read_space(path: Path = Path("params.yaml")) -> Space:
    """The values that each key of `tune.space` may take. Raises PipelineError for an unknown key, or a bound that the recipe refuses."""
    entries = read_section("tune", Params, path).space
    if not entries:
        raise PipelineError(f"{path}: tune.space: names nothing to vary; known are {', '.join(_TUNABLE)}")
    return {key: _read_entry(key, entry, path) for key, entry in entries.items()}


def _read_entry(key: str, entry: dict[str, Any], path: Path) -> Range | Choices:
    where = f"{path}: tune.space.{key}"
    if key == _MONITOR:
        raise PipelineError(f"{where}: ranks the trials, so it cannot vary; leave it out")
    if key not in _TUNABLE:
        raise PipelineError(f"{where}: unknown key{nearest(key, _TUNABLE)}")
    # The bounds are checked as values of the recipe: a rate must be above 0, an optimiser must exist.
    kind: Any = Recipe.model_fields[key].rebuild_annotation()
    if "choices" in entry:
        several = Annotated[list[kind], Field(min_length=1)]
        choices = read_section(f"tune.space.{key}", create_model("Choices", __base__=Choices, choices=(several, ...)), path)
        if infinite := [value for value in choices.choices if isinstance(value, float) and not math.isfinite(value)]:
            raise PipelineError(f"{where}.choices: {infinite[0]} is not a finite number")
        return choices
    varied = read_section(f"tune.space.{key}", create_model("Range", __base__=Range, low=(kind, ...), high=(kind, ...)), path)
    _check_range(varied, where)
    return varied


def _check_range(varied: Range, where: str) -> None:
    for end in ("low", "high"):
        value = getattr(varied, end)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise PipelineError(f"{where}.{end}: {value!r} is not a finite number; list the values to try as choices: […]")
    if varied.low >= varied.high:
        raise PipelineError(f"{where}.high: {varied.high} is not above low, {varied.low}")
    if varied.log and varied.low <= 0:
        raise PipelineError(f"{where}.low: {varied.low} has no logarithm; set log: false, or a low above 0")


class Trial(BaseModel):
    """A finished trial; `value`: the monitored figure of its best epoch, None if training diverged."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    number: int  # from 1
    params: dict[str, Any]
    state: State
    value: float | None
    history: list[EpochMetrics]


@dataclass(frozen=True)
class Proposal:
    """A running trial, and the params that it tries."""

    trial: optuna.Trial
    params: dict[str, Any]
    monitor: str

    def is_hopeless(self, metrics: EpochMetrics) -> bool:
        """Whether its best epoch so far is worse than the median of the complete trials at this epoch."""
        self.trial.report(metrics[self.monitor], int(metrics["epoch"]))
        return self.trial.should_prune()


@dataclass
class Study:
    """The finished trials, as stored in the file `path`. `facts`: what decides them."""

    facts: Mapping[str, Any]
    path: Path
    space: Space
    startup_trials: int
    seed: int
    monitor: str
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the file if it exists. Raises PipelineError if it is damaged."""
        if self.path.is_file():
            try:
                self.trials = TypeAdapter(list[Trial]).validate_json(self.path.read_bytes())
            except ValidationError:
                raise PipelineError(f"{self.path}: is damaged; remove it to begin the study again") from None

    def add(self, params: dict[str, Any], state: State, history: list[EpochMetrics]) -> Trial:
        """Store a finished trial."""
        value = None if state == "failed" else min((metrics[self.monitor] for metrics in history), key=lambda figure: self._sign * figure)
        trial = Trial(number=len(self.trials) + 1, params=params, state=state, value=value, history=history)
        write_json(self.path, [each.model_dump() for each in (*self.trials, trial)])
        self.trials.append(trial)
        return trial

    def propose(self) -> Proposal:
        """The next trial, by Optuna's TPE, which learns from earlier trials (Bergstra et al., 2011; Watanabe, 2023)."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it reports each study that is made
        # A seed per trial: the proposal follows from the earlier trials alone, not from how often the study was opened.
        seed = int(np.random.SeedSequence([self.seed, len(self.trials)]).generate_state(1)[0])
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(n_startup_trials=self.startup_trials, seed=seed),
            # The median, not Hyperband, which divides a study of twenty trials into brackets that each learn from few.
            # Not at epoch 0, which is the same for all.
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=1),
            direction="minimize" if self._sign > 0 else "maximize",
        )
        distributions = {key: _distribution(varied) for key, varied in self.space.items()}
        study.add_trials([self._as_optuna(trial, distributions) for trial in self.trials])
        trial = study.ask(distributions)
        return Proposal(trial, {key: _rounded(trial.params[key], varied) for key, varied in self.space.items()}, self.monitor)

    @property
    def ranking(self) -> list[Trial]:
        """The complete trials, the best first; of equal ones, the earlier first."""
        complete = (trial for trial in self.trials if trial.state == "complete" and trial.value is not None)
        return sorted(complete, key=lambda trial: self._sign * float(trial.value or 0))

    @property
    def _sign(self) -> int:
        return 1 if self.monitor.endswith("loss") else -1

    def _as_optuna(self, trial: Trial, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
        states = optuna.trial.TrialState
        return optuna.trial.create_trial(
            # TPE ignores a failed trial, and would propose diverging params again and again. It avoids a pruned one.
            state=states.COMPLETE if trial.state == "complete" else states.PRUNED,
            value=trial.value if trial.state == "complete" else None,
            params=trial.params,
            distributions=distributions,
            intermediate_values={int(metrics["epoch"]): metrics[self.monitor] for metrics in trial.history},
        )


def _distribution(varied: Range | Choices) -> BaseDistribution:
    if isinstance(varied, Choices):
        return CategoricalDistribution(varied.choices)
    kind = IntDistribution if isinstance(varied.low, int) and isinstance(varied.high, int) else FloatDistribution
    return kind(varied.low, varied.high, log=varied.log)


def _rounded(value: Any, varied: Range | Choices) -> Any:
    if isinstance(varied, Choices) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), varied.low), varied.high)


@contextmanager
def open_study(name: str, stated: Recipe, space: Space, startup_trials: int, data: TrainingData) -> Iterator[Study]:
    """The study of an entry of `models` with its finished trials, locked for this process.

    `stated`: the entry's recipe; its values of the keys of `space` are not used. Other inputs, code, packages, seed, space or recipe
    make another study. Raises PipelineError if another process runs the study, its file is damaged, or `space` asks for more stages than
    the network has.
    """
    _check_stages(stated, space, data)
    facts = _study_facts(name, stated, space, startup_trials, data)
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
    """Raise PipelineError now, not after hours of other trials, if a trial could ask for more stages than there are."""
    regimes = {stated.regime, *_bounds(space.get("regime"))}
    if "stages" in space and "partial" in regimes:
        size = data.preprocessing.image_size
        make_plan("partial", max(_bounds(space["stages"])), "auto", 1, False, load_backbone(data.backbone)[0], size)


def _bounds(varied: Range | Choices | None) -> list[Any]:
    """The choices, or the ends of a range."""
    if varied is None:
        return []
    return varied.choices if isinstance(varied, Choices) else [varied.low, varied.high]


def _study_facts(name: str, stated: Recipe, space: Space, startup_trials: int, data: TrainingData) -> dict[str, Any]:
    """What decides the trials of a study, in the form of `describe_training`."""
    facts = describe_training(f"tune {name}", stated, data, choose_hardware(stated.seed, stated.threads, stated.precision), __name__)
    fixed = {key: value for key, value in facts["params"].items() if key not in space}
    params = {**fixed, "startup_trials": startup_trials, "space": {key: varied.model_dump() for key, varied in space.items()}}
    varied = {*space, *(["depthwise"] if "precision" in space else [])}  # that of depthwise convolutions follows
    hardware = {key: value for key, value in facts["hardware"].items() if key not in varied}
    return {**facts, "params": params, "hardware": hardware, "inputs_sha256": {**facts["inputs_sha256"], "params": sha256_of_json(params)}}


class _Hopeless(Exception):  # noqa: N818 - no error: the trial is pruned
    pass


def run_trials(study: Study, stated: Recipe, data: TrainingData, count: int) -> Iterator[Trial]:
    """Run trials until the study has `count` of them, and yield each once it is stored. Raises PipelineError.

    A trial that was killed resumes after its last complete epoch.
    """
    while len(study.trials) < count:
        yield _run_trial(study, study.propose(), stated, data)


def _run_trial(study: Study, proposal: Proposal, stated: Recipe, data: TrainingData) -> Trial:
    recipe = resolve_auto(Recipe.model_validate({**stated.model_dump(), **proposal.params}), len(data.train_paths))
    hardware = choose_hardware(recipe.seed, recipe.threads, recipe.precision)
    facts = describe_training(study.facts["model"], recipe, data, hardware, __name__)
    checkpoint = find_checkpoint(study.facts["model"], identity(facts))
    trainer = prepare(start_classifier(recipe, data), decode_val(data, recipe), recipe, data, hardware, checkpoint.activations)
    history: list[EpochMetrics] = []

    def log(metrics: EpochMetrics) -> None:
        history.append(metrics)
        if proposal.is_hopeless(metrics):
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
