"""Runs are found again by their key, logged to without twins, and training waits for MLflow a few seconds at most."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pipeline.core.files import sha256_of, write_json
from pipeline.tracking import runs
from pipeline.tracking.connection import connect, creation_lock, tracking_uri

ROOT = Path(__file__).parent.parent.parent
DATA = "43e20dd2c3e88adb6627fa9b4e476decf8c0f5e04f9f987e0ca56d2194206b9c"  # of the manifest that test_publish writes
FACTS = {
    "model": "finetuned",
    "params": {"epochs": 2, "schedule": {"warmup": 0.1}},
    "inputs_sha256": {"data": DATA, "params": "p" * 64, "code": "c" * 64},
    "hardware": {"device": "cpu", "precision": "fp32", "threads": 2},
}
OTHER = {**FACTS, "inputs_sha256": {**FACTS["inputs_sha256"], "code": "e" * 64}}
ROWS = [{"epoch": 0, "val_loss": 0.9}, {"epoch": 1, "train_loss": 0.7, "val_loss": 0.5}]
SHA256 = sha256_of(b"a graph")
FOLDER = Path("models/finetuned")
LATER = "training goes on, `pipeline publish` brings MLflow up to date later"


def train_live(rows=ROWS, facts=FACTS, folder=FOLDER):
    with runs.live_run(facts, folder) as log:
        for row in rows:
            log(row)
        write_json(folder / "model.json", {**facts, "model_sha256": SHA256})


def only_run():
    client, experiment_id = connect()
    (run,) = client.search_runs([experiment_id])
    return client, run


def points(client: MlflowClient, run, name: str):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


# The run


@pytest.mark.usefixtures("project")
def test_a_live_run_holds_the_curves_the_flattened_params_and_the_key():
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), points(client, run, "train_loss")) == ([(0, 0.9), (1, 0.5)], [(1, 0.7)])
    assert run.data.params == {"epochs": "2", "schedule.warmup": "0.1", "device": "cpu", "precision": "fp32", "threads": "2"}
    assert (run.info.run_name, run.info.status) == ("finetuned", "FINISHED")
    assert (run.data.tags["data_sha256"], run.data.tags["model_sha256"]) == (DATA, SHA256)


@pytest.mark.usefixtures("project")
def test_a_run_that_ends_without_a_model_is_not_finished():
    with runs.live_run(FACTS, FOLDER) as log:
        log(ROWS[0])
    assert only_run()[1].info.status == "FAILED"


@pytest.mark.usefixtures("project")
def test_any_number_of_epochs_is_logged(monkeypatch):
    monkeypatch.setattr(runs, "_METRICS_PER_CALL", 5)  # MLflow takes 1,000
    rows = [{"epoch": epoch, "train_loss": 0.5, "val_loss": 1 / (epoch + 1)} for epoch in range(6)]
    train_live(rows)
    client, run = only_run()
    assert points(client, run, "val_loss") == [(row["epoch"], row["val_loss"]) for row in rows]


@pytest.mark.usefixtures("project")
def test_mlflow_takes_as_many_metrics_at_once_as_we_send():
    train_live([])
    client, run = only_run()
    rows = [{"epoch": epoch, "a": 1, "b": 2} for epoch in range(1200)]
    runs.log_metrics(client, run, [metric for row in rows for metric in runs.metrics_of(row, 0)])
    assert [len(points(client, run, name)) for name in "ab"] == [1200, 1200]


@pytest.mark.usefixtures("project")
def test_training_again_adds_neither_a_run_nor_a_point():
    train_live()
    train_live()
    client, run = only_run()
    assert points(client, run, "val_loss") == [(0, 0.9), (1, 0.5)]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (ValueError, "FAILED"), (GeneratorExit, "FAILED")]
)
@pytest.mark.usefixtures("project")
def test_a_run_that_breaks_off_is_closed(error, status):
    with pytest.raises(error), runs.live_run(FACTS, FOLDER):
        raise error
    assert only_run()[1].info.status == status


@pytest.mark.usefixtures("project")
def test_a_run_that_broke_off_is_continued_without_twin_points():
    with pytest.raises(KeyboardInterrupt), runs.live_run(FACTS, FOLDER) as log:
        log(ROWS[0])
        raise KeyboardInterrupt
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), run.info.status) == ([(0, 0.9), (1, 0.5)], "FINISHED")


def test_a_row_is_logged_at_a_time_that_follows_from_its_step():
    (metric,) = runs.metrics_of({"epoch": 3, "val_loss": 0.25}, start=1000)
    assert (metric.key, metric.value, metric.step, metric.timestamp) == ("val_loss", 0.25, 3, 4000)


@pytest.mark.usefixtures("project")
def test_a_slow_database_is_waited_for(monkeypatch):
    monkeypatch.setitem(runs._PATIENCE_SECONDS, "server", 0.1)
    slow_down(monkeypatch, "create_run", 1)
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), run.info.status) == ([(0, 0.9), (1, 0.5)], "FINISHED")


# A server that is no help


def slow_down(monkeypatch, name, seconds):
    """Let a call of MLflow's store take its time, and return the threads in which it was made."""
    call, threads = getattr(SqlAlchemyStore, name), []

    def slow(*arguments, **keywords):
        threads.append(threading.current_thread())
        time.sleep(seconds)
        return call(*arguments, **keywords)

    monkeypatch.setattr(SqlAlchemyStore, name, slow)
    return threads


def test_a_closed_server_is_told_of_once_and_training_goes_on(use_server, capsys):
    with use_server(None):
        pass
    train_live()
    assert capsys.readouterr().err.count(LATER) == 1


def test_a_server_that_answers_500_is_told_of_in_one_line(use_server, capsys):
    with use_server(b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n"):
        train_live()
        told = capsys.readouterr().err
    assert told.startswith(f"MLflow at {tracking_uri()}: API request to ")
    assert "/api/2.0/mlflow/experiments/get-by-name failed" in told
    assert (told.endswith(f"; {LATER}\n"), told.count("\n")) == (True, 1)


def test_what_is_no_mlflow_server_is_told_of_in_one_line(use_server, capsys):
    with use_server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"):
        train_live()
        told = capsys.readouterr().err
    assert told == (
        f"MLflow at {tracking_uri()}: API request to endpoint was successful but the response body was not in a valid JSON format. "
        f"Response body: 'hello'; {LATER}\n"
    )


def test_a_server_that_hangs_is_waited_for_at_the_end_and_no_longer_than_told(use_server, monkeypatch, capsys):
    monkeypatch.setitem(runs._PATIENCE_SECONDS, "server", 0.2)
    with use_server(None):
        begun = time.monotonic()
        train_live()
        assert time.monotonic() - begun < 4  # with a request's own time-out and its retry it would be 6 s
        assert capsys.readouterr().err == f"MLflow at {tracking_uri()}: is slow to answer; {LATER}\n"


@pytest.mark.usefixtures("project")
def test_a_server_that_hangs_costs_a_training_and_its_report_less_than_ten_seconds(monkeypatch):
    names = [f"MLFLOW_HTTP_REQUEST_{name}" for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR")]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    connect()
    timeout, retries, pause = (int(os.environ[name]) for name in names)
    assert runs._PATIENCE_SECONDS["server"] + timeout * (1 + retries) + pause * retries < 10


@pytest.mark.usefixtures("project")
def test_training_never_waits_for_a_slow_server(monkeypatch):
    threads = slow_down(monkeypatch, "log_batch", 0.3)
    with runs.live_run(FACTS, FOLDER) as log:
        begun = time.monotonic()
        for epoch in range(100):
            log({"epoch": epoch, "val_loss": 1.0})
        assert time.monotonic() - begun < 10  # 30 s, if each row were waited for
    assert threading.current_thread() not in threads


@pytest.mark.usefixtures("project")
def test_what_a_slow_server_has_not_taken_yet_is_sent_together(monkeypatch):
    threads = slow_down(monkeypatch, "log_batch", 0.3)
    train_live([{"epoch": epoch, "val_loss": 1.0} for epoch in range(100)])
    client, run = only_run()
    assert (len(points(client, run, "val_loss")), run.info.status) == (100, "FINISHED")
    assert len(threads) < 10


@pytest.mark.usefixtures("project")
def test_a_server_that_dies_in_the_middle_is_told_of_once(monkeypatch, capsys):
    died = threading.Event()

    def die(*_, **__):
        died.set()
        raise OSError("gone\nfor good")

    with runs.live_run(FACTS, FOLDER) as log:
        log(ROWS[0])
        monkeypatch.setattr(MlflowClient, "log_batch", die)
        log(ROWS[1])
        assert died.wait(10)
        for _ in range(3):
            log(ROWS[1])
    assert capsys.readouterr().err == f"MLflow at {tracking_uri()}: gone; {LATER}\n"


@pytest.mark.usefixtures("project")
def test_a_fault_is_told_while_training_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(runs, "connect", lambda: (_ for _ in ()).throw(OSError("gone")))
    with runs.live_run(FACTS, FOLDER) as log:
        for thread in threading.enumerate():
            if thread.name == "live log":
                thread.join()
        log(ROWS[0])
        assert capsys.readouterr().err == f"MLflow at {tracking_uri()}: gone; {LATER}\n"


HANGING = """
import socket, os, sys
from pipeline.tracking import contents, runs
from tests.tracking.test_runs import FACTS, FOLDER
server = socket.create_server(("127.0.0.1", 0))
os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:%d" % server.getsockname()[1]
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "600"
runs._PATIENCE_SECONDS["server"] = 0.1
with runs.live_run(FACTS, FOLDER) as log:
    log({"epoch": 0, "val_loss": 1.0})
print("trained")
"""


def start(script, folder, **options):
    environment = {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], cwd=folder, env=environment, text=True, **options)


def test_a_process_ends_while_mlflow_hangs_and_says_no_more_than_one_line(tmp_path):
    process = start(HANGING, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n"), err.endswith(f": is slow to answer; {LATER}\n")) == (0, "trained\n", 1, True), err


# Processes that are gone

FORKING = multiprocessing.get_context("forkserver")  # imports MLflow once, which takes seconds
FORKING.set_forkserver_preload([__name__])


def hold_open(folder, pipe):
    """Log a row to the run of FACTS, say so, and go on until the pipe ends."""
    os.chdir(folder)
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with runs.live_run(FACTS, FOLDER) as log:
        log(ROWS[0])
        client, experiment = connect()
        while not [run for run in client.search_runs([experiment]) if run.data.metrics]:
            time.sleep(0.05)
        pipe.send("open")
        pipe.recv()


@pytest.fixture
def elsewhere(project):
    """Another process of this project that has logged a row to the run of FACTS, and goes on."""
    ours, theirs = FORKING.Pipe()
    process = FORKING.Process(target=hold_open, args=(project, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "open"
    yield process
    kill(process)
    process.close()
    ours.close()


def kill(process):
    process.kill()
    process.join()


def locks(project):
    return list((project / ".cache/locks/runs").glob("*/*.lock"))


def test_a_run_whose_process_was_killed_is_closed_by_the_next(elsewhere, project):
    kill(elsewhere)
    train_live(facts=OTHER)
    client, experiment_id = connect()
    assert sorted(run.info.status for run in client.search_runs([experiment_id])) == ["FINISHED", "KILLED"]
    assert locks(project) == []


def test_a_run_whose_process_was_killed_is_continued_by_the_next_of_its_key(elsewhere, project):
    kill(elsewhere)
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), run.info.status, locks(project)) == ([(0, 0.9), (1, 0.5)], "FINISHED", [])


def test_a_run_that_another_process_writes_is_left_alone(elsewhere, capsys):
    train_live(facts=OTHER)
    train_live()
    assert capsys.readouterr().err == f"MLflow at {tracking_uri()}: another process writes this run; {LATER}\n"
    client, experiment_id = connect()
    (run,) = runs.find_runs(client, experiment_id, runs.identity(FACTS))
    assert (points(client, run, "val_loss"), run.info.status) == ([(0, 0.9)], "RUNNING")


def test_a_run_without_a_lock_here_is_another_machines_and_left_alone(project):
    client, experiment_id = connect()
    runs.create_run(client, experiment_id, OTHER)
    train_live()
    (run,) = runs.find_runs(client, experiment_id, runs.identity(OTHER))
    assert run.info.status == "RUNNING"


@pytest.mark.usefixtures("project")
def test_a_run_of_the_same_inputs_on_another_processor_is_neither_continued_nor_closed():
    client, experiment_id = connect()
    theirs = runs.create_run(client, experiment_id, FACTS, {runs.MACHINE: "another"})
    with pytest.raises(KeyboardInterrupt), runs.live_run(FACTS, FOLDER):
        raise KeyboardInterrupt
    train_live()
    found = {run.info.run_id: run for run in runs.find_runs(client, experiment_id, runs.identity(FACTS))}
    assert (found.pop(theirs.info.run_id).info.status, [run.info.status for run in found.values()]) == ("RUNNING", ["FINISHED"])


@pytest.mark.usefixtures("project")
def test_a_process_that_is_killed_before_the_run_has_an_id_leaves_its_name():
    client, experiment_id = connect()
    with pytest.raises(KeyboardInterrupt), runs.lock_run(runs.identity(FACTS)):  # what a kill leaves: the file, unlocked
        runs.create_run(client, experiment_id, FACTS)
        raise KeyboardInterrupt
    with creation_lock():
        runs.close_stale_runs(client, experiment_id)
    assert only_run()[1].info.status == "KILLED"


def test_what_was_abandoned_on_another_server_waits_for_it(project, monkeypatch):
    with pytest.raises(KeyboardInterrupt), runs.lock_run(runs.identity(FACTS)):
        raise KeyboardInterrupt
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    runs.close_stale_runs(None, "1")  # there is nothing to ask the server for
    assert len(locks(project)) == 1


def test_a_run_that_could_not_be_closed_is_closed_by_the_next(project, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_terminated", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        train_live()
    assert only_run()[1].info.status == "RUNNING"
    train_live(facts=OTHER)
    client, experiment_id = connect()
    assert sorted(run.info.status for run in client.search_runs([experiment_id])) == ["FINISHED", "KILLED"]


def test_a_run_that_was_closed_before_the_kill_stays_as_it_is(project):
    train_live()
    with pytest.raises(KeyboardInterrupt), runs.lock_run(runs.identity(FACTS)):
        raise KeyboardInterrupt
    train_live(facts=OTHER)
    client, experiment_id = connect()
    assert [run.info.status for run in client.search_runs([experiment_id])] == ["FINISHED"] * 2
    assert locks(project) == []
