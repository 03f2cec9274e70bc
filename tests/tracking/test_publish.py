"""`publish` makes MLflow equal to the files, whatever was there before."""

import json
import re
import resource
import socket

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of, write_json, write_table
from pipeline.core.stage import code_digest, import_closure
from pipeline.networks.artifact import identity
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.tracking import contents, runs
from pipeline.tracking import publish as publishing
from pipeline.tracking.connection import connect, creation_lock, tracking_uri
from tests.tracking.test_runs import FACTS, OTHER, SHA256, elsewhere, kill, locks, points, train_live  # noqa: F401 - a fixture

PICTURES = [
    Picture(f"{label}/{split}.png", f"{label}/{split}.png", f"{index}" * 64, label, split, f"{label}/{split}.png", 8, 8)
    for index, (label, split) in enumerate([("ant", "train"), ("ant", "val"), ("bee", "test"), ("bee", "train")])
]
PARAMS = {"download": {"source": "pictures"}, "split": {"val": 0.2, "test": 0.3}, "models": {"finetuned": {}}}

CALLS = [name for name, value in vars(SqlAlchemyStore).items() if callable(value) and not name.startswith("_")]
WRITES = [name for name in CALLS if re.match("log_|set_|create_|update_|delete_|record_|finalize_", name)]

pytestmark = pytest.mark.usefixtures("files")


@pytest.fixture
def files(project):
    """The files of one trained and evaluated model, its graph replaced by some bytes."""
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    write_manifest(project / "data/manifest.csv", PICTURES)
    write_json(project / "data/source.json", {"source": "pictures", "licence": "CC0"})
    model, results = project / "models/finetuned", project / "results/finetuned"
    model.mkdir(parents=True)
    write_model(project, FACTS)
    ran = {"download": {"download": PARAMS["download"]}, "split": {"seed": 3, "split": PARAMS["split"]}}
    lock = {"stages": {name: {"params": {"params.yaml": params}} for name, params in ran.items()}}
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    write_table(model / "history.csv", ["epoch", "train_loss", "val_loss"],
                [{"epoch": 0, "val_loss": 0.9}, {"epoch": 1, "train_loss": 0.7, "val_loss": 0.5}])  # fmt: skip
    answer = {"image_id": "bee/test.png", "label": "bee", "predicted": "ant", "probability": "0.75"}
    write_table(results / "predictions.csv", list(answer), [answer])
    Image.new("RGB", (40, 30), "red").save(results / "confusion_matrix.png")
    write_scores(project)
    return project


def write_model(root, facts, graph=b"a graph"):
    (root / "models/finetuned/model.onnx").write_bytes(graph)
    write_json(root / "models/finetuned/model.json", {**facts, "class_names": ["ant", "bee"], "model_sha256": sha256_of(graph)})


def write_scores(root, **changed):
    accuracy = {"value": changed.pop("top1_accuracy", 0.75), "low": 0.5, "high": 1.0}
    undefined = {"value": 1.0, "low": None, "high": None}
    scores = {"model": "finetuned", "model_sha256": SHA256, "test_pictures": 4, "test_sha256": "7" * 64,
              "confidence": 0.95, "figures": {"top1_accuracy": accuracy, "roc_auc": undefined}}  # fmt: skip
    write_json(root / "results/finetuned/scores.json", {**scores, **changed})


def publish(root):
    return publishing.publish(root / "data", root / "models", root / "results")


def the_run():
    client, experiment_id = connect()
    (run,) = client.search_runs([experiment_id])
    return client, run


def test_the_run_holds_curves_scores_params_and_files(files):
    publish(files)
    client, run = the_run()
    assert points(client, run, "val_loss") == [(0, 0.9), (1, 0.5)]
    assert run.data.metrics["test_top1_accuracy"] == 0.75
    assert (run.data.params["epochs"], run.data.params["split.test"]) == ("2", "0.3")
    assert run.data.tags["model_sha256"] == SHA256
    assert {file.path for file in client.list_artifacts(run.info.run_id, "models/finetuned")} == {
        "models/finetuned/history.csv", "models/finetuned/model.json", "models/finetuned/model.onnx"
    }  # fmt: skip


def test_the_run_holds_no_password_of_an_address(files):
    lock = (files / "dvc.lock").read_text()
    (files / "dvc.lock").write_text(lock.replace("source: pictures", "source: https://user:secret@host/a.zip"))
    publish(files)
    assert the_run()[1].data.params["download.source"] == "https://host/a.zip"


def test_the_run_tells_how_fast_the_model_was_on_this_machine(files):
    write_json(files / ".cache/timings" / f"{SHA256}.json", {"pictures_per_second": 12.5})
    publish(files)
    assert the_run()[1].data.tags["pictures_per_second"] == "12.5"


def test_the_run_holds_figures_answers_data_and_a_description(files):
    publish(files)
    client, run = the_run()
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "confusion_matrix.png", "images", "models", "predictions.csv", "predictions_table.json", "scores.json"
    }  # fmt: skip
    assert run.data.tags["mlflow.loggedImages"] == "True"
    assert run.data.tags["mlflow.loggedArtifacts"] == '[{"path": "predictions_table.json", "type": "table"}]'
    assert inputs(run) == [("pictures", "test", 1), ("pictures", "train", 2), ("pictures", "val", 1)]
    assert run.data.tags["mlflow.note.content"].startswith("`finetuned`, 2 classes, scored on 4 test pictures; intervals of 95 %.\n")


def test_the_description_says_what_changed_since_the_last_run_of_that_name(files):
    publish(files)
    first = the_run()[1].info.run_id
    write_model(files, {**FACTS, "params": {"epochs": 3}, "inputs_sha256": {**FACTS["inputs_sha256"], "params": "q" * 64}})
    write_scores(files, top1_accuracy=0.875, test_sha256="8" * 64)
    publish(files)
    client, experiment_id = connect()
    (run,) = (run for run in client.search_runs([experiment_id]) if run.info.run_id != first)
    assert run.data.tags["mlflow.note.content"] == (
        "`finetuned`, 2 classes, scored on 4 test pictures; intervals of 95 %.\n\n"
        "| figure | value | interval | before | change |\n| --- | --- | --- | --- | --- |\n"
        "| `top1_accuracy` | 0.875 | 0.500 to 1.000 | 0.750 | +0.125 |\n\n"
        "Note: the scores before are of other test pictures.\n\n"
        f"Changed since run `{first}`:\n\n- `epochs`: `2` → `3`\n- `schedule.warmup`: `0.1` → `absent`"
    )


def test_the_logged_model_carries_the_modules_that_it_needs(files):
    publish(files)
    (code,) = (files / "mlruns").rglob("code")
    carried = {path.relative_to(code).as_posix() for path in code.rglob("*.py")}
    assert carried == {"pipeline/__init__.py", *import_closure("pipeline.serving.predictor")}


def test_publishing_twice_changes_nothing(files):
    assert len(publish(files)) == 1
    assert publish(files) == []
    client, run = the_run()
    assert points(client, run, "test_top1_accuracy") == [(0, 0.75)]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_publishing_again_writes_nothing(files, monkeypatch):
    publish(files)
    called = []
    for name in WRITES:
        monkeypatch.setattr(SqlAlchemyStore, name, lambda *_, name=name, **__: called.append(name))
    logged = set((files / "mlruns").rglob("*"))
    publish(files)
    assert (called, set((files / "mlruns").rglob("*"))) == ([], logged)


def test_a_changed_comment_changes_no_run_and_changed_code_makes_another(files, monkeypatch, tmp_path_factory):
    root = tmp_path_factory.mktemp("code")
    (root / "pipeline").mkdir()

    def publish_with(code):
        (root / "pipeline/trained_by.py").write_text(code)
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.core.stage._ROOT", root)
            digest = code_digest("pipeline.trained_by")
        write_model(files, {**FACTS, "inputs_sha256": {**FACTS["inputs_sha256"], "code": digest}})
        return publish(files)

    assert len(publish_with('"""Trains."""\nRATE = 1  # slow\n')) == 1
    assert publish_with('"""Trains a model."""\n\n# Slow, but safe.\nRATE = 1\n') == []
    assert len(publish_with('"""Trains."""\nRATE = 2  # slow\n')) == 1
    client, experiment_id = connect()
    assert len(client.search_runs([experiment_id])) == 2


def test_a_run_of_an_earlier_edition_is_completed_with_no_twin(files, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(contents, "_EDITION", 1)
        publish(files)
    first = the_run()[1].info.run_id
    assert publish(files) == [f"finetuned: published as run {first}"]
    assert state() == WHOLE


# Publishing adds


def drop_a_result(files):
    Image.new("RGB", (8, 8)).save(files / "results/finetuned/mistakes.png")
    publish(files)
    (files / "results/finetuned/mistakes.png").unlink()


def change_the_licence(files):
    publish(files)
    write_json(files / "data/source.json", {"source": "pictures", "licence": "CC BY 4.0"})


def change_a_figure(files):
    publish(files)
    write_scores(files, top1_accuracy=0.5)


@pytest.mark.parametrize("change", [drop_a_result, change_the_licence, change_a_figure])
def test_a_run_of_other_contents_is_superseded_and_stays(files, change):
    change(files)
    client, first = the_run()
    publish(files)
    newest = by_id()
    old = newest.pop(first.info.run_id)
    ((run_id, new),) = newest.items()
    assert old.data.tags["pipeline.superseded_by"] == run_id
    assert "pipeline.superseded_by" not in new.data.tags
    logged = client.search_logged_models([new.info.experiment_id])
    assert sorted(model.source_run_id for model in logged) == sorted([first.info.run_id, run_id])
    assert publish(files) == []


def test_contents_of_before_make_their_run_the_newest_again(files):
    publish(files)
    first = the_run()[1].info.run_id
    write_scores(files, top1_accuracy=0.5)
    publish(files)
    write_scores(files)
    assert publish(files) == [f"finetuned: run {first} is the newest again"]
    assert publish(files) == []
    runs_now = by_id()
    assert "pipeline.superseded_by" not in runs_now.pop(first).data.tags
    assert [run.data.tags["pipeline.superseded_by"] for run in runs_now.values()] == [first]


def test_a_model_of_another_machine_with_the_same_inputs_stays_beside_ours(files):
    publish(files)
    first = the_run()[1]
    write_table(files / "models/finetuned/history.csv", ["epoch", "val_loss"], [{"epoch": 0, "val_loss": 0.875}])
    write_model(files, FACTS, b"another graph")
    write_scores(files, model_sha256=sha256_of(b"another graph"), top1_accuracy=0.625)
    publish(files)
    both = by_id()
    theirs = both.pop(first.info.run_id)
    assert (theirs.data.to_dictionary(), theirs.info.status) == (first.data.to_dictionary(), "FINISHED")
    assert [run.data.metrics["test_top1_accuracy"] for run in both.values()] == [0.625]
    assert len(connect()[0].search_logged_models([first.info.experiment_id])) == 2
    assert publish(files) == []


def test_what_a_person_added_to_a_run_stays(files, tmp_path):
    publish(files)
    client, run = the_run()
    run_id = run.info.run_id
    client.log_metric(run_id, "field_accuracy", 0.5)
    client.log_metric(run_id, "test_top1_accuracy", 0.25, step=7)
    client.log_param(run_id, "camera", "old")
    client.set_tag(run_id, "reviewed_by", "Kim")
    (tmp_path / "notes.txt").write_text("good")
    client.log_artifact(run_id, str(tmp_path / "notes.txt"))
    theirs = client.create_logged_model(run.info.experiment_id, "theirs", run_id)
    before = the_run()[1].data.to_dictionary()
    assert publish(files) == []
    assert (the_run()[1].data.to_dictionary(), client.get_logged_model(theirs.model_id).status) == (before, "PENDING")
    assert "notes.txt" in {file.path for file in client.list_artifacts(run_id)}


def test_what_a_person_added_to_a_live_run_is_completed_by_a_publication(files):
    train_live()
    write_model(files, FACTS)
    client, run = the_run()
    client.log_metric(run.info.run_id, "system/cpu_utilization_percentage", 12.5)
    publish(files)
    assert the_run()[1].data.metrics["system/cpu_utilization_percentage"] == 12.5
    assert state() == WHOLE


def test_metrics_of_the_system_are_not_logged_by_a_publication(files, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    publish(files)
    assert [name for name in the_run()[1].data.metrics if name.startswith("system/")] == []
    assert publish(files) == []


def test_a_live_run_whose_curve_is_another_is_superseded(files):
    train_live([{"epoch": 0, "val_loss": 0.25}])
    write_model(files, FACTS)
    first = the_run()[1].info.run_id
    publish(files)
    runs_now = by_id()
    old = runs_now.pop(first)
    assert [old.data.tags["pipeline.superseded_by"]] == list(runs_now)


def test_a_run_that_another_machine_logs_live_is_left_to_it(files):
    client, experiment_id = connect()
    theirs = runs.create_run(client, experiment_id, FACTS, {runs.MACHINE: "another"})
    publish(files)
    assert by_id()[theirs.info.run_id].data.metrics == {}
    assert len(by_id()) == 2


def by_id():
    client, experiment_id = connect()
    return {run.info.run_id: run for run in client.search_runs([experiment_id])}


def test_a_manifest_of_another_training_is_refused(files):
    write_manifest(files / "data/manifest.csv", PICTURES[1:])
    assert refusal(files) == f"{files}/data/manifest.csv: is not the table that {files}/models/finetuned was trained with; run `dvc repro`"


def test_a_missing_manifest_is_named(files):
    (files / "data/manifest.csv").unlink()
    assert refusal(files) == f"{files}/data/manifest.csv: does not exist; run `dvc checkout`"


def test_what_was_logged_live_is_completed_and_not_doubled(files):
    train_live()
    write_model(files, FACTS)
    publish(files)
    client, run = the_run()
    assert points(client, run, "val_loss") == [(0, 0.9), (1, 0.5)]
    assert run.data.metrics["test_top1_accuracy"] == 0.75


def test_a_run_left_running_by_a_killed_process_is_finished(files):
    client, experiment_id = connect()
    runs.create_run(client, experiment_id, FACTS)
    publish(files)
    assert the_run()[1].info.status == "FINISHED"


def test_other_inputs_make_another_run(files):
    publish(files)
    other = {**FACTS, "hardware": {**FACTS["hardware"], "threads": 4}}
    assert identity(other) != identity(FACTS)
    write_model(files, other)
    publish(files)
    client, experiment_id = connect()
    assert len(client.search_runs([experiment_id])) == 2


def test_scores_of_another_model_are_refused(files):
    write_scores(files, model_sha256="b" * 64)
    with pytest.raises(PipelineError) as caught:
        publish(files)
    scores, model = files / "results/finetuned/scores.json", files / "models/finetuned"
    assert str(caught.value) == f"{scores}: are the scores of another model than {model}; run `dvc repro`"


def test_a_model_file_that_is_not_the_described_one_is_refused(files):
    (files / "models/finetuned/model.onnx").write_bytes(b"another graph")
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/models/finetuned/model.onnx: is not the file that model.json describes; run `dvc checkout`"


@pytest.mark.parametrize("path", ["models/finetuned/model.onnx", "data/manifest.csv", "data/source.json"])
def test_a_missing_file_is_named(files, path):
    (files / path).unlink()
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/{path}: does not exist; run `dvc checkout`"


def test_params_changed_since_the_run_are_not_taken_for_its_own(files):
    params = {**PARAMS, "split": {"val": 0.5, "test": 0.1}}
    (files / "params.yaml").write_text(yaml.safe_dump(params))
    publish(files)
    assert the_run()[1].data.params["split.test"] == "0.3"


def test_a_model_that_left_params_yaml_is_not_published(files):
    (files / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "models": {"other": {}}}))
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/results: contains no scores of a model; run `dvc repro` or `dvc checkout`"


def test_nothing_to_publish_is_said(files, tmp_path):
    with pytest.raises(PipelineError) as caught:
        publish(tmp_path / "empty")
    assert str(caught.value) == f"{tmp_path}/empty/results: contains no scores of a model; run `dvc repro` or `dvc checkout`"


def refusal(files):
    with pytest.raises(PipelineError) as caught:
        publish(files)
    return str(caught.value)


def test_a_lock_file_of_dvc_that_is_no_yaml_is_refused(files):
    (files / "dvc.lock").write_text("stages: [")
    assert refusal(files).startswith("dvc.lock: is not YAML: line 1: ")


def test_a_missing_lock_file_of_dvc_is_named(files):
    (files / "dvc.lock").unlink()
    assert refusal(files) == "dvc.lock: does not exist; run `dvc repro`"


# MLflow that fails


class Server:
    """MLflow's store, counting some of its calls; from `last` on each of them fails after it has done what was asked."""

    def __init__(self, monkeypatch, names):
        self.calls, self.last = 0, None
        for name in names:
            monkeypatch.setattr(SqlAlchemyStore, name, self.counted(getattr(SqlAlchemyStore, name)))

    def counted(self, call):
        def answer(*arguments, **keywords):
            self.calls += 1
            done = call(*arguments, **keywords)
            if self.last is not None and self.calls >= self.last:
                raise OSError("gone")
            return done

        return answer


def state():
    """All that must be so after a publication: one finished run with its figures, data and pictures, once, and one whole logged model."""
    client, run = the_run()
    logged = [model.status for model in client.search_logged_models([run.info.experiment_id])]
    images = [re.sub(r"\+timestamp\+.*?(\+compressed)?\.", r"\1.", file.path) for file in client.list_artifacts(run.info.run_id, "images")]
    numbers = points(client, run, "val_loss"), run.data.metrics["test_top1_accuracy"]
    return run.info.status, *numbers, len(inputs(run)), images, "mlflow.note.content" in run.data.tags, logged


def inputs(run):
    """Name, split and number of pictures of each input."""
    found = [(entry.dataset, entry.tags[0].value) for entry in run.inputs.dataset_inputs]
    return sorted((dataset.name, split, json.loads(dataset.profile)["pictures"]) for dataset, split in found)


IMAGES = ["images/confusion_matrix+step+0+compressed.webp", "images/confusion_matrix+step+0.png"]
WHOLE = ("FINISHED", [(0, 0.9), (1, 0.5)], 0.75, 3, IMAGES, True, ["READY"])


@pytest.mark.parametrize(("names", "least"), [(WRITES, 12), pytest.param(CALLS, 20, marks=pytest.mark.slow)], ids=["writes", "calls"])
def test_a_server_that_dies_at_any_call_is_made_whole_by_the_next_publication(files, monkeypatch, names, least):
    server, at = Server(monkeypatch, names), 1
    while True:
        server.calls, server.last = 0, at
        try:
            publish(files)
            break
        except PipelineError as error:
            assert str(error).startswith(f"MLflow at {tracking_uri()}: gone; repair it")
        server.last = None
        publish(files)
        assert state() == WHOLE, at
        assert publish(files) == [], at
        assert locks(files) == []
        client, run = the_run()
        client.delete_logged_model(client.search_logged_models([run.info.experiment_id])[0].model_id)
        client.delete_run(run.info.run_id)
        at += 1
    assert at > least


@pytest.mark.parametrize("name", ["create_run", "create_logged_model"])
def test_a_request_that_was_repeated_since_its_answer_was_lost_leaves_no_twins(files, monkeypatch, name):
    monkeypatch.setattr("pipeline.tracking.connection._PATIENCE_SECONDS", 1)
    call = getattr(SqlAlchemyStore, name)
    with monkeypatch.context() as patched:
        patched.setattr(SqlAlchemyStore, name, lambda *arguments, **keywords: [call(*arguments, **keywords) for _ in range(2)][1])
        publish(files)
    publish(files)
    assert state() == WHOLE
    assert publish(files) == []


def test_a_damaged_database_is_told_of_in_one_line(files):
    (files / "mlflow.db").write_bytes(b"hello " * 1000)
    assert refusal(files) == (
        f"MLflow at sqlite:///{files}/mlflow.db: (sqlite3.DatabaseError) file is not a database; "
        "repair it, or move the database away, then run `pipeline publish`"
    )


def test_a_database_that_was_moved_away_is_made_anew(files, monkeypatch, fresh_database):
    monkeypatch.setattr("pipeline.tracking.connection._upgrade", lambda path: path.write_bytes(fresh_database))  # it takes its time
    (files / "mlflow.db").unlink()
    publish(files)
    assert state() == WHOLE


def test_a_database_that_cannot_be_written_is_told_of_in_one_line(files, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{files}/mlflow.db?mode=ro&uri=true")
    assert refusal(files) == (
        f"MLflow at sqlite:///file:{files}/mlflow.db?mode=ro&uri=true: (sqlite3.OperationalError) attempt to write a readonly database; "
        "repair it, or move the database away, then run `pipeline publish`"
    )


def test_a_full_disk_is_told_of_in_one_line_and_costs_nothing(files, capsys):
    connect()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        told = refusal(files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told == (
        f"MLflow at sqlite:///{files}/mlflow.db: (sqlite3.OperationalError) disk I/O error; "
        "repair it, or move the database away, then run `pipeline publish`"
    )
    assert capsys.readouterr().err == ""
    publish(files)
    assert state() == WHOLE


def test_a_folder_of_artifacts_that_cannot_be_written_is_told_of_in_one_line(files):
    (files / "mlruns").write_text("in the way")
    assert re.fullmatch(
        rf"MLflow at sqlite:///{files}/mlflow\.db: \[Errno 20\] Not a directory: '{files}/mlruns/\w+'; "
        "repair it, or move the database away, then run `pipeline publish`",
        refusal(files),
    )


def test_a_server_that_is_away_is_told_of_in_one_line(files, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told = refusal(files)
    assert told.startswith(f"MLflow at {uri}: API request to {uri}/api/2.0/mlflow/experiments/get-by-name failed with exception ")
    assert (told.endswith("; start the server, then run `pipeline publish`"), told.count("\n")) == (True, 0)


# Other processes


def test_a_run_that_another_process_writes_is_neither_published_nor_replaced(elsewhere, files):  # noqa: F811
    write_scores(files, top1_accuracy=0.5)
    write_table(files / "models/finetuned/history.csv", ["epoch", "val_loss"], [{"epoch": 0, "val_loss": 0.1}])
    assert publish(files) == ["finetuned: is being trained; publish it when the training has ended"]
    client, run = the_run()
    assert (points(client, run, "val_loss"), run.info.status) == ([(0, 0.9)], "RUNNING")


def test_a_run_whose_process_was_killed_is_published_like_any_other(elsewhere, files):  # noqa: F811
    kill(elsewhere)
    publish(files)
    assert (state(), locks(files)) == (WHOLE, [])


def test_a_run_whose_process_was_killed_is_closed_by_a_publication_of_others(elsewhere, files):  # noqa: F811
    kill(elsewhere)
    write_model(files, OTHER)
    publish(files)
    client, experiment_id = connect()
    assert sorted(run.info.status for run in client.search_runs([experiment_id])) == ["FINISHED", "KILLED"]


def test_a_publication_that_was_killed_leaves_no_run_running(files, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # what a kill leaves: the file, unlocked
        patched.setattr(MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        publish(files)
    client, experiment_id = connect()
    with creation_lock():
        runs.close_stale_runs(client, experiment_id)
    assert the_run()[1].info.status == "KILLED"
