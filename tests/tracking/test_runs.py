"""Runs are found again by their key, logged to without twins, and training goes on where MLflow is away."""

import socket
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient

from pipeline.tracking import runs

FACTS = {
    "model": "finetuned",
    "params": {"epochs": 2, "schedule": {"warmup": 0.1}},
    "inputs_sha256": {"data": "d" * 64, "params": "p" * 64, "code": "c" * 64},
    "hardware": {"device": "cpu", "precision": "fp32", "threads": 2},
}
ROWS = [{"epoch": 0, "val_loss": 0.9}, {"epoch": 1, "train_loss": 0.7, "val_loss": 0.5}]


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory):
    """A database made as the first process of a project makes it."""
    folder = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DVC_ROOT", str(folder))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs._create_database(folder / "mlflow.db")
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def project(tmp_path, monkeypatch, fresh_database):
    """A project's root with a fresh database."""
    (tmp_path / "mlflow.db").write_bytes(fresh_database)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def train_live(rows=ROWS):
    with runs.live_run(FACTS) as log:
        for row in rows:
            log(row)


def only_run():
    client, experiment_id = runs.connect()
    (run,) = client.search_runs([experiment_id])
    return client, run


def points(client: MlflowClient, run, name: str):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_a_live_run_holds_the_curves_the_flattened_params_and_the_key(project):
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), points(client, run, "train_loss")) == ([(0, 0.9), (1, 0.5)], [(1, 0.7)])
    assert run.data.params == {"epochs": "2", "schedule.warmup": "0.1", "device": "cpu", "precision": "fp32", "threads": "2"}
    assert (run.info.run_name, run.info.status) == ("finetuned", "FINISHED")
    assert run.data.tags["data_sha256"] == "d" * 64


def test_training_again_adds_neither_a_run_nor_a_point(project):
    train_live()
    train_live()
    client, run = only_run()
    assert points(client, run, "val_loss") == [(0, 0.9), (1, 0.5)]


def test_a_run_that_broke_off_is_continued_without_twin_points(project):
    with pytest.raises(KeyboardInterrupt), runs.live_run(FACTS) as log:
        log(ROWS[0])
        raise KeyboardInterrupt
    assert only_run()[1].info.status == "FAILED"
    train_live()
    client, run = only_run()
    assert (points(client, run, "val_loss"), run.info.status) == ([(0, 0.9), (1, 0.5)], "FINISHED")


def test_a_closed_server_is_told_of_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    begun = time.monotonic()
    train_live()
    assert capsys.readouterr().err.count("MLflow is away") == 1
    assert time.monotonic() - begun < 60  # MLflow's own patience would be minutes


def test_a_server_that_dies_in_the_middle_is_told_of_once(project, monkeypatch, capsys):
    with runs.live_run(FACTS) as log:
        log(ROWS[0])
        monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        log(ROWS[1])
        log(ROWS[1])
    assert capsys.readouterr().err.count("MLflow is away: gone\n") == 1


def test_the_tracking_uri_of_the_environment_is_honoured(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert runs.tracking_uri() == "http://127.0.0.1:5000"


def test_the_default_is_one_database_at_the_root_that_dvc_names(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert runs.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_two_processes_that_open_a_fresh_database_at_once_both_log(tmp_path):
    script = (
        "import sys; from pipeline.tracking import runs; client, experiment = runs.connect(); "
        "client.create_run(experiment, run_name=sys.argv[1]); print(experiment)"
    )
    results = []

    def start(name: str) -> None:
        command = [sys.executable, "-c", script, name]
        environment = {"PATH": "/usr/bin:/bin", "DVC_ROOT": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
        results.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=False))

    threads = [threading.Thread(target=start, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(result.returncode, result.stdout) for result in results] == [(0, "1\n"), (0, "1\n")], [r.stderr for r in results]


def test_a_row_is_logged_at_a_time_that_follows_from_its_step():
    (metric,) = runs.metrics_of({"epoch": 3, "val_loss": 0.25}, start=1000)
    assert (metric.key, metric.value, metric.step, metric.timestamp) == ("val_loss", 0.25, 3, 4000)
