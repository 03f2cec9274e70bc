"""The stage `report` compares every model, writes the page, and succeeds without a tracker."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_json, write_table
from pipeline.evaluation.comparison import verdict
from pipeline.evaluation.scores import write_matrix
from pipeline.pictures.manifest import Picture, read_manifest, write_manifest
from pipeline.stages import report
from pipeline.stages.report import Params, extremes, read_doubts, run
from tests.reports import make_rows

HISTORY = [{"epoch": str(epoch), "val_loss": loss} for epoch, loss in enumerate(["0.5", "0.25", "0.3"])]  # the last is not the best
PARAMS = Params(seed=0, confidence=0.95)
FIGURES = {"top1_accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}}
SCORES = {
    "model_sha256": "0" * 64,
    "test_pictures": 4,
    "test_groups": 4,
    "test_sha256": "4" * 64,
    "learned_test_pictures": 0,
    "confidence": 0.95,
    "figures": FIGURES,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the results of three models, and a list of the calls that write the page and publish."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("models: {finetuned: {}, frozen: {}}\n")
    for name, answers in {"baseline": "+--+", "finetuned": "++++", "frozen": "+---"}.items():
        write_json(tmp_path / "results" / name / "scores.json", {**SCORES, "model": name})
        write_json(tmp_path / "results" / name / "galleries.json", {})
        write_matrix(tmp_path / "results" / name / "confusion_matrix.csv", np.array([[len(name)]]), ["ants"])
        for table in ("reliability", "reliability_before", "coverage"):
            write_table(tmp_path / "results" / name / f"{table}.csv", ["a"], [{"a": name}])
        write_json(tmp_path / "models" / name / "model.json", {"model": name, "params": {"epochs": 5}})
        write_table(tmp_path / "results" / name / "predictions.csv", ["image_id", "group", "label", "predicted"], make_rows(answers))
        write_table(tmp_path / "models" / name / "history.csv", ["epoch", "val_loss"], HISTORY)
    (tmp_path / "data" / "splits" / "val" / "ants").mkdir(parents=True)
    Image.new("RGB", (200, 100), "red").save(tmp_path / "data" / "splits" / "val" / "ants" / "1.png")
    write_manifest(tmp_path / "data" / "manifest.csv", [Picture("a/ants/1.png", "ants/1.png", "0" * 64, "ants", "val", "a", 200, 100)])
    write_json(tmp_path / "data" / "audit.json", {"pictures": 1})
    write_json(tmp_path / "data/embeddings/embedding.json", {"image_sizes": []})
    write_json(tmp_path / "data" / "source.json", {"digest": "1" * 64, "raw_digest": "2" * 64})
    write_json(tmp_path / "models" / "backbone" / "backbone.json", {"weights": {"sha256": "3" * 64}})
    doubted = {"image_id": "a/ants/1.png", "label": "ants", "predicted": "bees", "probability": "0.9", "label_probability": "0.1"}
    write_table(tmp_path / "models" / "out_of_fold.csv", list(doubted), [doubted])
    calls = []
    monkeypatch.setattr(report.page, "write_page", lambda folder, content: calls.append(("page", content)))
    monkeypatch.setattr(report, "publish", lambda *folders: calls.append(("publish", [folder.name for folder in folders])))
    return tmp_path, calls


def run_in(root):
    run(PARAMS, root / "data", root / "models", root / "results", root / "report", root / "metrics" / "comparison.json")
    return read_json(root / "metrics" / "comparison.json")


def test_every_model_is_compared_with_the_baseline(project):
    found = run_in(project[0])
    assert [(name, facts["against"], facts["top1_accuracy_difference"]) for name, facts in found["differences"].items()] == [
        ("finetuned", "baseline", 0.5),
        ("frozen", "baseline", -0.25),
    ]


def test_the_digest_and_the_figures_of_each_model_are_kept_in_git(project):
    found = run_in(project[0])
    assert (found["test_pictures"], found["confidence"], list(found["models"])) == (4, 0.95, ["baseline", "finetuned", "frozen"])
    assert found["models"]["frozen"] == {
        "model_sha256": "0" * 64, "learned_test_pictures": 0, "top1_accuracy": 0.5, "top1_accuracy_low": 0.25, "top1_accuracy_high": 0.75
    }  # fmt: skip


def test_the_epoch_of_the_kept_weights_is_recorded(project):
    facts = run_in(project[0])["differences"]["finetuned"]
    assert (facts["best_epoch"], facts["last_epoch"], facts["epochs"]) == (1, 2, 5)


def test_the_page_is_written_before_mlflow_is_updated(project):
    run_in(project[0])
    assert [call[0] for call in project[1]] == ["page", "publish"]
    assert project[1][1] == ("publish", ["data", "models", "results"])


def test_the_page_has_every_model_with_its_verdict(project):
    run_in(project[0])
    models = project[1][0][1].models
    assert [model.name for model in models] == ["baseline", "finetuned", "frozen"]
    assert models[0].comparison is None
    for model in models[1:]:
        assert model.comparison["verdict"] == verdict(model.name, model.comparison, 4)


def test_each_model_is_shown_with_its_own_files(project):
    run_in(project[0])
    frozen = project[1][0][1].models[2]
    assert (frozen.facts, frozen.confusion, frozen.coverage) == (
        {"model": "frozen", "params": {"epochs": 5}},
        (["ants"], np.array([[6]])),
        [{"a": "frozen"}],
    )


def test_the_smallest_and_the_largest_picture_are_those_of_fewest_and_most_pixels():
    sizes = [(10, 10), (1, 90), (30, 4), (20, 20)]
    pictures = [Picture("a", "a", "", "ants", "train", "", width, height) for width, height in sizes]
    assert extremes(pictures) == ((1, 90), (20, 20))


def test_no_test_picture_is_read(project):
    assert not (project[0] / "data" / "splits" / "test").exists()
    run_in(project[0])


def test_missing_results_are_named(project):
    (project[0] / "results" / "frozen" / "scores.json").unlink()
    with pytest.raises(PipelineError, match=re.escape(f"{project[0]}/results/frozen/scores.json:") + ".*dvc repro"):
        run_in(project[0])
    assert project[1] == []


def test_a_doubted_picture_has_a_thumbnail(project):
    data = project[0] / "data"
    (row,) = read_doubts(data, read_manifest(data / "manifest.csv").pictures, project[0] / "models" / "out_of_fold.csv")
    with Image.open(io.BytesIO(base64.b64decode(row["thumbnail"].removeprefix("data:image/jpeg;base64,")))) as image:
        assert (row["image_id"], image.size) == ("a/ants/1.png", (96, 48))


def test_the_report_succeeds_if_the_tracker_is_away(project, monkeypatch, capsys):
    def refuse(*folders):
        raise PipelineError("MLflow is away")

    monkeypatch.setattr(report, "publish", refuse)
    assert "finetuned" in run_in(project[0])["models"]
    assert capsys.readouterr().err == "MLflow is away\n"
