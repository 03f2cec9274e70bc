"""The registry has one version per model, the aliases say who is the champion, and what others registered stays."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from PIL import Image

from pipeline import load_model
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file, write_json
from pipeline.networks.artifact import write_facts
from pipeline.serving.predictor import Predictor
from pipeline.tracking.connection import EXPERIMENT, connect, tracking_uri
from pipeline.tracking.registry import Registration, check_registry, fetch_model, update_registry
from tests.stored import SIZE, linear_graph
from tests.tracking.test_publish import Server, files, publish, write_scores  # noqa: F401 - a fixture
from tests.tracking.test_runs import FACTS, FORKING, SHA256

TAGS = {"commit": "c" * 40, "lock_sha256": "d" * 64, "decision": "PROMOTE", "decision_reason": "better by 3 points"}
PUBLISHED = Registration(SHA256, "finetuned", None, TAGS, None)
ABSENT = Registration("0" * 64, "gone", None, TAGS, None)
WRITES = re.compile("log_|set_|create_|update_|delete_|record_|finalize_|rename_|transition_")


def keep(project, seed=0, accuracy=0.75):
    """Store a champion: a model folder with its results on test; it is of no run."""
    folder = project / f"champions/{seed}"
    folder.mkdir(parents=True)
    preprocessing = {"image_size": SIZE, "crop": 1.0, "interpolation": "bicubic"}
    facts = {**FACTS, "class_names": ["ant", "bee"], "preprocessing": preprocessing, "params": {"epochs": 2, "seed": seed}}
    write_facts(folder, linear_graph(SIZE, 2, seed), facts, [{"epoch": 0, "val_loss": 0.9}, {"epoch": 1, "val_loss": 0.5}])
    sha256 = sha256_of_file(folder / "model.onnx")
    scores = {"model_sha256": sha256, "test_sha256": "7" * 64, "figures": {"top1_accuracy": {"value": accuracy, "low": 0.5, "high": 1.0}}}
    write_json(folder / "results/scores.json", scores)
    return Registration(sha256, "finetuned", folder, TAGS, None)


def versions():
    """Number and sha256 of each version."""
    found = MlflowClient(tracking_uri()).search_model_versions(f"name = '{EXPERIMENT}'")
    return sorted((int(version.version), version.tags.get("model_sha256")) for version in found)


def aliases():
    return {alias: int(number) for alias, number in connect()[0].get_registered_model(EXPERIMENT).aliases.items()}


def runs_of(client, experiment_id):
    return client.search_runs([experiment_id])


# Versions


def test_a_published_model_has_a_version_of_its_run_with_tags_and_aliases(files):  # noqa: F811
    publish(files)
    lines = update_registry([PUBLISHED], {"champion": SHA256, "challenger": None, "previous": None})
    assert lines == [f"{EXPERIMENT} version 1: finetuned {SHA256[:16]}, PROMOTE", f"{EXPERIMENT}@champion: is version 1"]
    client, experiment_id = connect()
    (run,) = runs_of(client, experiment_id)
    version = client.get_model_version_by_alias(EXPERIMENT, "champion")
    assert (version.run_id, versions()) == (run.info.run_id, [(1, SHA256)])
    tags = client.get_model_version(EXPERIMENT, "1").tags
    assert {key: tags[key] for key in (*TAGS, "model", "model_sha256")} == {**TAGS, "model": "finetuned", "model_sha256": SHA256}


def test_a_reason_longer_than_mlflows_limit_is_cut_and_registered_once(files):  # noqa: F811
    publish(files)
    long = Registration(SHA256, "finetuned", None, {**TAGS, "decision_reason": "x" * 200_000}, None)
    assert update_registry([long], {"champion": SHA256}) != []
    assert update_registry([long], {"champion": SHA256}) == []
    assert connect()[0].get_model_version(EXPERIMENT, "1").tags["decision_reason"] == "x" * 5000


def test_registering_twice_writes_nothing(files, tmp_path, monkeypatch):  # noqa: F811
    publish(files)
    decided = Registration(SHA256, "finetuned", None, TAGS, decision(tmp_path))
    wanted = {"champion": SHA256, "previous": None}
    update_registry([decided], wanted)
    called = []
    for store in (RegistryStore, TrackingStore):
        for name in (name for name in vars(store) if WRITES.match(name)):
            monkeypatch.setattr(store, name, lambda *_, name=name, **__: called.append(name))
    assert (update_registry([decided], wanted), called) == ([], [])


def decision(folder, text="page"):
    (folder / "decision").mkdir(exist_ok=True)
    (folder / "decision/index.html").write_text(text)
    write_json(folder / "decision/decision.json", {"verdict": "PROMOTE"})
    return folder / "decision"


def test_the_run_shows_the_decision_and_publishing_again_leaves_it(files, tmp_path):  # noqa: F811
    publish(files)
    update_registry([Registration(SHA256, "finetuned", None, TAGS, decision(tmp_path))], {})
    assert publish(files) == []
    client, experiment_id = connect()
    (run,) = runs_of(client, experiment_id)
    assert (run.data.tags["decision"], run.data.tags["decision_reason"]) == ("PROMOTE", "better by 3 points")
    assert {file.path for file in client.list_artifacts(run.info.run_id, "decision")} == {"decision/index.html", "decision/decision.json"}
    assert "commit" not in run.data.tags


def test_a_later_decision_changes_the_version_and_makes_no_other(files, tmp_path):  # noqa: F811
    publish(files)
    update_registry([Registration(SHA256, "finetuned", None, {**TAGS, "decision": "HOLD"}, decision(tmp_path, "held"))], {})
    later = Registration(SHA256, "finetuned", None, TAGS, decision(tmp_path, "promoted"))
    assert update_registry([later], {}) == [f"{EXPERIMENT} version 1: finetuned {SHA256[:16]}, PROMOTE"]
    client, _ = connect()
    version = client.get_model_version(EXPERIMENT, "1")
    assert (version.tags["decision"], versions()) == ("PROMOTE", [(1, SHA256)])
    assert Path(client.download_artifacts(version.run_id, "decision/index.html")).read_text() == "promoted"


def test_the_version_is_of_the_newest_run_of_the_model(files):  # noqa: F811
    publish(files)
    write_scores(files, top1_accuracy=0.5)
    publish(files)
    client, experiment_id = connect()
    (newest,) = (run.info.run_id for run in runs_of(client, experiment_id) if "pipeline.superseded_by" not in run.data.tags)
    update_registry([PUBLISHED], {"champion": SHA256})
    assert client.get_model_version(EXPERIMENT, "1").run_id == newest


def test_a_model_with_neither_run_nor_folder_is_named_and_the_others_are_registered(files):  # noqa: F811
    publish(files)
    lines = update_registry([ABSENT, PUBLISHED], {"champion": SHA256, "previous": ABSENT.sha256})
    assert lines == [
        f"{EXPERIMENT} version 1: finetuned {SHA256[:16]}, PROMOTE",
        f"{EXPERIMENT}: no version of gone {'0' * 16}; MLflow has no run, and there is no folder",
        f"{EXPERIMENT}@champion: is version 1",
        f"{EXPERIMENT}@previous: is not set, {'0' * 16} has no version",
    ]


def test_the_decision_of_a_model_whose_run_somebody_deleted_stays_with_the_version(files):  # noqa: F811
    publish(files)
    update_registry([PUBLISHED], {"champion": SHA256})
    client, experiment_id = connect()
    client.delete_run(runs_of(client, experiment_id)[0].info.run_id)
    update_registry([Registration(SHA256, "finetuned", None, {**TAGS, "decision": "ROLLBACK"}, None)], {"champion": SHA256})
    assert (client.get_model_version(EXPERIMENT, "1").tags["decision"], versions()) == ("ROLLBACK", [(1, SHA256)])


# A champion whose files are no longer those of models/


def test_the_champion_answers_with_the_probabilities_of_the_predictor(project):
    kept = keep(project)
    update_registry([kept], {"champion": kept.sha256})
    file = io.BytesIO()
    Image.radial_gradient("L").resize((12, 12)).convert("RGB").save(file, "PNG")
    loaded = mlflow.pyfunc.load_model(f"models:/{EXPERIMENT}@champion")
    (row,) = loaded.predict(pd.DataFrame({"picture": [file.getvalue()]})).to_dict("records")
    predictor = Predictor.load(kept.folder / "model.onnx", 1)
    assert row["probabilities"] == pytest.approx(predictor.predict_pixels(predictor.read(file.getvalue())[None])[0], abs=1e-7)
    assert sha256_of_file(Path(loaded._model_impl.context.artifacts["model"])) == kept.sha256


def test_a_model_without_a_run_is_logged_from_its_folder_once(project):
    kept = keep(project)
    update_registry([kept], {"champion": kept.sha256})
    assert update_registry([kept], {"champion": kept.sha256}) == []
    client, experiment_id = connect()
    (run,) = runs_of(client, experiment_id)
    assert (run.info.status, run.info.run_name, run.data.params["seed"]) == ("FINISHED", "finetuned", "0")
    assert (run.data.metrics["test_top1_accuracy"], run.data.metrics["val_loss"]) == (0.75, 0.5)


def test_a_later_publication_completes_the_run_of_a_champion(files):  # noqa: F811
    folder = files / "champions/a"
    shutil.copytree(files / "models/finetuned", folder)
    shutil.copytree(files / "results/finetuned", folder / "results")
    update_registry([Registration(SHA256, "finetuned", folder, TAGS, None)], {"champion": SHA256})
    client, experiment_id = connect()
    (run,) = runs_of(client, experiment_id)
    assert publish(files) == [f"finetuned: published as run {run.info.run_id}"]
    (run,) = runs_of(client, experiment_id)
    assert (run.data.tags["decision"], run.data.params["split.test"]) == ("PROMOTE", "0.3")
    points = client.get_metric_history(run.info.run_id, "test_top1_accuracy")
    assert [point.value for point in points] == [0.75]
    assert len(client.search_logged_models([experiment_id])) == 1


def test_a_folder_with_another_model_is_refused(project):
    kept = keep(project)
    (kept.folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(PipelineError) as caught:
        update_registry([kept], {})
    assert str(caught.value) == f"{kept.folder}/model.onnx: is not the model {kept.sha256}; run `dvc checkout`"


# No twins


def test_a_request_that_was_repeated_since_its_answer_was_lost_leaves_one_version(files, monkeypatch):  # noqa: F811
    publish(files)
    call = RegistryStore.create_model_version
    monkeypatch.setattr(RegistryStore, "create_model_version", lambda *a, **k: [call(*a, **k) for _ in range(2)][1])
    update_registry([PUBLISHED], {"champion": SHA256})
    assert (versions(), aliases()) == ([(1, SHA256)], {"champion": 1})


def test_twins_that_another_machine_left_stay_and_the_lowest_is_the_champion(files):  # noqa: F811
    publish(files)
    update_registry([PUBLISHED], {})
    client, _ = connect()
    first = client.get_model_version(EXPERIMENT, "1")
    client.create_model_version(EXPERIMENT, first.source, first.run_id, first.tags, model_id=first.model_id)
    update_registry([PUBLISHED], {"champion": SHA256})
    assert (versions(), aliases()) == ([(1, SHA256), (2, SHA256)], {"champion": 1})


def collide(monkeypatch, store, name, message, times):
    """Let the first calls of a setter fail, as if another machine had written the row at that moment."""
    call, calls = getattr(store, name), []

    def answer(*arguments, **keywords):
        calls.append(name)
        if len(calls) <= times:
            raise MlflowException(message)
        return call(*arguments, **keywords)

    monkeypatch.setattr(store, name, answer)
    return calls


@pytest.mark.parametrize("message", ["(sqlite3.IntegrityError) UNIQUE constraint failed", "(psycopg.errors.UniqueViolation) key exists"])
@pytest.mark.parametrize("name", ["create_model_version", "set_model_version_tag", "set_registered_model_alias"])
def test_a_row_that_another_machine_wrote_at_that_moment_is_written_again(files, monkeypatch, name, message):  # noqa: F811
    publish(files)
    calls = collide(monkeypatch, RegistryStore, name, message, 2)
    update_registry([PUBLISHED], {"champion": SHA256})
    assert (len(calls) > 2, versions(), aliases()) == (True, [(1, SHA256)], {"champion": 1})


def test_another_fault_of_mlflow_is_not_tried_again(files, monkeypatch):  # noqa: F811
    publish(files)
    calls = collide(monkeypatch, RegistryStore, "set_registered_model_alias", "no space left", 9)
    with pytest.raises(PipelineError):
        update_registry([PUBLISHED], {"champion": SHA256})
    assert len(calls) == 1


def register_from(folder, uri, barrier, results):
    """Register the champion from a project of its own, as another machine would, at the same time as the others."""
    try:
        folder.mkdir()
        os.chdir(folder)
        os.environ |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
        barrier.wait(120)
        results.put(update_registry([PUBLISHED], {"champion": SHA256}))
    except Exception as error:  # whatever it is, the test must not wait for an answer
        results.put(f"{type(error).__name__}: {error}")


def register_at_once(folder, uri, count):
    barrier, results = FORKING.Barrier(count), FORKING.Queue()
    arguments = [(folder / f"clone-{number}", uri, barrier, results) for number in range(count)]
    processes = [FORKING.Process(target=register_from, args=each) for each in arguments]
    for process in processes:
        process.start()
    answers = [results.get(timeout=180) for _ in processes]
    for process in processes:
        process.join()
    return answers


@contextmanager
def mlflow_server(folder):
    """An MLflow server on this machine that keeps all in the folder; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not is_up(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_up(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_machines_that_register_one_model_at_once_at_a_database_make_one_version(files, tmp_path, count):  # noqa: F811
    publish(files)
    answers = register_at_once(tmp_path, tracking_uri(), count)
    assert [answer for answer in answers if isinstance(answer, str)] == []
    assert (len(versions()), aliases()) == (1, {"champion": versions()[0][0]})


@pytest.mark.slow
def test_machines_that_register_one_model_at_once_at_a_server_make_one_version(files, tmp_path, monkeypatch):  # noqa: F811
    with mlflow_server(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # of one worker for twenty clients
        publish(files)
        answers = register_at_once(tmp_path, uri, 20)
        assert [answer for answer in answers if isinstance(answer, str)] == []
        assert (len(versions()), aliases()) == (1, {"champion": versions()[0][0]})
        assert check_registry({"champion": SHA256}, deep=True) == []


# Aliases


def test_the_champion_is_set_after_its_predecessor_and_before_anything_is_removed(project, monkeypatch):
    old, new = keep(project, 0), keep(project, 1)
    update_registry([old, new], {"champion": old.sha256, "challenger": new.sha256, "previous": None})
    calls = []
    for name in ("set_registered_model_alias", "delete_registered_model_alias"):
        call = getattr(RegistryStore, name)
        monkeypatch.setattr(RegistryStore, name, lambda *a, call=call: (calls.append(a[2:]), call(*a)))
    lines = update_registry([old, new], {"champion": new.sha256, "challenger": None, "previous": old.sha256})
    assert calls == [("previous", "1"), ("champion", "2"), ("challenger",)]
    assert lines == [
        f"{EXPERIMENT}@previous: is version 1",
        f"{EXPERIMENT}@champion: is version 2, was version 1",
        f"{EXPERIMENT}@challenger: is unset, was version 2",
    ]
    assert aliases() == {"champion": 2, "previous": 1}


def test_versions_and_aliases_of_a_person_stay(files):  # noqa: F811
    publish(files)
    client, experiment_id = connect()
    client.create_registered_model(EXPERIMENT)
    (logged,) = client.search_logged_models([experiment_id])
    client.create_model_version(EXPERIMENT, f"models:/{logged.model_id}", tags={"model_sha256": SHA256}, model_id=logged.model_id)
    client.set_registered_model_alias(EXPERIMENT, "mine", "1")
    client.set_registered_model_alias(EXPERIMENT, "previous", "1")
    update_registry([PUBLISHED], {"champion": SHA256, "previous": None})
    assert versions() == [(1, SHA256), (2, SHA256)]
    assert aliases() == {"mine": 1, "previous": 1, "champion": 2}


# The check


def test_the_check_finds_nothing_after_an_update_and_names_what_was_changed_since(project):
    old, new = keep(project, 0), keep(project, 1)
    right = {"champion": new.sha256, "challenger": None, "previous": old.sha256}
    update_registry([old, new], right)
    assert check_registry(right, deep=True) == []
    client, _ = connect()
    client.set_registered_model_alias(EXPERIMENT, "champion", "1")
    client.set_registered_model_alias(EXPERIMENT, "challenger", "2")
    client.delete_registered_model_alias(EXPERIMENT, "previous")
    assert check_registry(right) == [
        f"{EXPERIMENT}@champion: is version 1, {old.sha256[:16]}; it must be {new.sha256[:16]}",
        f"{EXPERIMENT}@challenger: is version 2, {new.sha256[:16]}; it must be unset",
        f"{EXPERIMENT}@previous: is unset; it must be {old.sha256[:16]}",
    ]
    update_registry([old, new], right)
    assert check_registry(right) == []


@pytest.mark.usefixtures("project")
def test_the_check_of_an_mlflow_without_models_names_the_champion_and_changes_nothing():
    assert check_registry({"champion": SHA256, "previous": None}) == [f"{EXPERIMENT}@champion: is unset; it must be {SHA256[:16]}"]
    assert connect()[0].search_registered_models() == []


def test_the_deep_check_names_a_file_that_was_changed_or_lost(project):
    kept = keep(project)
    update_registry([kept], {"champion": kept.sha256})
    (stored,) = (project / "mlruns").rglob("artifacts/model.onnx")
    stored.write_bytes(b"another")
    assert check_registry({"champion": kept.sha256}) == []
    (line,) = check_registry({"champion": kept.sha256}, deep=True)
    assert re.fullmatch(rf"{EXPERIMENT}@champion: the model.onnx of version 1 is \w{{16}}; it must be {kept.sha256[:16]}", line)
    stored.unlink()
    assert check_registry({"champion": kept.sha256}, deep=True) == [f"{EXPERIMENT}@champion: MLflow has lost the model.onnx of version 1"]


# A project that was moved


@pytest.mark.parametrize("way", [shutil.move, shutil.copytree])
def test_the_champion_is_found_where_the_project_was_moved_or_copied(project, tmp_path_factory, monkeypatch, way):
    kept = keep(project)
    update_registry([kept], {"champion": kept.sha256})
    new = tmp_path_factory.mktemp("elsewhere") / "project"
    way(project, new)
    monkeypatch.chdir(new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow set it to the place before, for the children of this process
    assert check_registry({"champion": kept.sha256}, deep=True) == []
    assert update_registry([kept], {"champion": kept.sha256}) == []
    place = connect()[0].get_model_version_download_uri(EXPERIMENT, "1")
    assert place.startswith(f"{new}/mlruns/")


# MLflow that fails


@pytest.mark.usefixtures("project")
def test_an_mlflow_that_is_away_is_one_line_with_its_cure(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for call in (lambda: update_registry([PUBLISHED], {}), lambda: check_registry({})):
        with pytest.raises(PipelineError) as caught:
            call()
        assert str(caught.value).startswith(f"MLflow at {uri}: ")
        assert str(caught.value).endswith("; start the server, then run `pipeline retrain`")


def test_an_mlflow_that_dies_at_any_write_is_made_whole_by_the_next_update(files, tmp_path, monkeypatch):  # noqa: F811
    publish(files)
    model = Registration(SHA256, "finetuned", None, TAGS, decision(tmp_path))
    server, at = Writes(monkeypatch), 1
    while True:
        server.calls, server.last = 0, at
        try:
            update_registry([model], {"champion": SHA256})
            break
        except PipelineError as error:
            assert ": gone; " in str(error)
        server.last = None
        update_registry([model], {"champion": SHA256})
        assert (len(versions()), aliases()) == (1, {"champion": versions()[0][0]}), at
        assert update_registry([model], {"champion": SHA256}) == [], at
        connect()[0].delete_registered_model(EXPERIMENT)
        at += 1
    assert at > 5


class Writes(Server):
    """The writes of MLflow's registry and of its runs; from `last` on each of them fails after it has done what was asked."""

    def __init__(self, monkeypatch):
        self.calls, self.last = 0, None
        for store in (RegistryStore, TrackingStore):
            for name in (name for name in vars(store) if WRITES.match(name)):
                monkeypatch.setattr(store, name, self.counted(getattr(store, name)))


def test_many_versions_cost_no_more_calls_than_one(files, monkeypatch):  # noqa: F811
    publish(files)
    update_registry([PUBLISHED], {"champion": SHA256})
    client, _ = connect()
    first = client.get_model_version(EXPERIMENT, "1")
    for number in range(50):
        tags = {**first.tags, "model_sha256": f"{number:064}"}
        client.create_model_version(EXPERIMENT, first.source, first.run_id, tags, model_id=first.model_id)
    calls = []
    for store in (RegistryStore, TrackingStore):
        for name in (name for name, value in vars(store).items() if callable(value) and not name.startswith("_")):
            call = getattr(store, name)
            monkeypatch.setattr(store, name, lambda *a, call=call, name=name, **k: (calls.append(name), call(*a, **k))[1])
    start = time.perf_counter()
    assert update_registry([PUBLISHED], {"champion": SHA256, "previous": None}) == []
    assert time.perf_counter() - start < 2
    assert calls == ["get_experiment_by_name", "get_registered_model", "search_model_versions"]


# Download


def test_a_model_is_loaded_by_its_alias_and_number_downloaded_once_and_again_if_the_copy_is_damaged(project, monkeypatch):
    kept = keep(project)
    update_registry([kept], {"champion": kept.sha256})
    shutil.rmtree(kept.folder)
    model = load_model(f"models:/{EXPERIMENT}@champion", threads=1)
    path = project / ".cache/registry" / kept.sha256 / "model.onnx"
    assert (model.sha256, model.path, model.class_names) == (kept.sha256, path, ["ant", "bee"])
    assert os.listdir(path.parent) == ["model.onnx"]
    path.write_bytes(b"damaged")
    assert load_model(f"models:/{EXPERIMENT}/1", threads=1).sha256 == sha256_of_file(path) == kept.sha256
    (stored,) = (project / "mlruns").rglob("artifacts/model.onnx")
    stored.write_bytes(b"damaged")
    assert fetch_model(f"models:/{EXPERIMENT}/1") == path.parent  # nothing is downloaded
    path.unlink()
    with pytest.raises(PipelineError, match=rf"^models:/{EXPERIMENT}/1: its model.onnx in MLflow is damaged"):
        fetch_model(f"models:/{EXPERIMENT}@champion")
    assert not path.exists()


def test_an_address_without_a_model_of_ours_is_refused(project):
    client = connect()[0]
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(project / "mlruns"))
    for address, words in {
        "models:/theirs": "is not an address of a model; expected models:/NAME@ALIAS",
        "models:/theirs@champion": "has no such model",
        "models:/theirs/2": "has no such model",
        "models:/nobody/1": "has no such model",
        "models:/theirs/1": "is not a model of this pipeline",
    }.items():
        with pytest.raises(PipelineError, match=f"^{address}: .*{words}"):
            fetch_model(address)


def test_a_registry_that_is_away_is_a_line_that_says_what_to_do(use_server):
    with use_server(b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n"), pytest.raises(PipelineError, match=r"then call `load_model` again$"):
        fetch_model(f"models:/{EXPERIMENT}@champion")
