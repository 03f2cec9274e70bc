"""The scores against scikit-learn, their intervals, and the tables and pictures of a stored model's answers."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics as oracle
from PIL import Image

from pipeline.data.images import Preprocessing
from pipeline.data.manifest import Picture, write_manifest
from pipeline.errors import PipelineError
from pipeline.evaluation.statistics import wilson_interval
from pipeline.files import read_json, read_table, sha256_of_file
from pipeline.stages.evaluate import Params, Predictor, run, score, thumbnail

PARAMS = Params(seed=0, threads=1, confidence=0.9)
NAMES = ["ants", "bees", "wasps"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PROBS = np.array(
    [
        [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1],
        [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.6, 0.1, 0.3],
    ],
    dtype=np.float32,
)  # fmt: skip
PREDICTED = PROBS.argmax(axis=1)


@pytest.fixture(scope="module")
def scores():
    return score(LABELS, PROBS, NAMES, PARAMS)


@pytest.mark.parametrize(
    ("figure", "wanted"),
    [
        ("top1_accuracy", oracle.accuracy_score(LABELS, PREDICTED)),
        ("balanced_accuracy", oracle.balanced_accuracy_score(LABELS, PREDICTED)),
        ("log_loss", oracle.log_loss(LABELS, PROBS)),
    ],
)
def test_a_figure_is_scikit_learns(scores, figure, wanted):
    assert scores[figure] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("figure", "column"), [("precision", 0), ("recall", 1), ("f1", 2), ("support", 3)])
def test_a_figure_of_each_class_is_scikit_learns(scores, figure, column):
    wanted = oracle.precision_recall_fscore_support(LABELS, PREDICTED)[column]
    assert [scores["classes"][name][figure] for name in NAMES] == pytest.approx(list(wanted), abs=1e-6)


def test_ece_is_the_one_worked_by_hand(scores):
    # Bins of a fifteenth. 0.8 (3 right): 0.6 off; 0.7 (1 right, 1 wrong): 0.4; 0.6 (3 right, 1 wrong): 0.6; 0.5 (wrong): 0.5.
    assert scores["ece"] == pytest.approx((0.6 + 0.4 + 0.6 + 0.5) / 10, abs=1e-6)


def test_the_accuracys_interval_is_wilsons(scores):
    # 7 of 10 with z = 1.644854: (7 + z²/2 ± z √(2.1 + z²/4)) / (10 + z²)
    z = 1.6448536
    centre, half = (7 + z**2 / 2) / (10 + z**2), z * math.sqrt(2.1 + z**2 / 4) / (10 + z**2)
    assert (scores["top1_accuracy_low"], scores["top1_accuracy_high"]) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_precision_and_recall_have_intervals_over_what_they_are_shares_of(scores):
    bees = scores["classes"]["bees"]  # 2 of 3 answers are right, 2 of 3 pictures recognised
    low, high = wilson_interval(2, 3, 0.9)
    assert (bees["precision_low"], bees["precision_high"]) == pytest.approx((low, high), abs=1e-6)
    assert (bees["recall_low"], bees["recall_high"]) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("figure", ["top1_accuracy", "balanced_accuracy", "log_loss"])
def test_an_interval_holds_its_figure(scores, figure):
    assert scores[f"{figure}_low"] < scores[figure] < scores[f"{figure}_high"]


def test_all_figures_stand_in_their_order(scores):
    intervals = [f"{name}{end}" for name in ("top1_accuracy", "balanced_accuracy", "log_loss") for end in ("", "_low", "_high")]
    assert list(scores) == ["test_pictures", "confidence", *intervals, "ece", "classes"]
    assert (scores["test_pictures"], scores["confidence"]) == (10, 0.9)


def test_scoring_twice_gives_equal_figures(scores):
    assert score(LABELS, PROBS, NAMES, PARAMS) == scores


def test_another_seed_moves_only_bootstrapped_intervals(scores):
    other = score(LABELS, PROBS, NAMES, Params(seed=1, threads=1, confidence=0.9))
    differing = {key for key in scores if key != "classes" and scores[key] != other[key]}
    assert differing <= {f"{name}_{end}" for name in ("balanced_accuracy", "log_loss") for end in ("low", "high")}
    assert differing


def test_a_class_that_is_never_answered_has_no_precision():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    found = score(np.array([0, 0, 1]), probs, ["ants", "bees"], PARAMS)["classes"]["bees"]
    assert [found[f"precision{end}"] for end in ("", "_low", "_high")] == [None, None, None]
    assert (found["recall"], found["f1"], found["support"]) == (0.0, 0.0, 1)


def test_a_class_without_test_pictures_has_no_recall():
    probs = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.1, 0.2]], np.float32)
    found = score(np.array([0, 1, 0]), probs, NAMES, PARAMS)["classes"]["wasps"]
    assert found == {f"{name}{end}": None for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")} | {"support": 0}


# The tables


def make_picture(image_id, label, split="test"):
    return Picture(image_id, image_id, "0" * 64, label, split, image_id, 8, 8)


def evaluate(root, monkeypatch, names, labels, probs):
    """Run the stage with a model that gives these answers."""
    (root / "models" / "own").mkdir(parents=True)
    (root / "models" / "own" / "model.onnx").write_bytes(b"model")
    (root / "test").mkdir()
    pictures = [make_picture(f"{number}.png", label) for number, label in enumerate(labels)]
    for number, picture in enumerate(pictures):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(root / "test" / picture.path)
    write_manifest(root / "manifest.csv", pictures)
    answers = iter(np.asarray(probs, np.float32))
    fake = SimpleNamespace(
        class_names=names,
        preprocessing=Preprocessing(8, 1.0, "bicubic"),
        predict_pixels=lambda pixels: np.stack([next(answers) for _ in pixels]),
    )
    monkeypatch.setattr(Predictor, "load", lambda path, threads: fake)
    run(PARAMS, root / "models" / "own", root / "test", root / "manifest.csv", root / "results", root / "metrics" / "own.json")


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    evaluate(tmp_path, monkeypatch, NAMES, [NAMES[label] for label in LABELS], PROBS)
    return tmp_path


def test_the_metrics_name_the_model_and_its_bytes(evaluated, scores):
    wanted = {"model": "own", "model_sha256": sha256_of_file(evaluated / "models" / "own" / "model.onnx"), **scores}
    assert read_json(evaluated / "metrics" / "own.json") == wanted


def test_the_results_hold_tables_and_pictures(evaluated):
    names = sorted(path.name for path in (evaluated / "results").iterdir())
    assert names == ["confusion_matrix.csv", "confusion_matrix.png", "mistakes.png", "predictions.csv"]


def test_the_matrix_says_which_axis_is_the_truth(evaluated):
    text = (evaluated / "results" / "confusion_matrix.csv").read_text()
    assert text == "true/predicted,ants,bees,wasps\nants,3,1,0\nbees,1,2,0\nwasps,1,0,2\n"


def test_the_predictions_are_in_the_order_of_the_manifest(evaluated):
    rows = read_table(evaluated / "results" / "predictions.csv")
    assert [row["image_id"] for row in rows] == [f"{number}.png" for number in range(10)]
    assert [row["predicted"] for row in rows] == [NAMES[index] for index in PREDICTED]


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PipelineError) as error:
        evaluate(tmp_path, monkeypatch, ["ants", "bees"], ["ants", "wasps"], [[1, 0], [0, 1]])
    assert str(error.value) == f"{tmp_path}/models/own: does not know class 'wasps' of the test pictures; run `dvc repro`"


def test_classes_called_true_and_false_keep_their_rows_and_columns(tmp_path, monkeypatch):
    evaluate(tmp_path, monkeypatch, ["false", "true"], ["false", "true", "true"], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    with (tmp_path / "results" / "confusion_matrix.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["false", "true"]
    assert rows[1:] == [["false", "1", "0"], ["true", "1", "1"]]


def test_dollar_signs_in_class_names_are_no_formula(tmp_path, monkeypatch):
    evaluate(tmp_path, monkeypatch, ["$_$", "ants"], ["$_$", "ants"], [[0.1, 0.9], [0.9, 0.1]])
    assert (tmp_path / "results" / "mistakes.png").is_file()


def test_a_model_without_mistakes_has_its_picture_too(tmp_path, monkeypatch):
    evaluate(tmp_path, monkeypatch, ["ants", "bees"], ["ants", "bees"], [[0.9, 0.1], [0.1, 0.9]])
    assert (tmp_path / "results" / "mistakes.png").is_file()


def test_a_thumbnail_is_small(tmp_path):
    Image.new("RGB", (1000, 500)).save(tmp_path / "a.jpg")
    assert thumbnail(tmp_path / "a.jpg").size == (256, 128)
