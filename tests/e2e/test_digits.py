"""What a user does in a fresh clone with the default data: run, run again, change a line, compare, publish."""

import json
import re
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.files import read_table, sha256_of_file
from pipeline.networks.classifier import WithProbs, load_classifier
from pipeline.pictures.manifest import read_manifest
from pipeline.serving.predictor import Predictor
from tests.e2e.conftest import stages_run

pytestmark = pytest.mark.e2e

CHECK_LOGGED_MODEL = """
import csv, sys
import mlflow, pandas
assert not any(name.split(".")[0] == "pipeline" for name in sys.modules)
rows = list(csv.DictReader(open(sys.argv[3])))
paths = {row["image_id"]: row["path"] for row in csv.DictReader(open(sys.argv[4]))}
model = mlflow.pyfunc.load_model(sys.argv[2])
answers = model.predict(pandas.DataFrame({"picture": [open(f"{sys.argv[5]}/{paths[row['image_id']]}", "rb").read() for row in rows]}))
assert list(answers["predicted"]) == [row["predicted"] for row in rows]
classes = [name.removeprefix("prob_") for name in rows[0] if name.startswith("prob_")]
for row, probs in zip(rows, answers["probabilities"]):
    assert all(abs(float(row[f"prob_{name}"]) - prob) < 1e-4 for name, prob in zip(classes, probs))
import pipeline
assert not pipeline.__file__.startswith(sys.argv[6]), pipeline.__file__
"""


def runs_of(folder) -> dict[str, dict[str, float]]:
    """The metrics of each active run of a clone's database; a metric with two points in it fails the caller."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs where lifecycle_stage = 'active'").fetchall()
        found = {}
        for run_id, name, status in runs:
            assert (name in found, status) == (False, "FINISHED")
            points = database.execute("select key, step, value from metrics where run_uuid = ?", (run_id,)).fetchall()
            assert len(points) == len({(key, step) for key, step, _ in points})
            found[name] = {key: value for key, step, value in points}
        logged = database.execute("select count(*) from logged_models where lifecycle_stage = 'active'").fetchone()[0]
        assert logged == len(runs)
    return found


def test_the_default_run_reaches_what_the_readme_promises(digits):
    for name, least in (("baseline", 0.90), ("finetuned", 0.97)):
        assert json.loads((digits[0] / f"metrics/{name}.json").read_text())[name]["top1_accuracy"] >= least


def test_a_second_run_runs_nothing(digits, type_in):
    assert stages_run(type_in(digits[0], "dvc", "repro")) == []


def test_a_clean_checkout_with_its_outs_is_clean_for_git(digits, type_in):
    changed = type_in(digits[0], "git", "status", "--porcelain").split("\n")
    assert {line[3:] for line in changed if line} <= {
        "dvc.lock",
        *(f"metrics/{name}.json" for name in ("baseline", "finetuned", "comparison")),
    }


def test_another_number_of_epochs_reruns_that_stage_and_what_follows_it_alone(short, type_in):
    assert stages_run(short[1]) == ["train@finetuned", "evaluate@finetuned", "report"]


def test_dvc_lays_the_curves_and_matrices_of_two_revisions_side_by_side(short, type_in):
    folder = short[0]
    type_in(folder, "dvc", "plots", "diff", "HEAD", "-o", "plots")
    page = (folder / "plots/index.html").read_text()
    for title in ("fine-tuning: loss", "finetuned: confusion matrix"):
        (plot,) = [plot for plot in re.findall(r"var spec = ({.*});", page) if f'"{title}"' in plot]
        assert {row["rev"] for row in json.loads(plot)["data"]["values"]} == {"HEAD", "workspace"}
    drawn = [path.name for path in (folder / "plots/static").iterdir()]
    assert {name.partition("_")[0] for name in drawn} == {"HEAD", "workspace"}


def test_dvc_lists_experiments_in_120_columns(short, type_in):
    listed = type_in(short[0], "dvc", "exp", "show", "--only-changed", "--drop", r".*/|^(models|results)$", COLUMNS="400")
    assert "epochs" in listed
    assert max(map(len, listed.splitlines())) <= 120


def test_an_edited_training_loop_reruns_that_stage_and_what_follows_it_alone(short, type_in):
    with (short[0] / "pipeline/training/finetune.py").open("a") as loop:
        loop.write("# a changed line\n")
    assert stages_run(type_in(short[0], "dvc", "repro")) == ["train@finetuned", "evaluate@finetuned", "report"]


def test_a_line_of_params_is_one_more_model_in_the_comparison_and_reruns_no_other(short, type_in):
    params = short[0] / "params.yaml"
    params.write_text(params.read_text().replace("models:  ", "models:\n  partial: {regime: partial, stages: 1}  "))
    assert stages_run(type_in(short[0], "dvc", "repro")) == ["train@partial", "evaluate@partial", "report"]
    comparison = json.loads((short[0] / "metrics/comparison.json").read_text())
    assert set(comparison["models"]) == {"baseline", "finetuned", "partial"}
    assert set(comparison["differences"]) == {"finetuned", "partial"}
    with sqlite3.connect(short[0] / "mlflow.db") as database:
        assert database.execute("select status from runs where name = 'partial'").fetchall() == [("FINISHED",)]


def test_mlflow_holds_a_run_a_model_with_the_numbers_of_the_metrics_files(digits):
    runs = runs_of(digits[0])
    assert sorted(runs) == ["baseline", "finetuned"]
    for name, metrics in runs.items():
        scores = json.loads((digits[0] / "metrics/comparison.json").read_text())["models"][name]
        figures = ("top1_accuracy", "balanced_accuracy", "log_loss", "ece")
        names = [f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
        assert {name: metrics[f"test_{name}"] for name in names} == {name: scores[name] for name in names}


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_logged_model_answers_like_the_stored_one_where_this_project_is_not_installed(digits, type_in, tmp_path, name):
    folder = digits[0]
    with sqlite3.connect(folder / "mlflow.db") as database:
        (location,) = database.execute("select artifact_location from logged_models where name = ?", (name,)).fetchone()
    script = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    script += "sys.path = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p]\n" + CHECK_LOGGED_MODEL
    type_in(tmp_path, sys.executable, "-c", script, "", location, str(folder / f"results/{name}/predictions.csv"),
            str(folder / "data/manifest.csv"), str(folder / "data/splits/test"), str(folder / "pipeline"))  # fmt: skip


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_torch_and_predict_answer_each_test_picture_as_the_predictions_say(digits, type_in, tmp_path, name):
    folder, answers = digits[0], tmp_path / "answers.csv"
    wanted = {row["image_id"]: row for row in read_table(folder / f"results/{name}/predictions.csv")}
    pictures = {f"data/splits/test/{picture.path}": picture.image_id for picture in read_manifest(folder / "data/manifest.csv", "test")}
    type_in(folder, "pipeline", "predict", "data/splits/test", "--model", name, "--output", str(answers))
    columns = [column for column in next(iter(wanted.values())) if column.startswith("prob_")]
    told = {pictures[row["path"]]: row for row in read_table(answers)}
    assert told.keys() == wanted.keys()

    predictor = Predictor.load(folder / f"models/{name}/model.onnx", 2)
    classifier = load_classifier(folder / "models/backbone", folder / f"models/{name}", len(predictor.class_names))
    squares = np.stack([predictor.read(folder / path) for path in pictures])
    with torch.inference_mode():
        by_torch = WithProbs(classifier, predictor.facts["temperature"])(torch.from_numpy(squares)).numpy()
    for image_id, probs in zip(pictures.values(), by_torch, strict=True):
        for row in (told[image_id], dict(zip(columns, probs, strict=True))):
            assert [float(row[column]) for column in columns] == pytest.approx(
                [float(wanted[image_id][column]) for column in columns], abs=1e-4
            )


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_logged_model_is_the_stored_file(digits, name):
    folder = digits[0]
    stored = json.loads((folder / f"models/{name}/model.json").read_text())["model_sha256"]
    with sqlite3.connect(folder / "mlflow.db") as database:
        (location,) = database.execute("select artifact_location from logged_models where name = ?", (name,)).fetchone()
    assert [sha256_of_file(path) for path in Path(location).rglob("model.onnx")] == [stored]


def test_dvc_compares_metrics_params_and_plots(digits, type_in):
    folder = digits[0]
    type_in(folder, "git", "add", "-A")
    type_in(folder, "git", "commit", "-qm", "ran", "--allow-empty")
    assert "top1_accuracy" in type_in(folder, "dvc", "metrics", "show")
    type_in(folder, "dvc", "metrics", "diff")
    type_in(folder, "dvc", "params", "diff")
    type_in(folder, "dvc", "plots", "show", "-o", "plots")
    assert (folder / "plots/index.html").is_file()


def test_verify_agrees(digits, type_in):
    assert type_in(digits[0], "pipeline", "verify").count("scored, stored and described alike") == 2


def test_a_deleted_database_is_made_again_from_the_files_and_twice_changes_nothing(digits, type_in):
    folder = digits[0]
    before = runs_of(folder)
    (folder / "mlflow.db").unlink()
    assert type_in(folder, "pipeline", "publish").count("published as run") == 2
    assert runs_of(folder) == before
    assert type_in(folder, "pipeline", "publish") == "MLflow is up to date\n"
    assert runs_of(folder) == before


def test_a_second_clone_at_another_path_writes_the_same_bytes_and_adds_no_run(digits, tmp_path, clone, type_in):
    folder, runs = digits[0], runs_of(digits[0])
    other = clone(tmp_path / "another place" / "with a longer name")
    ran = stages_run(type_in(other, "dvc", "repro", "-f", MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}"))
    assert len(ran) == 9
    assert (other / "dvc.lock").read_bytes() == (folder / "dvc.lock").read_bytes()
    assert runs_of(folder) == runs
