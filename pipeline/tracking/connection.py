"""The connection to MLflow: its address, its database, our experiment, and which process owns a run."""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import atomic_file, cache_dir, project_root, sha256_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "transfer-pipeline"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the one database at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root().resolve() / 'mlflow.db'}"


def is_served() -> bool:
    """Whether MLflow is behind a server, and no file that this process writes itself."""
    return not tracking_uri().startswith("sqlite:")


def connect(name: str = EXPERIMENT) -> tuple["MlflowClient", str]:
    """A client and the id of our experiment, or of another of that name, both made where they are not there yet."""
    # MLflow's own patience is minutes: nobody must wait that long for a server that is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for our own answers
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1  # of opening a database: ten attempts would take 100 seconds
        logging.getLogger(utils.__name__).setLevel(logging.CRITICAL)  # it prints a traceback of what it raises
    if uri == f"sqlite:///{project_root().resolve() / 'mlflow.db'}":
        _create_database(project_root() / "mlflow.db")
    client = MlflowClient(tracking_uri=uri)
    if experiment := client.get_experiment_by_name(name):
        return client, experiment.experiment_id
    artifacts = str(project_root().resolve() / "mlruns") if uri.startswith("sqlite:") else None
    try:
        return client, client.create_experiment(name, artifacts, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:
        if experiment := client.get_experiment_by_name(name):  # another process was faster
            return client, experiment.experiment_id
        raise


def one_at_a_time() -> FileLock:
    """The lock under which a run is looked for, made and closed for another, so that two processes make no twins."""
    lock = cache_dir("locks") / "runs.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(lock)


def fault(error: BaseException) -> str:
    """`MLflow at <address>: <what it said>`: one line, without a password."""
    said = re.sub(r"^\(raised as a result of .*\n", "", str(error).strip()).partition("\n")[0] or type(error).__name__
    return without_password(f"MLflow at {tracking_uri()}: {said}")[:300]


@contextmanager
def mendable() -> Iterator[None]:
    """Turn what MLflow, its server and its database refuse into a PipelineError."""
    from alembic.util import CommandError
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, ParseError, OSError) as error:
        cure = "start the server" if is_served() else "mend that, or move the database away"
        raise PipelineError(f"{fault(error)}; {cure}, then run `pipeline publish`") from None


def _create_database(path: Path) -> None:
    """Make MLflow's tables elsewhere, then move them here: two processes, or a kill, on a fresh database would break it."""
    with one_at_a_time():
        if path.exists():
            return
        for left in path.parent.glob(f".{path.name}.*.partial"):  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        # A folder of its own: the child of a killed process may still write in the last one.
        with tempfile.TemporaryDirectory(".partial", f".{path.name}.", path.parent) as folder, atomic_file(path) as partial:
            made = Path(folder).resolve() / path.name
            _upgrade(made)
            made.replace(partial)


def _upgrade(path: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{path}"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(f"mlflow db upgrade: {(made.stderr.splitlines() or ['no word'])[-1]}")


class OwnedByAnother(OSError):  # noqa: N818 - it says what the run is
    """A process that is alive writes the run."""


@contextmanager
def own(key: str, kind: str = "runs") -> Iterator[None]:
    """Own the run of that key on this server; runs of each `kind` are apart. To be begun under `one_at_a_time()`. Raises OwnedByAnother.

    The lock's file stays where the block fails: the run is still to be closed.
    """
    # Named by the key, which is known before the run: a process that is killed while it makes the run leaves its name too.
    path = cache_dir("locks") / kind / _server() / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OwnedByAnother("another process writes this run") from None
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        lock.release()


def abandoned(kind: str = "runs") -> Iterator[str]:
    """The keys of runs of a kind whose process is gone, each owned while it is looked at. To be asked under `one_at_a_time()`."""
    for path in sorted((cache_dir("locks") / kind / _server()).glob("*.lock")):
        with suppress(OwnedByAnother), own(path.stem, kind):
            yield path.stem


def _server() -> str:
    return sha256_of(tracking_uri().encode())[:16]
