"""A study: trials of a model's recipe, one after the other, in one file; each follows from those before it and from the seed.

The file is written anew after each trial, whole or not at all. Nothing else is remembered: Optuna is told of the trials that are over
whenever the next one is to be proposed. So it makes no difference whether one process ran them all, or several that were killed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.training.space import Choices, Range, Space

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_DIGITS = 4  # of a proposed number: who reads params.yaml must not read sixteen

Row = dict[str, float]
State = Literal["complete", "pruned", "failed"]


class Trial(BaseModel):
    """What was tried and what came of it, epoch by epoch; `value`: that of the best epoch, None where training broke down."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    number: int  # from 1 on
    params: dict[str, Any]
    state: State
    value: float | None
    history: list[Row]


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

    def add(self, params: dict[str, Any], state: State, history: list[Row]) -> Trial:
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

    def is_hopeless(self, row: Row) -> bool:
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
