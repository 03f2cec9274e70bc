"""The report compares every model, writes the page, and stops for no tracker."""

import pytest

from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json, write_table
from pipeline.stages import report
from pipeline.stages.report import Params, run
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
    calls = []
    monkeypatch.setattr(report.page, "write_page", lambda *arguments: calls.append(("page", list(arguments[1]))))
    monkeypatch.setattr(report, "publish", lambda *folders: calls.append(("publish", [folder.name for folder in folders])))
    return tmp_path, calls


def run_in(root):
    run(PARAMS, root / "models", root / "results", root / "metrics", root / "report", root / "metrics" / "comparison.json")
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
    assert project[1] == [("page", ["baseline", "finetuned", "frozen"]), ("publish", ["models", "results", "metrics"])]


def test_a_tracker_that_is_away_does_not_stop_the_report(project, monkeypatch, capsys):
    def refuse(*folders):
        raise PipelineError("MLflow is away")

    monkeypatch.setattr(report, "publish", refuse)
    assert "finetuned" in run_in(project[0])
    assert capsys.readouterr().err == "MLflow is away\n"
