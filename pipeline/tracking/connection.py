"""The connection to MLflow: its address, its database, its errors, and the locks that keep two processes off one run."""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import atomic_file, cache_dir, project_root, sha256_of
from pipeline.tracking.internals import EXPERIMENT_TAGS, move_artifact_locations, open_once, schema_cure

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "transfer-pipeline"
SERVER_LOCK = f"{EXPERIMENT}.lock"
_STALE_SECONDS, _WAIT_SECONDS, _POLL_SECONDS = 60.0, 900.0, 1.0
_ERROR_LENGTH = 300
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


@contextmanager
def server_lock(client: "MlflowClient") -> Iterator[None]:
    """Hold a lock on MLflow's server during the block, so that two machines never create two of one thing. A database of SQLite has none.

    MLflow has no locks, but it creates one registered model of a name. Its description changes while the lock is held; one that does not
    change for a minute is of a process that was killed, and is removed. Raises TimeoutError.
    """
    if not uses_server():
        yield
        return
    owner, over = uuid.uuid4().hex, threading.Event()
    _acquire(client, owner)
    renewal = threading.Thread(target=_renew, args=(client, owner, over), daemon=True, name="server lock")
    renewal.start()
    try:
        yield
    finally:
        over.set()
        renewal.join()
        if (_holder(client) or "").startswith(owner):
            client.delete_registered_model(SERVER_LOCK)


def _acquire(client: "MlflowClient", owner: str) -> None:
    """Create the lock, or wait until whoever has it releases it or stops renewing it."""
    from mlflow.exceptions import MlflowException

    begun = changed = time.monotonic()
    seen = None
    while True:
        try:
            client.create_registered_model(SERVER_LOCK, description=owner)
            return
        except MlflowException as error:
            holder = _holder(client)
            if holder is not None and holder.startswith(owner):  # the answer to our first request was lost
                return
            if holder is None and error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        now = time.monotonic()
        seen, changed = (seen, changed) if holder == seen else (holder, now)
        if holder is not None and now - changed > _STALE_SECONDS and _holder(client) == holder:
            client.delete_registered_model(SERVER_LOCK)
        elif now - begun > _WAIT_SECONDS:
            raise TimeoutError(f"other machines have been writing to it for {_WAIT_SECONDS:.0f} seconds")
        else:
            time.sleep(random.uniform(0.5, 1) * _POLL_SECONDS)  # noqa: S311 - no secret


def _renew(client: "MlflowClient", owner: str, over: threading.Event) -> None:
    """Change the description of the lock again and again."""
    number = 0
    while not over.wait(_STALE_SECONDS / 6):
        number += 1
        with suppress(Exception):  # the server may be away for a moment; what is to be written meets the same fault
            client.update_registered_model(SERVER_LOCK, f"{owner} {number}")


def _holder(client: "MlflowClient") -> str | None:
    """The description of the lock; None if nobody has it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(SERVER_LOCK).description or ""
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


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
