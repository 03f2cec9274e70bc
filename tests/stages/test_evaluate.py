"""The stage `evaluate`: the files that it writes for a stored model, and what it refuses."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table, sha256_of, sha256_of_file
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.galleries import TITLES
from pipeline.evaluation.scores import score
from pipeline.pictures.images import Preprocessing
from pipeline.pictures.manifest import Picture, record_of, write_manifest
from pipeline.serving.predictor import Outputs, Predictor
from pipeline.stages.evaluate import Params, run

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


def evaluate(root, names, labels, probs, maps=True, learned=""):
    """Run the stage with a model that gives these answers. Its feature maps, if any, are active in the upper left."""
    (root / "models" / "own").mkdir(parents=True)
    (root / "models" / "own" / "model.onnx").write_bytes(b"model")
    save_file({"head.weight": np.eye(len(names), dtype=np.float32)}, root / "models" / "own" / "model.safetensors")
    (root / "test").mkdir()
    pictures = [
        Picture(f"{number}.png", f"{number}.png", "0" * 64, label, "test", str(number), 8, 8) for number, label in enumerate(labels)
    ]
    for number, picture in enumerate(pictures):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(root / "test" / picture.path)
    unused = Picture("train.png", "train.png", "0" * 64, labels[0], "train", "", 8, 8)  # it has no file
    write_manifest(root / "manifest.csv", [*pictures, unused])
    answers = iter(np.asarray(probs, np.float32))
    features = np.zeros((1, len(names), 2, 2))
    features[:, :, 0, 0] = 1
    fake = SimpleNamespace(
        class_names=names,
        threads=1,
        preprocessing=Preprocessing(8, 1.0, "bicubic"),
        facts={"temperature": 2.0, "size": {"parameters": 10, "gmacs": 0.5}, "learned": learned},
        run=lambda pixels, *others: (
            Outputs(np.zeros((len(pixels), len(names))), feature_map=np.repeat(features, len(pixels), axis=0) if maps else None)
            if others == ("feature_map",)
            else Outputs(np.stack([next(answers) for _ in pixels]))
        ),
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Predictor, "load", lambda path, threads, on_gpu: fake)
        monkeypatch.setenv("DVC_ROOT", str(root))
        run(PARAMS, root / "models" / "own", root / "test", root / "manifest.csv", root / "results", root / "metrics" / "own.json")
    return root


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The files of a model with ten test pictures, seven of which are correct. Tests only read them."""
    return evaluate(tmp_path_factory.mktemp("evaluated"), NAMES, [NAMES[label] for label in LABELS], PROBS)


def test_the_scores_name_the_model_its_bytes_and_its_size(evaluated):
    found = read_json(evaluated / "results" / "scores.json")
    assert found == {
        "model": "own",
        "model_sha256": sha256_of_file(evaluated / "models" / "own" / "model.onnx"),
        "test_pictures": 10,
        "test_groups": 10,
        "test_sha256": sha256_of("\n".join(["0" * 64] * 10).encode()),
        "learned_test_pictures": 0,
        "temperature": 2.0,
        "size": {"megabytes": 0.0, "parameters": 10, "gmacs": 0.5},
        "confidence": 0.9,
        **score(read_answers(LABELS, PROBS), read_answers(LABELS, PROBS, 2.0), PROBS, np.arange(len(LABELS)), NAMES, 0.9, 0),
    }


def test_test_pictures_that_the_model_learned_from_are_counted_and_reported(tmp_path, capsys):
    record = record_of([Picture("a", "a", "0" * 64, "ants", "train", "a", 8, 8)])  # every test picture has this sum
    root = evaluate(tmp_path, NAMES, [NAMES[label] for label in LABELS], PROBS, learned=record)
    assert read_json(root / "results" / "scores.json")["learned_test_pictures"] == 10
    assert "own: learned from 10 of the 10 test pictures" in capsys.readouterr().out


def test_the_metrics_are_what_dvc_compares(evaluated):
    figures = read_json(evaluated / "results" / "scores.json")["figures"]
    test_set = sha256_of("\n".join(["0" * 64] * 10).encode())[:8]
    wanted = {"own": {"top1_accuracy": 0.7, "log_loss": figures["log_loss"]["value"], "test_set": test_set}}
    assert read_json(evaluated / "metrics" / "own.json") == wanted


def test_the_results_are_tables_and_pictures(evaluated):
    plots = ("confusion_matrix", "confusion_matrix_normalised", "coverage", "reliability")
    tables = {f"{name}.csv" for name in ("classes", "predictions", "reliability_before", *plots)}
    pictures = {f"{name}.png" for name in (*plots, *(f"gallery_{kind}" for kind in TITLES))}
    assert {path.name for path in (evaluated / "results").iterdir()} == tables | pictures | {
        "scores.json",
        "galleries.json",
        "predictions.npy",
    }


def test_the_probabilities_are_scored_with_and_without_the_temperature(evaluated):
    stored, before = (read_table(evaluated / "results" / f"{name}.csv") for name in ("reliability", "reliability_before"))
    assert list(stored[0]) == list(before[0])
    # With T = 2 the most confident answers, 0.8 of (0.8, 0.1, 0.1), were 0.64 of (0.64, 0.01, 0.01) before.
    assert [float(rows[-1]["probability"]) for rows in (stored, before)] == pytest.approx([0.8, 0.64 / 0.66], abs=1e-6)


def test_the_speed_is_stored_outside_the_results(evaluated):
    (timing,) = (evaluated / ".cache" / "timings").iterdir()
    assert timing.stem == sha256_of_file(evaluated / "models" / "own" / "model.onnx")
    assert read_json(timing)["pictures_per_second"] > 0


def test_the_matrices_have_a_row_per_true_class(evaluated):
    results = evaluated / "results"
    assert (results / "confusion_matrix.csv").read_text() == "true/predicted,ants,bees,wasps\nants,3,1,0\nbees,1,2,0\nwasps,1,0,2\n"
    normalised = read_table(results / "confusion_matrix_normalised.csv")
    assert normalised[0] == {"true/predicted": "ants", "ants": "0.75", "bees": "0.25", "wasps": "0.0"}


def test_the_predictions_are_in_the_order_of_the_manifest(evaluated):
    rows = read_table(evaluated / "results" / "predictions.csv")
    assert [row["image_id"] for row in rows] == [f"{number}.png" for number in range(10)]
    assert [row["predicted"] for row in rows] == [NAMES[index] for index in PREDICTED]
    np.testing.assert_array_equal(np.load(evaluated / "results" / "predictions.npy", allow_pickle=False), PROBS)


def test_each_picture_of_a_gallery_has_its_map(evaluated):
    pictures = read_json(evaluated / "results" / "galleries.json")["pictures"]
    assert len(pictures) == 10
    assert all(picture["map"] for picture in pictures.values())


def test_evaluating_twice_writes_equal_bytes(evaluated, tmp_path):
    evaluate(tmp_path, NAMES, [NAMES[label] for label in LABELS], PROBS)
    for path in (evaluated / "results").iterdir():
        assert path.read_bytes() == (tmp_path / "results" / path.name).read_bytes(), path.name


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path):
    with pytest.raises(PipelineError, match=re.escape(f"{tmp_path}/models/own:") + ".*'wasps'.*dvc repro"):
        evaluate(tmp_path, ["ants", "bees"], ["ants", "wasps"], [[1, 0], [0, 1]])


def test_unusual_class_names_are_unchanged_and_a_model_without_maps_has_none(tmp_path):
    names = [r"$\frac$", "false", "true"]
    evaluate(tmp_path, names, ["false", "true", "true", names[0]], [[0, 0.9, 0.1], [0, 0.9, 0.1], [0, 0.1, 0.9], [0, 0.2, 0.8]], maps=False)
    with (tmp_path / "results" / "confusion_matrix.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == names
    assert rows[1:] == [[names[0], "0", "0", "1"], ["false", "0", "1", "0"], ["true", "0", "1", "1"]]
    assert not any(picture["map"] for picture in read_json(tmp_path / "results" / "galleries.json")["pictures"].values())


def test_a_single_picture_without_a_mistake_is_enough(tmp_path):
    evaluate(tmp_path, ["ants", "bees"], ["ants"], [[0.9, 0.1]])
    assert read_json(tmp_path / "metrics" / "own.json")["own"]["top1_accuracy"] == 1.0
    assert (tmp_path / "results" / "gallery_mistakes.png").is_file()


def test_neither_evaluate_nor_report_imports_plots_templates_or_statistics_at_the_start():
    code = "import sys, pipeline.stages.evaluate, pipeline.stages.report; print({'matplotlib', 'jinja2', 'scipy.stats'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_it_needs_neither_torch_nor_mlflow(tmp_path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'mlflow', 'pandas', 'sklearn', 'onnx']))\n"
        "from tests.stages.test_evaluate import *; evaluate(Path(sys.argv[1]), NAMES[:2], ['ants'], [[0.9, 0.1]])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[2], check=True)
    assert (tmp_path / "results" / "confusion_matrix.png").is_file()
