"""`publish` makes MLflow equal to the files, whatever was there before."""

import shutil

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_json, write_table
from pipeline.models.artifact import identity
from pipeline.tracking import publish as publishing
from pipeline.tracking import runs
from tests.test_pipeline import PARAMS
from tests.tracking.test_runs import FACTS, fresh_database, points, project, train_live  # noqa: F401 - fixtures

SHA256 = sha256_of(b"a graph")

pytestmark = pytest.mark.usefixtures("files")


@pytest.fixture
def files(project, monkeypatch):  # noqa: F811
    """The files of one trained and evaluated model, its graph replaced by some bytes."""
    monkeypatch.chdir(project)
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    model, results, metrics = project / "models/finetuned", project / "results/finetuned", project / "metrics"
    for folder in (model, results, metrics):
        folder.mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"a graph")
    write_json(model / "model.json", {**FACTS, "model_sha256": SHA256})
    ran = {"download": {"download": PARAMS["download"]}, "split": {"seed": 3, "split": PARAMS["split"]}}
    lock = {"stages": {name: {"params": {"params.yaml": params}} for name, params in ran.items()}}
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    write_table(model / "history.csv", ["epoch", "train_loss", "val_loss"],
                [{"epoch": 0, "val_loss": 0.9}, {"epoch": 1, "train_loss": 0.7, "val_loss": 0.5}])  # fmt: skip
    (results / "confusion_matrix.png").write_bytes(b"a picture")
    write_json(metrics / "finetuned.json", {"model": "finetuned", "model_sha256": SHA256, "top1_accuracy": 0.75})
    return project


def publish(root):
    return publishing.publish(root / "models", root / "results", root / "metrics")


def the_run():
    client, experiment_id = runs.connect()
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


def test_publishing_twice_changes_nothing(files):
    assert len(publish(files)) == 1
    assert publish(files) == []
    client, run = the_run()
    assert points(client, run, "test_top1_accuracy") == [(0, 0.75)]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_what_was_logged_live_is_completed_and_not_doubled(files):
    train_live()
    publish(files)
    client, run = the_run()
    assert points(client, run, "val_loss") == [(0, 0.9), (1, 0.5)]
    assert run.data.metrics["test_top1_accuracy"] == 0.75


def test_a_run_that_contradicts_the_files_is_replaced_with_its_logged_model(files):
    publish(files)
    write_json(files / "metrics/finetuned.json", {"model": "finetuned", "model_sha256": SHA256, "top1_accuracy": 0.5})
    publish(files)
    client, run = the_run()
    assert points(client, run, "test_top1_accuracy") == [(0, 0.5)]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_a_run_left_running_by_a_killed_process_is_finished(files):
    client, experiment_id = runs.connect()
    runs.create_run(client, experiment_id, FACTS)
    publish(files)
    assert the_run()[1].info.status == "FINISHED"


def test_other_inputs_make_another_run(files):
    publish(files)
    other = {**FACTS, "hardware": {**FACTS["hardware"], "threads": 4}}
    assert identity(other) != identity(FACTS)
    write_json(files / "models/finetuned/model.json", {**other, "model_sha256": SHA256})
    publish(files)
    client, experiment_id = runs.connect()
    assert len(client.search_runs([experiment_id])) == 2


def test_scores_of_another_model_are_refused(files):
    write_json(files / "metrics/finetuned.json", {"model": "finetuned", "model_sha256": "b" * 64, "top1_accuracy": 0.75})
    with pytest.raises(PipelineError) as caught:
        publish(files)
    metrics, model = files / "metrics/finetuned.json", files / "models/finetuned"
    assert str(caught.value) == f"{metrics}: tells of another model than {model}; run `dvc repro`"


def test_a_model_file_that_is_not_the_described_one_is_refused(files):
    (files / "models/finetuned/model.onnx").write_bytes(b"another graph")
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/models/finetuned/model.onnx: is not the file that model.json describes; run `dvc checkout`"


def test_a_missing_folder_is_named(files):
    shutil.rmtree(files / "results/finetuned")
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/results/finetuned: is not there; run `dvc checkout`"


def test_params_changed_since_the_run_are_not_taken_for_its_own(files):
    params = {**PARAMS, "split": {"val": 0.5, "test": 0.1}}
    (files / "params.yaml").write_text(yaml.safe_dump(params))
    publish(files)
    assert the_run()[1].data.params["split.test"] == "0.3"


def test_a_model_that_left_params_yaml_is_not_published(files):
    (files / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "models": {"other": {}}}))
    with pytest.raises(PipelineError) as caught:
        publish(files)
    assert str(caught.value) == f"{files}/metrics: holds no scores of a model; run `dvc repro`"


def test_nothing_to_publish_is_said(files, tmp_path):
    with pytest.raises(PipelineError) as caught:
        publish(tmp_path / "empty")
    assert str(caught.value) == f"{tmp_path}/empty/metrics: holds no scores of a model; run `dvc repro`"
