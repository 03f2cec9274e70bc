"""A project with a test split of generated pictures, and stored models with their answers on it, as `evaluate` leaves them. No training."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core.files import sha256_of_file, write_json
from pipeline.evaluation.answers import read_answers, write_predictions, write_probs
from pipeline.pictures.manifest import Picture, read_manifest, record_of, sha256_of_pictures, write_manifest
from pipeline.serving.predictor import Predictor
from tests.stored import write_model

MANIFEST = Path("data/manifest.csv")
NAMES = ("ants", "bees", "wasps")


def write_test_pictures(numbers, labels=None):
    """Write the test split and the manifest. Picture n has the class n modulo 3, or its label; three pictures are a group."""
    pictures = []
    for number in numbers:
        label = (labels or {}).get(number, NAMES[number % 3])
        path = Path(f"data/splits/test/{label}/{number:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        name = f"{label}/{path.name}"
        pictures.append(Picture(name, name, sha256_of_file(path), label, "test", f"group {number // 3}", 8, 8))
    write_manifest(MANIFEST, pictures)
    return read_manifest(MANIFEST).pictures


def write_scored(name, seed=0, names=NAMES, learned=(), graph=None):
    """Write models/<name> and results/<name>: its answers on the test pictures. Returns the sha256 of model.onnx."""
    pictures = read_manifest(MANIFEST).pictures
    folder, results = Path("models") / name, Path("results") / name
    write_model(folder, names, seed=seed, learned=record_of(learned), graph=graph)
    results.mkdir(parents=True)
    probs = Predictor.load(folder / "model.onnx", 1).predict([picture.source(Path("data/splits/test")) for picture in pictures])
    write_probs(results / "predictions.npy", [probs], probs.shape)
    answers = read_answers(np.array([names.index(picture.label) for picture in pictures]), probs)
    write_predictions(results / "predictions.csv", pictures, answers, names)
    sha256 = sha256_of_file(folder / "model.onnx")
    tested = {"model_sha256": sha256, "test_sha256": sha256_of_pictures(pictures), "size": {"megabytes": float(len(name))}}
    write_json(results / "scores.json", tested)
    return sha256


def make_scored(folder, patch):
    """Let an empty folder be the current project, with DVC but without git: 12 test pictures and the model `own`. Returns its sha256."""
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    (folder / "params.yaml").write_text("threads: 1\nmodels: {own: {}, next: {}}\n")
    write_test_pictures(range(12))
    return write_scored("own")
