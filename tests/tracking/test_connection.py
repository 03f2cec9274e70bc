"""The way to MLflow: whose address, a database that nothing breaks, and faults in one line without passwords."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest

from pipeline.commands.upkeep import serve
from pipeline.core.errors import PipelineError
from pipeline.tracking import connection
from pipeline.tracking.connection import connect, error_line, mlflow_errors, tracking_uri
from tests.tracking.test_runs import train_live

ROOT = Path(__file__).parent.parent.parent
CONNECT = """
from pipeline.tracking.connection import connect
client, experiment = connect()
client.create_run(experiment)
print(experiment)
"""


def start(folder, **options):
    """A fresh process that makes a run."""
    environment = {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen([sys.executable, "-c", CONNECT], env=environment, cwd=folder, text=True, **options)


def test_the_tracking_uri_of_the_environment_is_honoured(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_the_default_is_one_database_at_the_root_that_dvc_names(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.usefixtures("project")
def test_patience_that_the_user_sets_is_kept(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


@pytest.mark.usefixtures("project")
def test_mlflow_prints_no_addresses_between_our_answers(monkeypatch):
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    connect()
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


# A fresh database


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_that_open_a_fresh_database_at_once_all_log(tmp_path, count):
    processes = [start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [(code, out) for out, _, code in ended] == [(0, "1\n")] * count, [err for _, err, _ in ended]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (count,)
    database.close()


def test_a_kill_while_the_database_is_made_leaves_nothing_that_stops_the_next(tmp_path, monkeypatch):
    killed = start(tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not any(tmp_path.glob(".mlflow.db.*/mlflow.db")):
            assert killed.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert connect()[1] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache", "mlflow.db"]


def test_what_is_made_lies_where_no_process_before_wrote(tmp_path, monkeypatch):
    places = []
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(connection, "_upgrade", lambda path: (places.append(path), path.touch()))
    for _ in range(2):  # in containers, processes have equal numbers
        connection._create_database(tmp_path / "mlflow.db")
        (tmp_path / "mlflow.db").unlink()
    assert places[0].parent != places[1].parent


def test_a_database_that_cannot_be_made_is_no_database(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(OSError, match=r"^mlflow db upgrade: no output$"):
        connection._create_database(tmp_path / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


# Faults


def refusal(error):
    with pytest.raises(PipelineError) as caught, mlflow_errors():
        raise error
    return str(caught.value)


def test_a_fault_of_a_server_says_how_to_mend_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert refusal(OSError("gone")) == "MLflow at http://127.0.0.1:5000: gone; start the server, then run `pipeline publish`"


def test_a_fault_of_a_database_says_how_to_mend_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a.db")
    assert refusal(OSError("full")) == (
        "MLflow at sqlite:////a.db: full; repair it, or move the database away, then run `pipeline publish`"
    )


def test_no_password_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    assert error_line(OSError("http://me:secret@127.0.0.1:5000/api is away")) == (
        "MLflow at http://127.0.0.1:5000: http://127.0.0.1:5000/api is away"
    )


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("postgresql://me:se/cr?t#1@host/x", "se/cr?t#1"),
        ("http://me:se cret@host", "se cret"),
        ("mysql://me:a%2Fb%40c@host/x", "a/b@c"),
        ("postgresql://host/x?user=me&password=hidden", "hidden"),
        ("mssql://host/x?pwd=a%20b", "a b"),
    ],
)
def test_no_password_is_told_in_whatever_form_a_driver_takes_it(monkeypatch, uri, secret):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told = error_line(OSError(f"{uri} is away; {secret} was refused; {quote(secret, safe='')}"))
    assert told.startswith(f"MLflow at {uri.partition(':')[0]}://")
    assert not [form for form in (secret, quote(secret), quote(secret, safe="")) if form in told]


def test_no_password_of_mlflows_own_variables_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hidden")
    assert error_line(OSError("Bearer hidden")) == "MLflow at http://host: Bearer ***"


# Addresses that MLflow cannot use


def addressed(monkeypatch, uri):
    """The line of a publication to this address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PipelineError) as caught, mlflow_errors():
        connect()
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [("mysql", "MySQLdb", "mysqlclient"), ("mysql+pymysql", "pymysql", "pymysql"), ("postgresql+psycopg2", "psycopg2", "psycopg2-binary")],
)
def test_a_driver_that_is_missing_is_named_with_its_package(monkeypatch, scheme, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert addressed(monkeypatch, f"{scheme}://me:secret@127.0.0.1:1/x").startswith(
        f"MLflow at {scheme}://127.0.0.1:1/x: the package {module} is not installed; run `pip install {package}`, then"
    )


@pytest.mark.parametrize("uri", ["http://me:secret@[::1", "postgresql://me:secret@host:port/x", "mysql://me:secret@host:port/x"])
def test_an_address_that_cannot_be_parsed_is_one_line(monkeypatch, uri):
    assert addressed(monkeypatch, uri).endswith("); set MLFLOW_TRACKING_URI to another, then run `pipeline publish`")


@pytest.mark.parametrize("uri", ["mongodb://me:secret@host/x", "folder", "s3://bucket/x"])
def test_an_address_of_no_server_is_one_line_with_its_cure(monkeypatch, uri, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "; set MLFLOW_TRACKING_URI to the address of a server, or unset it, then run" in addressed(monkeypatch, uri)


def test_training_goes_on_if_the_driver_is_missing(monkeypatch, project, capsys):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql://me:secret@127.0.0.1:1/x")
    train_live()
    err = capsys.readouterr().err
    assert err.startswith("MLflow at mysql://127.0.0.1:1/x: the package MySQLdb is not installed; run `pip install mysqlclient`; training")
    assert (err.count("\n"), "secret" in err) == (1, False)


@pytest.mark.usefixtures("project")
def test_the_page_of_a_database_is_served_without_its_password_among_the_arguments(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/x")
    monkeypatch.setattr(connection, "connect", lambda: None)
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    serve(Namespace(host="127.0.0.1", port=0))
    [(_, command, environment)] = started
    assert not [part for part in command if "secret" in part]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:secret@host/x"


# A project that was moved


def artifact_of(run, client):
    return Path(client.download_artifacts(run.info.run_id, "a.txt")).read_text()


def start_project(client, experiment_id):
    run = client.create_run(experiment_id)
    client.log_text(run.info.run_id, "before", "a.txt")
    return run, client.create_logged_model(experiment_id, "m", run.info.run_id)


@pytest.mark.parametrize("way", [shutil.move, shutil.copytree])
def test_artifacts_follow_a_project_that_was_moved_or_copied(project, tmp_path_factory, monkeypatch, way):
    first, logged = start_project(*connect())
    new = tmp_path_factory.mktemp("elsewhere") / "project"
    way(project, new)
    before = sorted(project.rglob("*"))
    monkeypatch.chdir(new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    client, experiment_id = connect()
    run = client.create_run(experiment_id)
    client.log_text(run.info.run_id, "after", "a.txt")
    assert [artifact_of(each, client) for each in (first, run)] == ["before", "after"]
    assert (new / "mlruns" / run.info.run_id / "artifacts/a.txt").exists()
    places = [client.get_logged_model(logged.model_id).artifact_location, client.get_run(first.info.run_id).info.artifact_uri]
    assert [place.startswith(f"{new}/mlruns/") for place in places] == [True, True]
    assert sorted(project.rglob("*")) == before  # nothing is written to the old place


def test_artifacts_that_were_left_behind_are_still_found(project, tmp_path_factory, monkeypatch):
    first, _ = start_project(*connect())
    new = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(project / "mlflow.db", new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    client, experiment_id = connect()
    assert artifact_of(first, client) == "before"
    assert client.create_run(experiment_id).info.artifact_uri.startswith(f"{new}/mlruns/")


# What is told


def test_the_first_line_of_a_fault_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    assert error_line(OSError("one\ntwo")) == "MLflow at http://a: one"


def test_a_fault_without_words_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    assert error_line(KeyError()) == "MLflow at http://a: KeyError"


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(KeyError), mlflow_errors():
        raise KeyError("ours")


def damage(path, how, fresh):
    """Put something in the place of the database."""
    if how == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"no database": b"hello " * 1000, "half": fresh[: len(fresh) // 2]}[how])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no database", "(sqlite3.DatabaseError) file is not a database"),
        ("half", "(sqlite3.DatabaseError) database disk image is malformed"),
        ("a folder", "(sqlite3.OperationalError) unable to open database file"),
    ],
)
def test_a_damaged_database_is_told_of_in_one_line(how, says, tmp_path, monkeypatch, fresh_database):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    damage(tmp_path / "mlflow.db", how, fresh_database)
    with pytest.raises(PipelineError) as caught, mlflow_errors():
        connect()
    assert str(caught.value) == (
        f"MLflow at sqlite:///{tmp_path}/mlflow.db: {says}; repair it, or move the database away, then run `pipeline publish`"
    )


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("ae8bbe7743c9", "an earlier version of MLflow; copy it, run `mlflow db upgrade sqlite:///mlflow.db`"),
        ("ffff", f"a later version of MLflow than {mlflow.__version__}; install that version"),
    ],
)
def test_a_database_of_another_version_is_told_of_in_one_line_with_its_cure(project, version, says):
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = ?", (version,))
    database.close()
    with pytest.raises(PipelineError) as caught, mlflow_errors():
        connect()
    assert str(caught.value) == f"MLflow at {tracking_uri()}: the database is of {says}, then run `pipeline publish`"


def test_the_page_of_a_damaged_database_is_not_served(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    damage(tmp_path / "mlflow.db", "no database", b"")
    with pytest.raises(PipelineError, match=r"file is not a database; repair it, or move the database away, then run `pipeline publish`$"):
        serve(Namespace(host="127.0.0.1", port=0))
