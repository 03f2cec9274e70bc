"""MLflow runs: one a model and a set of inputs, found again by its key, logged to while a model trains."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.files import atomic_file, cache_dir, project_root
from pipeline.models.artifact import identity

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EXPERIMENT = "transfer-pipeline"
KEY = "pipeline.key"

Row = dict[str, float]  # its first column is the step


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the one database at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root().resolve() / 'mlflow.db'}"


def connect() -> tuple["MlflowClient", str]:
    """A client and the id of our experiment, both made where they are not there yet."""
    # MLflow's own patience is minutes: training must not wait for a server that is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    if uri == f"sqlite:///{project_root().resolve() / 'mlflow.db'}":
        _create_database(project_root() / "mlflow.db")
    client = MlflowClient(tracking_uri=uri)
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return client, experiment.experiment_id
    artifacts = str(project_root().resolve() / "mlruns") if uri.startswith("sqlite:") else None
    try:
        return client, client.create_experiment(EXPERIMENT, artifacts, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:
        if experiment := client.get_experiment_by_name(EXPERIMENT):  # another process was faster
            return client, experiment.experiment_id
        raise


def find_run(client: "MlflowClient", experiment_id: str, key: str) -> "Run | None":
    """The run of that key, or None."""
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
    return runs[0] if runs else None


def create_run(client: "MlflowClient", experiment_id: str, facts: Mapping[str, Any]) -> "Run":
    """A new run for a model: named like it, with its key, and with the code that it was made by."""
    tags = {KEY: identity(facts), **{f"{name}_sha256": sha for name, sha in facts["inputs_sha256"].items()}, **_git_tags()}
    run = client.create_run(experiment_id, tags=tags, run_name=facts["model"])
    for name, value in {**flatten(facts["params"]), **facts["hardware"]}.items():
        client.log_param(run.info.run_id, name, value, synchronous=True)
    return run


def one_at_a_time() -> FileLock:
    """The lock under which a run is looked for and made, so that two processes make no twins."""
    lock = cache_dir("locks") / "runs.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(lock)


def metrics_of(row: Row, start: int) -> list["Metric"]:
    """A row as MLflow's metrics. Their times follow from the step alone, so that logging twice changes nothing."""
    from mlflow.entities import Metric

    (_, step), *values = row.items()
    return [Metric(name, value, start + 1000 * int(step), int(step)) for name, value in values]


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def live_run(facts: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """A function that logs a row an epoch to the model's run while it trains.

    Where MLflow is away it says so once and logs nothing. A run that is finished already is left as it is: `publish`
    compares it with the files.
    """
    log = _LiveLog(facts)
    log.attempt(log.open)
    try:
        yield lambda row: log.attempt(partial(log.write, row))
    except BaseException:
        log.attempt(partial(log.close, "FAILED"))
        raise
    log.attempt(partial(log.close, "FINISHED"))


class _LiveLog:
    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.client: MlflowClient | None = None
        self.run: Run | None = None

    def attempt(self, step: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            step()
        except (MlflowException, OSError) as error:
            self.run = None
            reason = " ".join(str(error).split())[:200]
            print(f"MLflow is away: {reason}\nTraining goes on; `pipeline publish` brings MLflow up to date later.", file=sys.stderr)

    def open(self) -> None:
        self.client, experiment_id = connect()
        with one_at_a_time():
            run = find_run(self.client, experiment_id, identity(self.facts))
            if run is None:
                self.run = create_run(self.client, experiment_id, self.facts)
                return
        if run.info.status != "FINISHED":
            self.client.update_run(run.info.run_id, "RUNNING")
            self.run = run

    def write(self, row: Row) -> None:
        if self.client and self.run:
            self.client.log_batch(self.run.info.run_id, metrics_of(row, self.run.info.start_time))

    def close(self, status: str) -> None:
        if self.client and self.run:
            self.client.set_terminated(self.run.info.run_id, status)


def _create_database(path: Path) -> None:
    """Make MLflow's tables in a temporary file under a lock: two processes on a fresh database would break it."""
    with one_at_a_time():
        if not path.exists():
            with atomic_file(path) as partial_path:
                command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{partial_path.resolve()}"]
                made = subprocess.run(command, capture_output=True, text=True, check=False)
                if made.returncode:
                    raise OSError(f"mlflow db upgrade: {made.stderr[-200:]}")


def _git_tags() -> dict[str, str]:
    def git(*arguments: str) -> str | None:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", ":!dvc.lock", ":!metrics")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(bool(changes)).lower()}
