"""MLflow runs of models and of studies: found by their key, logged to while training."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.core.errors import without_password
from pipeline.networks.artifact import identity
from pipeline.tracking.connection import EXPERIMENT, abandoned, connect, fault, is_served, one_at_a_time, own

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

KEY = "pipeline.key"
StepMetrics = dict[str, float]  # its first column is the step
_PARAM_LENGTH = 6000
_AT_ONCE = 1000  # metrics that MLflow takes


# Of a training that is over, for what MLflow has not taken yet. A server may hang; a database is written, however slow the machine.
_PATIENCE_SECONDS = {"server": 3.5, "database": 60.0}


def find_runs(client: "MlflowClient", experiment_id: str, key: str) -> list["Run"]:
    """The runs of that key, the one that is furthest first. There are several where a request to make one was repeated."""
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    return sorted(runs, key=lambda run: (run.info.status != "FINISHED", -len(run.data.metrics)))


def create_run(client: "MlflowClient", experiment_id: str, facts: Mapping[str, Any], parent: str | None = None) -> "Run":
    """A new run for a model: named like it, with its key and the code that it was made by; below the run `parent`, if that is an id."""
    from mlflow.entities import Param

    tags = {KEY: identity(facts), **{f"{name}_sha256": sha for name, sha in facts["inputs_sha256"].items()}, **_git_tags()}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    run = client.create_run(experiment_id, tags=tags, run_name=facts["model"])
    params = params_of({**flatten(facts["params"]), **facts["hardware"]})
    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
    return run


def close_abandoned(client: "MlflowClient", experiment_id: str, kind: str = "runs") -> None:
    """End each run of a kind that a process of this project, which is gone, left RUNNING. To be called under `one_at_a_time()`."""
    for key in abandoned(kind):
        for run in find_runs(client, experiment_id, key):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")


def metrics_of(row: StepMetrics, start: int) -> list["Metric"]:
    """A row as MLflow's metrics. Their times follow from the step alone, so that logging twice changes nothing."""
    from mlflow.entities import Metric

    (_, step), *values = row.items()
    return [Metric(name, value, start + 1000 * int(step), int(step)) for name, value in values]


def log_metrics(client: "MlflowClient", run: "Run", metrics: "Sequence[Metric]") -> None:
    """Log any number of metrics."""
    for start in range(0, len(metrics), _AT_ONCE):
        client.log_batch(run.info.run_id, metrics[start : start + _AT_ONCE])


def params_of(flat: Mapping[str, object]) -> dict[str, str]:
    """Values as MLflow's params: texts that are no longer than it takes, addresses in them without a password."""
    return {name: without_password(str(value))[:_PARAM_LENGTH] for name, value in flat.items()}


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def live_run(facts: Mapping[str, Any]) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that logs a row an epoch to the model's run while it trains, and never waits for MLflow.

    At the end MLflow has some time to take the rest: a server seconds, a database a minute. Where it does not take all, one
    line on stderr says so, once.
    A run that is finished already is left as it is: `publish` compares it with the files.
    """
    log = _LiveLog(facts)
    log.start()
    try:
        yield log.write
    except (SystemExit, KeyboardInterrupt):
        log.close("KILLED")
        raise
    except BaseException:
        log.close("FAILED")
        raise
    log.close("FINISHED")


class _LiveLog(Thread):
    """Tells MLflow what it is given, in a thread that does not keep the process alive."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(name="live log", daemon=True)
        self.facts = facts
        self.waiting: SimpleQueue[StepMetrics | str] = SimpleQueue()  # rows, then the status
        self.fault: BaseException | None = None
        self.said = False

    def write(self, row: StepMetrics) -> None:
        """Queue a row."""
        self.waiting.put(row)
        self._say(self.fault)

    def close(self, status: str) -> None:
        """Queue the end, and wait a little for all to be delivered."""
        self.waiting.put(status)
        self.join(_PATIENCE_SECONDS["server" if is_served() else "database"])
        self._say(TimeoutError("is slow to answer") if self.is_alive() else self.fault)

    def _say(self, error: BaseException | None) -> None:
        if error and not self.said:
            self.said = True
            print(f"{fault(error)}; training goes on, `pipeline publish` brings MLflow up to date later", file=sys.stderr)

    def run(self) -> None:
        """Deliver everything. Whatever goes wrong is MLflow's, and no reason to disturb a training."""
        try:
            with ExitStack() as owned:
                client, run = self._open(owned)
                self._deliver(client, run)
        except Exception as error:
            self.fault = error

    def _open(self, owned: ExitStack) -> tuple["MlflowClient", "Run"]:
        client, experiment_id = connect()
        key = identity(self.facts)
        with one_at_a_time():
            close_abandoned(client, experiment_id)
            owned.enter_context(own(key))
            run = next(iter(find_runs(client, experiment_id, key)), None) or create_run(client, experiment_id, self.facts)
            if run.info.status not in ("RUNNING", "FINISHED"):
                client.update_run(run.info.run_id, "RUNNING")
        return client, run

    def _deliver(self, client: "MlflowClient", run: "Run") -> None:
        if run.info.status == "FINISHED":
            return
        status = None
        while status is None:
            waiting = [self.waiting.get(), *(self.waiting.get() for _ in range(self.waiting.qsize()))]
            rows = [item for item in waiting if not isinstance(item, str)]
            log_metrics(client, run, [metric for row in rows for metric in metrics_of(row, run.info.start_time)])
            status = next((item for item in waiting if isinstance(item, str)), None)
        client.set_terminated(run.info.run_id, status)


def _git_tags() -> dict[str, str]:
    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", ":!dvc.lock", ":!metrics")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(bool(changes)).lower()}


class Trial(Protocol):
    """A trial of a study, see `pipeline.search.tuning`."""

    number: int
    params: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    history: list[StepMetrics]


class Study(Protocol):
    """A study, see `pipeline.search.tuning`."""

    facts: Mapping[str, Any]
    monitor: str

    @property
    def trials(self) -> Sequence[Trial]:
        """The trials that have ended, in their order."""

    @property
    def ranking(self) -> Sequence[Trial]:
        """The complete trials, the best first."""


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
