"""MLflow runs of models and of tuning studies: created once, found by their key, and logged to live."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.core.errors import without_password
from pipeline.core.hardware import key_here
from pipeline.networks.artifact import identity, read_facts
from pipeline.tracking.connection import EXPERIMENT, connect, creation_lock, error_line, lock_run, stale_keys, uses_server
from pipeline.tracking.internals import GIT_COMMIT, PARENT, write_beside_others

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

# Tags: the identity of what the run is of; the sha256 of its model, once that exists; the machine whose process logs it live, because
# equal inputs give other bytes on another processor; and the request that created it, by which repeated requests are recognised.
KEY = "pipeline.key"
MODEL = "model_sha256"
MACHINE = "pipeline.machine"
REQUEST = "pipeline.request"
TUNING = f"{EXPERIMENT}-tuning"  # the experiment of studies
StepMetrics = dict[str, float]  # its first column is the step

# MLflow's limits.
_PARAM_LENGTH = 6000
_METRICS_PER_CALL = 1000
# How long the end of a training waits for MLflow to take the rest. A server may hang; a database always gets there, if slowly.
_PATIENCE_SECONDS = {"server": 3.5, "database": 60.0}
_STUDIES = "tuning"  # the kind of their locks
_TRIAL_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


# Runs, params and metrics


def find_runs(client: "MlflowClient", experiment_id: str, key: str) -> list["Run"]:
    """The runs of that key, the most complete first. There are several if MLflow's client repeated a request to create one."""
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    return sorted(runs, key=lambda run: (run.info.status != "FINISHED", -len(run.data.metrics)))


def is_of_this_machine(run: "Run") -> bool:
    """Whether the run can be of a process on this machine, or on one that trains the same bytes."""
    return run.data.tags.get(MACHINE) in (None, key_here(""))


def create_run(client: "MlflowClient", experiment_id: str, facts: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> "Run":
    """Create the run of a model, with its key, the digests of its inputs, and these tags."""
    digests = {f"{name}_sha256": sha for name, sha in facts["inputs_sha256"].items()}
    all_tags = {KEY: identity(facts), REQUEST: uuid.uuid4().hex, **digests, **_git_tags(), **(tags or {})}
    return write_beside_others(client.create_run, experiment_id, tags=all_tags, run_name=facts["model"])


def log_params(client: "MlflowClient", run: "Run", facts: Mapping[str, Any]) -> None:
    """Log the params with which a model was trained, and the hardware."""
    from mlflow.entities import Param

    params = params_of({**flatten(facts["params"]), **facts["hardware"]})
    write_beside_others(client.log_batch, run.info.run_id, params=[Param(name, value) for name, value in params.items()])


def _find_or_create(
    client: "MlflowClient", experiment_id: str, facts: Mapping[str, Any], locks: ExitStack, kind: str = "runs", parent: str | None = None
) -> "Run":
    """The run of these facts on this machine, locked until `locks` closes; a new one is a child of the run `parent`, if given."""
    key = identity(facts)
    tags = {MACHINE: key_here(""), **({PARENT: parent} if parent else {})}
    with creation_lock():
        locks.enter_context(lock_run(key, kind))
        if found := next(filter(is_of_this_machine, find_runs(client, experiment_id, key)), None):
            return found
        run = create_run(client, experiment_id, facts, tags)
        log_params(client, run, facts)
        return run


def close_stale_runs(client: "MlflowClient", experiment_id: str, kind: str = "runs") -> None:
    """End each run that a dead process of this project left RUNNING. Call it under `creation_lock()`."""
    for key in stale_keys(kind):
        for run in find_runs(client, experiment_id, key):
            if run.info.status == "RUNNING" and is_of_this_machine(run):
                client.set_terminated(run.info.run_id, "KILLED")


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
    return {GIT_COMMIT: commit, "git_commit": commit, "git_dirty": str(bool(changes)).lower()}


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def params_of(flat: Mapping[str, object]) -> dict[str, str]:
    """Values as MLflow's params: cut to its limit, addresses in them without a password."""
    return {name: without_password(str(value))[:_PARAM_LENGTH] for name, value in flat.items()}


def metrics_of(row: StepMetrics, start: int) -> list["Metric"]:
    """A row as MLflow's metrics. `start`: when the run began, in milliseconds."""
    from mlflow.entities import Metric

    # MLflow keeps one point per step, timestamp and value. A timestamp from the clock would make a second point of a row that is
    # logged again, so it follows from the step.
    (_, step), *values = row.items()
    return [Metric(name, value, start + 1000 * int(step), int(step)) for name, value in values]


def log_metrics(client: "MlflowClient", run: "Run", metrics: "Sequence[Metric]") -> None:
    """Log any number of metrics."""
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        write_beside_others(client.log_batch, run.info.run_id, metrics[start : start + _METRICS_PER_CALL])


# Logging while a model trains or a study runs


@contextmanager
def _close_after(close: Callable[[str], None]) -> Iterator[None]:
    """Call `close` with the status of MLflow for the way in which the block ends."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        close("KILLED")
        raise
    except BaseException:
        close("FAILED")
        raise
    close("FINISHED")


class _Warning:
    """A line on stderr for the first error of MLflow, and none for those that follow."""

    def __init__(self, consequence: str) -> None:
        self.consequence, self.printed = consequence, False

    def print(self, error: BaseException) -> None:
        if not self.printed:
            self.printed = True
            print(f"{error_line(error)}; {self.consequence}", file=sys.stderr)


@contextmanager
def live_run(facts: Mapping[str, Any], folder: Path) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that logs one row per epoch to the model's run. It never waits for MLflow.

    The run ends FINISHED, and names its model, if the block has written the model to `folder`. The end of the block waits for MLflow to
    take the rest: for a server a few seconds, for a database a minute. The first error becomes one line on stderr. A run that is already
    finished stays as it is: `publish` compares it with the files.
    """
    log = _LiveLog(facts, folder)
    log.start()
    with _close_after(log.close):
        yield log.write


class _LiveLog(Thread):
    """Sends rows to MLflow from a thread that does not keep the process alive."""

    def __init__(self, facts: Mapping[str, Any], folder: Path) -> None:
        super().__init__(name="live log", daemon=True)
        self.facts, self.folder = facts, folder
        self.queue: SimpleQueue[StepMetrics | str] = SimpleQueue()  # rows, then the status
        self.error: BaseException | None = None
        self.warning = _Warning("training goes on, `pipeline publish` brings MLflow up to date later")

    def write(self, row: StepMetrics) -> None:
        """Queue a row."""
        self.queue.put(row)
        if self.error:
            self.warning.print(self.error)

    def close(self, status: str) -> None:
        """Queue the status, and wait for the thread as long as it is worth it."""
        has_model = (self.folder / "model.json").is_file()
        self.queue.put(status if has_model or status != "FINISHED" else "FAILED")
        self.join(_PATIENCE_SECONDS["server" if uses_server() else "database"])
        if error := TimeoutError("is slow to answer") if self.is_alive() else self.error:
            self.warning.print(error)

    def run(self) -> None:
        """Send everything. No error of MLflow may disturb the training, so none leaves the thread."""
        try:
            client, experiment_id = connect()
            with creation_lock():
                close_stale_runs(client, experiment_id)
            with ExitStack() as locks:
                self._send(client, _find_or_create(client, experiment_id, self.facts, locks))
        except Exception as error:
            self.error = error

    def _send(self, client: "MlflowClient", run: "Run") -> None:
        if run.info.status == "FINISHED":
            return
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, "RUNNING")
        status = None
        while status is None:
            # Rows that came while MLflow was slow are sent together.
            items = [self.queue.get(), *(self.queue.get() for _ in range(self.queue.qsize()))]
            rows = [item for item in items if not isinstance(item, str)]
            log_metrics(client, run, [metric for row in rows for metric in metrics_of(row, run.info.start_time)])
            status = next((item for item in items if isinstance(item, str)), None)
        if status == "FINISHED":
            client.set_tag(run.info.run_id, MODEL, read_facts(self.folder)["model_sha256"])
        client.set_terminated(run.info.run_id, status)


class Trial(Protocol):
    """A trial of `pipeline.search.tuning`, which this room does not import."""

    number: int
    params: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    history: list[StepMetrics]


class Study(Protocol):
    """A study of `pipeline.search.tuning`: the trials that have ended, in order, and the complete ones, the best first."""

    facts: Mapping[str, Any]
    monitor: str

    @property
    def trials(self) -> Sequence[Trial]: ...
    @property
    def ranking(self) -> Sequence[Trial]: ...


@contextmanager
def live_study(study: Study) -> Iterator["StudyLog"]:
    """A log whose `bring_up_to_date` logs the trials that have ended. The first error of MLflow becomes one line on stderr."""
    log = StudyLog(study)
    log.bring_up_to_date()
    with _close_after(log.close):
        yield log


class StudyLog:
    """Logs a study as one run, with a child run per trial. The study's run stays locked until the log is closed."""

    def __init__(self, study: Study) -> None:
        self.study, self.locks = study, ExitStack()
        self.parent: Run | None = None
        self.logged_trials = 0
        self.warning = _Warning("tuning goes on, the same command brings MLflow up to date later")

    def bring_up_to_date(self) -> None:
        """Log the trials that are not logged yet, and the best so far. An error of MLflow does not end the study."""
        with self._warn_of_errors():
            self._update("RUNNING")

    def close(self, status: str) -> None:
        """End the study's run. If that fails, its lock file stays and the next process ends it."""
        with self._warn_of_errors(), self.locks:
            self._update(status)

    @contextmanager
    def _warn_of_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.warning.print(error)

    def _update(self, status: str) -> None:
        client, experiment_id = connect(TUNING)
        parent = self.parent = self.parent or self._open(client, experiment_id)
        for trial in self.study.trials[self.logged_trials :]:
            _log_trial(client, experiment_id, parent, self.study, trial)
            self.logged_trials += 1
        _log_study(client, parent, self.study, status)

    def _open(self, client: "MlflowClient", experiment_id: str) -> "Run":
        with creation_lock():
            close_stale_runs(client, experiment_id, _STUDIES)
        # The lock passes to `self` only with the run: after a failure it is released, so that the next update can try again.
        with ExitStack() as locks:
            run = _find_or_create(client, experiment_id, self.study.facts, locks, _STUDIES)
            self.locks.push(locks.pop_all())
        return run


def _log_trial(client: "MlflowClient", experiment_id: str, parent: "Run", study: Study, trial: Trial) -> None:
    """Log a trial as a child run, and its value in the study's run. A trial whose run has ended is complete already."""
    params = {**{key: value for key, value in study.facts["params"].items() if key != "space"}, **trial.params}
    facts = {**study.facts, "model": f"{study.facts['model']}, trial {trial.number}", "params": params}
    with ExitStack() as locks:
        run = _find_or_create(client, experiment_id, facts, locks, _STUDIES, parent.info.run_id)
        if run.info.status in _TRIAL_STATUS.values():
            return
        client.log_batch(run.info.run_id, tags=_tags({"trial": trial.number, "state": trial.state}))
        log_metrics(client, run, [metric for epoch in trial.history for metric in metrics_of(epoch, run.info.start_time)])
        if trial.value is not None:
            row = {"trial": trial.number, f"best_{study.monitor}": trial.value}
            log_metrics(client, parent, metrics_of(row, parent.info.start_time))
        client.set_terminated(run.info.run_id, _TRIAL_STATUS[trial.state])


def _log_study(client: "MlflowClient", parent: "Run", study: Study, status: str) -> None:
    """Log the best trial so far, and the status of the study."""
    best = {f"best_{key}": value for trial in study.ranking[:1] for key, value in {"trial": trial.number, **trial.params}.items()}
    client.log_batch(parent.info.run_id, tags=_tags({**best, "trials": len(study.trials)}))
    if status == "RUNNING":
        client.update_run(parent.info.run_id, status)
    else:
        client.set_terminated(parent.info.run_id, status)


def _tags(values: Mapping[str, object]) -> Sequence[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, str(value)) for name, value in values.items()]
