"""What a user does in a clone in which the pipeline ran: run again, change a line, compare, publish, verify."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.files import read_table, sha256_of_file
from pipeline.networks.classifier import WithProbs, load_classifier
from pipeline.pictures.manifest import read_manifest
from pipeline.serving.predictor import Predictor
from tests.browsers import status_of
from tests.checkout import set_params, traces, type_in, user_environment, watched
from tests.repro import Repro, read_lock, stages_run

pytestmark = pytest.mark.e2e

CHECK_LOGGED_MODEL = """
import csv, sys
import mlflow, numpy, pandas
assert not any(name.split(".")[0] == "pipeline" for name in sys.modules)
rows = list(csv.DictReader(open(sys.argv[3])))
paths = {row["image_id"]: row["path"] for row in csv.DictReader(open(sys.argv[4]))}
model = mlflow.pyfunc.load_model(sys.argv[2])
answers = model.predict(pandas.DataFrame({"picture": [open(f"{sys.argv[5]}/{paths[row['image_id']]}", "rb").read() for row in rows]}))
assert list(answers["predicted"]) == [row["predicted"] for row in rows]
probs = numpy.load(sys.argv[3].replace(".csv", ".npy"))
numpy.testing.assert_allclose(answers["probabilities"].tolist(), probs, atol=1e-4)
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


@pytest.fixture(scope="module")
def ran(copy_of_digits):
    """A copy of the clone in which the pipeline ran: each test leaves its outs as they are."""
    return copy_of_digits()


@pytest.fixture(scope="module")
def changed(copy_of_digits):
    """Another, after fine-tuning for one epoch instead of three; and what that printed."""
    folder = copy_of_digits()
    set_params(folder, {"models.finetuned.epochs": 1})
    return folder, type_in(folder, "dvc", "repro")


def logged_model(folder, name):
    """The folder in which MLflow keeps a model."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        (location,) = database.execute("select artifact_location from logged_models where name = ?", (name,)).fetchone()
    return Path(location)


def all_rows(folder):
    """Every row of the tables in which MLflow keeps runs and what was logged to them."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        return {
            table: sorted(map(repr, database.execute(f"select * from {table}")))
            for table in ("runs", "metrics", "latest_metrics", "params", "tags", "logged_models")
        }


def test_the_first_run_runs_every_stage(all_stages):
    prepared = ["backbone", "check_names", "download", "embed", "split"]
    trained = ["train@finetuned", "train_baseline", "evaluate@finetuned", "evaluate_baseline@baseline", "report"]
    assert sorted(all_stages) == sorted(prepared + trained)


def test_a_second_run_runs_nothing(ran):
    assert stages_run(type_in(ran, "dvc", "repro")) == []


def test_a_run_leaves_nothing_that_git_would_add(ran):
    assert type_in(ran, "git", "status", "--porcelain", "--untracked-files") == ""
    committed = type_in(ran, "git", "diff", "--name-only", "HEAD~1").split()
    assert set(committed) <= {"dvc.lock", *(f"metrics/{name}.json" for name in ("baseline", "finetuned", "comparison"))}


def test_a_run_leaves_nothing_outside_of_the_project_and_reaches_for_no_machine(digits):
    assert traces(digits[0].parent / "user") == []


def test_another_number_of_epochs_reruns_that_stage_and_what_follows_it_alone(changed):
    assert stages_run(changed[1]) == ["check_names", "train@finetuned", "evaluate@finetuned", "report"]


def test_dvc_lays_the_curves_and_matrices_of_two_revisions_side_by_side(changed):
    folder = changed[0]
    type_in(folder, "dvc", "plots", "diff", "HEAD", "-o", "plots")
    page = (folder / "plots/index.html").read_text()
    for title in ("fine-tuning: loss", "finetuned: confusion matrix"):
        (plot,) = [plot for plot in re.findall(r"var spec = ({.*});", page) if f'"{title}"' in plot]
        assert {row["rev"] for row in json.loads(plot)["data"]["values"]} == {"HEAD", "workspace"}
    drawn = [path.name for path in (folder / "plots/static").iterdir()]
    assert {name.partition("_")[0] for name in drawn} == {"HEAD", "workspace"}


def test_dvc_lists_experiments_in_120_columns(changed):
    listed = type_in(changed[0], "dvc", "exp", "show", "--only-changed", "--drop", r".*/|^(models|results)$", COLUMNS="400")
    assert "epochs" in listed
    assert max(map(len, listed.splitlines())) <= 120


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("training/head.py", ["embed", "train_baseline"]),
        pytest.param("training/loop.py", ["train_baseline", "train@finetuned"], marks=pytest.mark.slow),  # both import it or its neighbours
    ],
)
def test_a_changed_comment_changes_no_out_and_no_run_of_mlflow(changed, module, stages):
    folder = changed[0]
    outs, rows = {name: stage["outs"] for name, stage in read_lock(folder).items()}, all_rows(folder)
    path = folder / "pipeline" / module
    path.write_text(f"# a comment\n{path.read_text()}# another\n")
    assert stages_run(type_in(folder, "dvc", "repro")) == stages
    assert {name: stage["outs"] for name, stage in read_lock(folder).items()} == outs
    assert all_rows(folder) == rows


def test_a_line_of_params_is_one_more_model_and_reruns_no_other(changed):
    set_params(changed[0], {"models.partial": {"regime": "partial", "stages": 1}})
    status = json.loads(type_in(changed[0], "dvc", "status", "--json"))
    assert sorted(status) == ["check_names", "evaluate@partial", "report", "train@partial"]


@pytest.mark.slow
def test_one_more_model_joins_the_comparison_and_mlflow(changed):
    folder = changed[0]
    assert stages_run(type_in(folder, "dvc", "repro")) == ["check_names", "train@partial", "evaluate@partial", "report"]
    comparison = json.loads((folder / "metrics/comparison.json").read_text())
    assert set(comparison["models"]) == {"baseline", "finetuned", "partial"}
    assert set(comparison["differences"]) == {"finetuned", "partial"}
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select status from runs where name = 'partial'").fetchall() == [("FINISHED",)]


@pytest.mark.parametrize(("name", "removed"), [("older.v1", "models/older.v1"), ("link/docs", "docs")])
def test_a_bare_dvc_repro_removes_no_folder_that_a_forbidden_name_leads_to(copy_of_digits, name, removed):
    folder = copy_of_digits()
    (folder / "models/link").symlink_to(folder)
    (folder / removed).mkdir(exist_ok=True)
    (folder / removed / "mine.txt").write_text("not DVC's")
    set_params(folder, {"models": {name: {"regime": "partial"}}})
    output = type_in(folder, "dvc", "repro", code=255)
    assert f"params.yaml: models: {name!r} cannot be a name; " in output
    assert stages_run(output) == ["check_names"]
    assert (folder / removed / "mine.txt").is_file()


def test_mlflow_holds_a_run_a_model_with_the_numbers_of_the_metrics_files(digits):
    runs = runs_of(digits[0])
    assert sorted(runs) == ["baseline", "finetuned"]
    for name, metrics in runs.items():
        scores = json.loads((digits[0] / "metrics/comparison.json").read_text())["models"][name]
        figures = ("top1_accuracy", "balanced_accuracy", "log_loss", "ece")
        names = [f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
        assert {name: metrics[f"test_{name}"] for name in names} == {name: scores[name] for name in names}


def test_the_logged_model_answers_like_the_stored_one_where_this_project_is_not_installed(digits, tmp_path):
    folder, name = digits[0], "finetuned"
    script = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    script += "sys.path = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p]\n" + CHECK_LOGGED_MODEL
    type_in(tmp_path, sys.executable, "-c", script, "", str(logged_model(folder, name)), str(folder / f"results/{name}/predictions.csv"),
            str(folder / "data/manifest.csv"), str(folder / "data/splits/test"), str(folder / "pipeline"),
            **watched(tmp_path / "user", tmp_path), MLFLOW_DISABLE_TELEMETRY="true")  # fmt: skip
    assert traces(tmp_path / "user") == []


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_torch_and_predict_answer_each_test_picture_as_the_predictions_say(ran, tmp_path, name):
    folder, answers = ran, tmp_path / "answers.csv"
    rows = read_table(folder / f"results/{name}/predictions.csv")
    probs = np.load(folder / f"results/{name}/predictions.npy", allow_pickle=False)
    wanted = {row["image_id"]: each for row, each in zip(rows, probs, strict=True)}
    pictures = {
        f"data/splits/test/{picture.path}": picture.image_id for picture in read_manifest(folder / "data/manifest.csv").split("test")
    }
    user = watched(tmp_path / "user", folder)
    type_in(folder, "pipeline", "predict", "data/splits/test", "--model", name, "--output", str(answers), **user)
    assert traces(tmp_path / "user") == []
    answered = {pictures[row["path"]]: row for row in read_table(answers)}
    assert answered.keys() == wanted.keys()

    predictor = Predictor.load(folder / f"models/{name}/model.onnx", 2)
    classifier = load_classifier(folder / "models/backbone", folder / f"models/{name}", len(predictor.class_names))
    squares = np.stack([predictor.read(folder / path) for path in pictures])
    with torch.inference_mode():
        by_torch = WithProbs(classifier, predictor.facts["temperature"])(torch.from_numpy(squares))[0].numpy()
    for image_id, of_torch in zip(pictures.values(), by_torch, strict=True):
        by_command = [float(answered[image_id][f"prob_{label}"]) for label in predictor.class_names]
        np.testing.assert_allclose([by_command, of_torch], [wanted[image_id]] * 2, atol=1e-4)


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_logged_model_is_the_stored_file(digits, name):
    stored = json.loads((digits[0] / f"models/{name}/model.json").read_text())["model_sha256"]
    assert [sha256_of_file(path) for path in logged_model(digits[0], name).rglob("model.onnx")] == [stored]


def test_dvc_compares_metrics_params_and_plots(ran):
    assert "top1_accuracy" in type_in(ran, "dvc", "metrics", "show")
    type_in(ran, "dvc", "params", "diff")
    type_in(ran, "dvc", "plots", "show", "-o", "plots")
    assert (ran / "plots/index.html").is_file()


def test_verify_agrees(ran):
    assert type_in(ran, "pipeline", "verify").count("scored, stored and described alike") == 2


@pytest.mark.slow
def test_the_page_of_mlflow_is_served_to_this_machine_alone(ran):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(["pipeline", "ui", "--port", address.rpartition(":")[2]], cwd=ran, env=user_environment(ran), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert f" {address} " in server.stdout.readline()
        assert status_of(f"{address}/health") == 200
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        server.stdout.close()


@pytest.mark.slow
def test_a_deleted_database_is_made_again_from_the_files_and_twice_changes_nothing(ran):
    before = runs_of(ran)
    (ran / "mlflow.db").unlink()
    assert type_in(ran, "pipeline", "publish").count("published as run") == 2
    assert runs_of(ran) == before
    assert type_in(ran, "pipeline", "publish") == "MLflow is up to date\n"
    assert runs_of(ran) == before


def pictures_embedded(output):
    """How many pictures the stage `embed` ran the backbone over, and how many it found in its cache; none if it did not run."""
    found = re.search(r"(\d+) pictures? embedded.*?(\d+) .*cache", output)
    if found is None:
        assert "embed" not in stages_run(output)
        return 0, 0
    return int(found[1]), int(found[2])


def dealt(folder):
    """The sums of the pictures of train and val."""
    manifest = read_manifest(folder / "data/manifest.csv")
    return {picture.sha256 for picture in (*manifest.train, *manifest.val)}


@pytest.mark.slow
def test_another_seed_with_the_same_split_embeds_nothing_and_another_split_only_what_was_never_embedded(copy_of_digits):
    folder = copy_of_digits()
    before = dealt(folder)
    set_params(folder, {"seed": 1, "split.seed": 0})
    code, output = Repro(folder, "embed", "train_baseline").end()
    assert (code, "train_baseline" in stages_run(output)) == (0, True)
    assert (pictures_embedded(output)[0], dealt(folder)) == (0, before)

    set_params(folder, {"split.seed": None})
    code, output = Repro(folder, "embed").end()
    new = len(dealt(folder) - before)
    assert (code, pictures_embedded(output), new > 0) == (0, (new, len(dealt(folder)) - new), True)

    set_params(folder, {"split.seed": 2})
    shutil.rmtree(folder / ".dvc/cache/runs")
    dealt_twice = dealt(folder) | before
    code, output = Repro(folder, "embed").end()
    new = len(dealt(folder) - dealt_twice)
    assert (code, pictures_embedded(output)) == (0, (new, len(dealt(folder)) - new))
