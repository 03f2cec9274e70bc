"""The report compares every model, writes the page, and stops for no tracker."""

import base64
import io

import pytest
from PIL import Image

from pipeline.data.manifest import Picture, write_manifest
from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json, write_table
from pipeline.stages import report
from pipeline.stages.report import Params, read_doubts, run
from tests.evaluation.test_comparison import make_history, make_rows

PARAMS = Params(seed=0, confidence=0.95)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Results of three models; `run` is as the stage runs, and `calls` lists what was published and drawn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("models: {finetuned: {}, frozen: {}}\n")
    for name, answers in {"baseline": "+--+", "finetuned": "++++", "frozen": "+---"}.items():
        write_json(tmp_path / "metrics" / f"{name}.json", {"model": name})
        write_table(tmp_path / "results" / name / "predictions.csv", ["image_id", "label", "predicted"], make_rows(answers))
        write_table(tmp_path / "models" / name / "history.csv", ["epoch", "val_loss"], make_history(0.5, 0.25))
    (tmp_path / "data" / "splits" / "val" / "ants").mkdir(parents=True)
    Image.new("RGB", (200, 100), "red").save(tmp_path / "data" / "splits" / "val" / "ants" / "1.png")
    write_manifest(tmp_path / "data" / "manifest.csv", [Picture("a/ants/1.png", "ants/1.png", "0" * 64, "ants", "val", "a", 200, 100)])
    write_json(tmp_path / "data" / "audit.json", {"pictures": 1})
    doubted = {"image_id": "a/ants/1.png", "label": "ants", "predicted": "bees", "prob_ants": "0.1", "prob_bees": "0.9"}
    write_table(tmp_path / "models" / "out_of_fold.csv", list(doubted), [doubted])
    calls = []
    monkeypatch.setattr(report.page, "write_page", lambda *arguments: calls.append(("page", list(arguments[1]), arguments[5])))
    monkeypatch.setattr(report, "publish", lambda *folders: calls.append(("publish", [folder.name for folder in folders])))
    return tmp_path, calls


def run_in(root):
    run(PARAMS, root / "data", root / "models", root / "results", root / "metrics", root / "report", root / "metrics" / "comparison.json")
    return read_json(root / "metrics" / "comparison.json")


def test_every_model_is_compared_with_the_baseline(project):
    found = run_in(project[0])
    assert [(name, facts["against"], facts["top1_accuracy_difference"]) for name, facts in found.items()] == [
        ("finetuned", "baseline", 0.5),
        ("frozen", "baseline", -0.25),
    ]


def test_the_epoch_whose_weights_were_kept_is_told(project):
    assert run_in(project[0])["finetuned"]["best_epoch"] == 1


def test_the_page_is_written_and_then_mlflow_is_told(project):
    run_in(project[0])
    page, told = project[1]
    assert page == ("page", ["baseline", "finetuned", "frozen"], {"pictures": 1})
    assert told == ("publish", ["data", "models", "results", "metrics"])


def test_a_doubted_picture_is_shown_small(project):
    (row,) = read_doubts(project[0] / "data", project[0] / "models" / "out_of_fold.csv")
    with Image.open(io.BytesIO(base64.b64decode(row["thumbnail"].removeprefix("data:image/jpeg;base64,")))) as image:
        assert (row["image_id"], image.size) == ("a/ants/1.png", (96, 48))


def test_a_tracker_that_is_away_does_not_stop_the_report(project, monkeypatch, capsys):
    def refuse(*folders):
        raise PipelineError("MLflow is away")

    monkeypatch.setattr(report, "publish", refuse)
    assert "finetuned" in run_in(project[0])
    assert capsys.readouterr().err == "MLflow is away\n"
