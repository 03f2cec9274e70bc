"""A study of `pipeline tune` in MLflow: a run for the whole and below it one for each trial, in an experiment of their own.

Apart from the models' runs, whose curves and comparisons would drown among trials. The study's file is the truth, MLflow a view of it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.models.artifact import identity
from pipeline.tracking.connection import EXPERIMENT, connect, fault, one_at_a_time
from pipeline.tracking.ownership import own
from pipeline.tracking.runs import close_abandoned, create_run, find_runs, log_metrics, metrics_of
from pipeline.training.study import Study, Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TUNING = f"{EXPERIMENT}-tuning"

_KIND = "tuning"
_OVER = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


@contextmanager
def live_study(study: Study) -> Iterator["StudyLog"]:
    """What tells MLflow of the study's trials as they end. Where MLflow does not answer, one line on stderr says so, once."""
    log = StudyLog(study)
    log.bring_up_to_date()
    try:
        yield log
    except (SystemExit, KeyboardInterrupt):
        log.close("KILLED")
        raise
    except BaseException:
        log.close("FAILED")
        raise
    log.close("FINISHED")


class StudyLog:
    """Tells MLflow of a study, whose run it owns from when it was first reached."""

    def __init__(self, study: Study) -> None:
        self.study, self.owned = study, ExitStack()
        self.parent: Run | None = None
        self.told = 0  # trials
        self.said = False

    def bring_up_to_date(self) -> None:
        """Tell of the trials that MLflow has not been told of, and of the study. What goes wrong is said, and no reason to end it."""
        with self._no_reason_to_end():
            self._tell("RUNNING")

    def close(self, status: str) -> None:
        """End the study's run. Where that fails the lock's file stays, and the next process ends it."""
        with self._no_reason_to_end(), self.owned:
            self._tell(status)

    @contextmanager
    def _no_reason_to_end(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.said:
                self.said = True
                print(f"{fault(error)}; tuning goes on, the same command brings MLflow up to date later", file=sys.stderr)

    def _tell(self, status: str) -> None:
        client, experiment_id = connect(TUNING)
        parent = self.parent = self.parent or self._open(client, experiment_id)
        for trial in self.study.trials[self.told :]:
            _tell_trial(client, experiment_id, parent, self.study, trial)
            self.told += 1
        _tell_study(client, parent, self.study, status)

    def _open(self, client: "MlflowClient", experiment_id: str) -> "Run":
        with one_at_a_time():
            close_abandoned(client, experiment_id, _KIND)
        with ExitStack() as owned:
            run = _find_or_create(client, experiment_id, self.study.facts, owned)
            self.owned.push(owned.pop_all())
        return run


def _tell_trial(client: "MlflowClient", experiment_id: str, parent: "Run", study: Study, trial: Trial) -> None:
    """Make a trial's run equal to the trial, unless it is, and tell of its value in the study's run."""
    params = {**{key: value for key, value in study.facts["params"].items() if key != "space"}, **trial.params}
    facts = {**study.facts, "model": f"{study.facts['model']}, trial {trial.number}", "params": params}
    with ExitStack() as owned:
        run = _find_or_create(client, experiment_id, facts, owned, parent.info.run_id)
        if run.info.status in _OVER.values():
            return
        client.log_batch(run.info.run_id, tags=_tags({"trial": trial.number, "state": trial.state}))
        log_metrics(client, run, [metric for epoch in trial.history for metric in metrics_of(epoch, run.info.start_time)])
        if trial.value is not None:
            row = {"trial": trial.number, f"best_{study.monitor}": trial.value}
            log_metrics(client, parent, metrics_of(row, parent.info.start_time))
        client.set_terminated(run.info.run_id, _OVER[trial.state])


def _tell_study(client: "MlflowClient", parent: "Run", study: Study, status: str) -> None:
    """The best trial so far, and whether the study goes on."""
    best = {f"best_{key}": value for trial in study.ranking[:1] for key, value in {"trial": trial.number, **trial.params}.items()}
    client.log_batch(parent.info.run_id, tags=_tags({**best, "trials": len(study.trials)}))
    if status == "RUNNING":
        client.update_run(parent.info.run_id, status)
    else:
        client.set_terminated(parent.info.run_id, status)


def _find_or_create(
    client: "MlflowClient", experiment_id: str, facts: Mapping[str, Any], owned: ExitStack, parent: str | None = None
) -> "Run":
    """The run of these facts, which this process owns as long as `owned` is open."""
    key = identity(facts)
    with one_at_a_time():
        owned.enter_context(own(key, _KIND))
        return next(iter(find_runs(client, experiment_id, key)), None) or create_run(client, experiment_id, facts, parent)


def _tags(values: Mapping[str, object]) -> Sequence[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, str(value)) for name, value in values.items()]
