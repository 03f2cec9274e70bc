"""The way to MLflow: whose address, a database that nothing breaks, and faults in one line without passwords."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from pipeline.commands.upkeep import serve
from pipeline.core.errors import PipelineError
from pipeline.tracking import connection
from pipeline.tracking.connection import connect, error_line, mlflow_errors, tracking_uri

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


def test_four_processes_that_open_a_fresh_database_at_once_all_log(tmp_path):
    processes = [start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [(code, out) for out, _, code in ended] == [(0, "1\n")] * 4, [err for _, err, _ in ended]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (4,)
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


def test_a_database_of_another_version_is_told_of_in_one_line(project):
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'ffff'")
    database.close()
    version = r"Detected out-of-date database schema \(found version ffff, but expected \w+\)\. "
    with pytest.raises(PipelineError, match=rf"^MLflow at {tracking_uri()}: {version}[^\n]*; repair it, .*$"), mlflow_errors():
        connect()


def test_the_page_of_a_damaged_database_is_not_served(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    damage(tmp_path / "mlflow.db", "no database", b"")
    with pytest.raises(PipelineError, match=r"file is not a database; repair it, or move the database away, then run `pipeline publish`$"):
        serve(Namespace(host="127.0.0.1", port=0))
