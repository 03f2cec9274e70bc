"""The connection to MLflow: its address, database and errors; locks that keep two processes off one run; agreement of machines on a run."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import atomic_file, cache_dir, project_root, sha256_of, sha256_of_json
from pipeline.tracking.internals import EXPERIMENT_TAGS, move_artifact_locations, open_once, schema_cure, write_beside_others

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

EXPERIMENT = "transfer-pipeline"
# Params of a run that no machine changes: whether it is the kept one of the runs of equal contents, or of those that are logged from a
# stored model; and the id of its logged model.
KEPT = "pipeline.kept"
STORED = "pipeline.stored"
LOGGED = "pipeline.logged_model"
DECIDED = (KEPT, STORED, LOGGED)
YES, NO = "yes", "no"

_ERROR_LENGTH = 300
_PATIENCE_SECONDS = 30.0  # for which a run is left to the machine that writes it
_PAUSE_SECONDS = 0.5
_SERVERS = ("http", "https", "postgresql", "mysql", "mssql")
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # packages by module, if they differ
# Defaults of ours; a variable that the user sets wins.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow retries for minutes: too long to wait for a server that is away
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for the answers of our commands
}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite database at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root().resolve() / 'mlflow.db'}"


def uses_server() -> bool:
    """Whether a server writes the runs; otherwise this process writes the database itself."""
    return not tracking_uri().startswith("sqlite:")


def _set_environment() -> None:
    """Set our defaults of MLflow's variables. It reads some of them when it is imported, so this comes before."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def connect(name: str = EXPERIMENT) -> tuple["MlflowClient", str]:
    """A client and the id of the experiment `name`. Creates the database and the experiment if they do not exist.

    Raises the errors that `mlflow_errors` knows; an address that MLflow cannot use, whose driver is missing, or whose database is of
    another version of MLflow, is an AddressFault.
    """
    faults = _mlflow_faults()
    try:
        return _connect(name)
    except faults as error:
        if cure := schema_cure(str(error), tracking_uri().replace(f"{project_root().resolve()}/", "")):
            raise AddressFault(cure) from None
        raise
    except ImportError as error:
        package = _DRIVERS.get(error.name or "", error.name)
        raise AddressFault(f"the package {error.name} is not installed; run `pip install {package}`") from None
    except Exception as error:  # MLflow parses the address with many libraries, each of which has errors of its own
        raise AddressFault(f"MLflow does not take this address ({error}); set MLFLOW_TRACKING_URI to another") from None


def _connect(name: str) -> tuple["MlflowClient", str]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, root = tracking_uri(), project_root().resolve()
    if not uri.startswith("http"):
        open_once()
    if uri == f"sqlite:///{root / 'mlflow.db'}":
        _create_database(root / "mlflow.db")
    client = MlflowClient(tracking_uri=uri)
    if experiment := client.get_experiment_by_name(name):
        if uri == f"sqlite:///{root / 'mlflow.db'}" and experiment.artifact_location != str(root / "mlruns"):
            move_artifact_locations(root / "mlflow.db", experiment.artifact_location, str(root / "mlruns"))
        return client, experiment.experiment_id
    artifacts = str(root / "mlruns") if uri.startswith("sqlite:") else None
    try:
        return client, client.create_experiment(name, artifacts, tags=EXPERIMENT_TAGS)
    except MlflowException:
        if experiment := client.get_experiment_by_name(name):  # another process was faster
            return client, experiment.experiment_id
        raise


def _create_database(path: Path) -> None:
    """Create MLflow's tables in another folder, then move them to `path`.

    MLflow creates a table at a time: two processes at once, or a kill, would leave a database that no process can open.
    """
    with creation_lock():
        if path.exists():
            return
        for leftover in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        # A new folder each time, because the child of a killed process may still write to the last one.
        with tempfile.TemporaryDirectory(".partial", f".{path.name}.", path.parent) as folder, atomic_file(path) as partial:
            database = Path(folder).resolve() / path.name
            _upgrade(database)
            database.replace(partial)


def _upgrade(path: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{path}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"mlflow db upgrade: {(result.stderr.splitlines() or ['no output'])[-1]}")


class AddressFault(OSError):  # noqa: N818 - the fault of an address
    """MLflow cannot use the address. The text names the cure."""


def error_line(error: BaseException) -> str:
    """`MLflow at <address>: <the error's first line>`, without a password."""
    text = re.sub(r"^\(raised as a result of .*\n", "", str(error).strip()).partition("\n")[0] or type(error).__name__
    return hide_secrets(f"MLflow at {tracking_uri()}: {text}")[:_ERROR_LENGTH]


def hide_secrets(text: str) -> str:
    """The text without what is secret in the tracking address and in MLflow's variables."""
    # Drivers take passwords with `/`, `?` or `#`, which an address by the standard cannot contain.
    uri = tracking_uri()
    user = match[1] if (match := re.match(r"[\w.+-]+://(.*)@", uri, re.DOTALL)) else ""
    options = [
        value for key, value in re.findall(r"[?&]([^=&]*)=([^&]*)", uri) if re.search("pass|pwd|secret|token|key", key, re.IGNORECASE)
    ]
    variables = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    secrets = [user.partition(":")[2], *options, *variables]
    text = text.replace(f"{user}@", "") if user else text
    forms = {
        form for secret in filter(None, secrets) for plain in (secret, unquote(secret)) for form in (plain, quote(plain), quote(plain, ""))
    }
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return without_password(text)


@contextmanager
def mlflow_errors(last: str = "run `pipeline publish`") -> Iterator[None]:
    """Raise the errors of MLflow, its server and its database as a PipelineError. `last`: what to do when MLflow is there again."""
    faults = _mlflow_faults()
    try:
        yield
    except faults as error:
        cure = "" if isinstance(error, AddressFault) else f"; {_cure()}"
        raise PipelineError(f"{error_line(error)}{cure}, then {last}") from None


def _mlflow_faults() -> tuple[type[Exception], ...]:
    """The errors that MLflow, its server and its database raise."""
    _set_environment()
    from alembic.util import CommandError
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, ParseError, OSError


def _cure() -> str:
    scheme = re.split(r"[:+]", tracking_uri(), maxsplit=1)[0]
    if scheme == "sqlite":
        return "repair it, or move the database away"
    return "start the server" if scheme in _SERVERS else "set MLFLOW_TRACKING_URI to the address of a server, or unset it"


def creation_lock() -> FileLock:
    """The lock to hold between the search for a database or a run and its creation, so that two processes never create two."""
    path = cache_dir("locks") / "runs.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def copy_id() -> str:
    """A name of this working copy that no other has, a copy of it with its cache neither. Call it under `creation_lock()`."""
    path = cache_dir("locks") / "copy"
    if not path.is_file():
        with atomic_file(path) as partial:
            partial.write_text(uuid.uuid4().hex)
    return sha256_of_json([path.read_text(), socket.gethostname(), str(project_root().resolve())])[:16]


class RunLocked(OSError):  # noqa: N818 - OSError: callers report it like any other refusal
    """Another process that is alive writes the run."""


@contextmanager
def lock_run(key: str, kind: str = "runs") -> Iterator[None]:
    """Lock the run of that key on this server, or raise RunLocked. Call it under `creation_lock()`. `kind` separates namespaces of keys.

    A run's status cannot show whether its process is alive: it stays RUNNING after a kill. The system releases a file lock when the
    process ends, however it ends. If the block fails, the file stays as a note that the run must still be closed.
    """
    # The file is named by the key, not by the run's id: a process that is killed while it creates the run leaves a note, too.
    path = _locks_dir(kind) / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunLocked("another process writes this run") from None
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        lock.release()


def stale_keys(kind: str = "runs") -> Iterator[str]:
    """The keys whose lock file no process holds any more, each locked while the caller uses it. Call it under `creation_lock()`."""
    for path in sorted(_locks_dir(kind).glob("*.lock")):
        with suppress(RunLocked), lock_run(path.stem, kind):
            yield path.stem


def _locks_dir(kind: str) -> Path:
    return cache_dir("locks") / kind / sha256_of(tracking_uri().encode())[:16]


# Agreement of machines: of equal runs that several machines create at the same time, all keep the same one. MLflow has no lock that
# machines share, and the times of its runs are of the clocks of its clients, so that a look at the runs does not show which one was
# first. But it never changes a param: of two machines that log a param with different values, the second one fails.


def agree_on_run(client: "MlflowClient", name: str, find: Callable[[], Sequence["Run"]], create: Callable[[], "Run"]) -> tuple["Run", bool]:
    """The run that all machines keep, of those that `find` finds or one that `create` creates; and whether it was created here.

    `find` must find what `create` creates, on each machine. `name`: of the param that says which run is kept. A run that was created here
    and is not kept is deleted, unless somebody wrote to it.
    """
    created: dict[str, Run] = {}
    while (kept := _decide(client, name, find)) is None:
        run = create()
        created[run.info.run_id] = run
    for run_id in created.keys() - {kept.info.run_id}:
        if is_unwritten(client, found := client.get_run(run_id)) and found.data.tags == created[run_id].data.tags:
            client.delete_run(run_id)
    return kept, kept.info.run_id in created


def _decide(client: "MlflowClient", name: str, find: Callable[[], Sequence["Run"]]) -> "Run | None":
    """The run that is kept; None if there is none that could be.

    Before a run is kept, all others that are found are given up. Of two runs, whoever keeps the one that was visible later finds both.
    So two are never kept. Every machine decides for all runs, because the one that created a run may be dead.
    """
    while True:
        runs = sorted(find(), key=lambda run: (run.info.start_time, run.info.run_id))
        if kept := [run for run in runs if run.data.params.get(name) == YES]:
            return kept[0]
        undecided = [run for run in runs if name not in run.data.params]
        if not undecided:
            return None
        first, *others = undecided
        if all(_claim(client, run, name, NO) for run in others) and _claim(client, first, name, YES):
            return first


def _claim(client: "MlflowClient", run: "Run", name: str, value: str) -> bool:
    """Log a param, and return whether the run has it with this value."""
    from mlflow.exceptions import MlflowException

    try:
        write_beside_others(client.log_param, run.info.run_id, name, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":  # which stands for another value, and for a deleted run
            raise
        return False
    return True


def is_unwritten(client: "MlflowClient", run: "Run") -> bool:
    """Whether the run has nothing but tags and perhaps the decision against it."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    decisions = {name: value for name, value in run.data.params.items() if name in DECIDED and value == NO}
    return run.data.params == decisions and not (run.data.metrics or inputs or client.list_artifacts(run.info.run_id))


def agree_on_model(client: "MlflowClient", run: "Run", models: Sequence["LoggedModel"]) -> "LoggedModel | None":
    """The one of the complete logged models of a run that all machines keep. If somebody deleted that, the first one."""
    ready = sorted((logged for logged in models if logged.status == "READY"), key=lambda each: (each.creation_timestamp, each.model_id))
    if not ready:
        return None
    name = client.get_run(run.info.run_id).data.params.get(LOGGED)
    if name is None:
        _claim(client, run, LOGGED, ready[0].model_id)
        name = client.get_run(run.info.run_id).data.params.get(LOGGED)
    return next((logged for logged in ready if logged.model_id == name), ready[0])


def wait_for_writer(client: "MlflowClient", run: "Run") -> "Run":
    """The run as the machine that writes it leaves it. If that takes long, it may be dead, and the run is as it is now."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while run.info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        run = client.get_run(run.info.run_id)
    return run
