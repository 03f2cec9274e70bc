"""A small project whose model answers with features: fields of the picture."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pipeline.core.files import sha256_of_file
from pipeline.drift.reference import REFERENCE, write_reference
from pipeline.networks.artifact import write_facts
from pipeline.pictures.images import decode
from pipeline.pictures.inspection import brightness_and_sharpness
from pipeline.pictures.manifest import Picture
from pipeline.serving.predictor import open_model
from tests.stored import SIZE, linear_graph

NAMES = ("ants", "bees", "wasps")


def draw(seed, light=100, noise=60):
    """A picture of noise."""
    pixels = np.random.default_rng(seed).normal(light, noise, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_pictures(folder, seeds, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        draw(seed, **changed).save(folder / f"{seed:04d}.png")
    return sorted(folder.glob("*.png"))


def write_featured(folder, seed=0):
    """Write a model folder whose features are the pixels. Returns its sha256."""
    folder.mkdir(parents=True)
    model = linear_graph(SIZE, len(NAMES), seed)
    model.graph.node.append(helper.make_node("Identity", ["row"], ["features"]))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", SIZE * SIZE * 3]))
    preprocessing = {"image_size": SIZE, "crop": 1.0, "interpolation": "bicubic"}
    facts = {"model": folder.name, "class_names": list(NAMES), "preprocessing": preprocessing, "learned": ""}
    write_facts(folder, model, facts, [{"epoch": 0, "val_loss": 0.5}])
    return sha256_of_file(folder / "model.onnx")


def listed(paths):
    """The rows of the manifest for these test pictures."""
    rows = []
    for path in paths:
        image = decode(path)
        light, detail = brightness_and_sharpness(image)
        rows.append(Picture(path.name, path.name, "0" * 64, "ants", "test", path.name, *image.size, brightness=light, sharpness=detail))
    return rows


def label_by_model(folder, paths):
    """Labels of which nine in ten are what the model predicts."""
    predicted = open_model(folder, 1).predict(paths).argmax(axis=1)
    return np.where(np.arange(len(paths)) % 10 == 0, (predicted + 1) % len(NAMES), predicted)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with the model `own`, its reference of 200 pictures, and folders of new pictures."""
    root = tmp_path_factory.mktemp("project")
    sha256 = write_featured(root / "models/own")
    tested = write_pictures(root / "tested", range(200))
    (root / "results/own").mkdir(parents=True)
    labels = label_by_model(root / "models/own", tested)
    predictor = open_model(root / "models/own", 1)
    outputs = predictor.run(np.stack([predictor.read(path) for path in tested]), "features")
    write_reference(root / "results/own", (sha256, NAMES), listed(tested), outputs, labels, np.arange(200))
    assert (root / "results/own" / REFERENCE).is_file()
    (root / "params.yaml").write_text("threads: 1\nmodels: {own: {}}\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_pictures(root / "same", range(1000, 1150))
    write_pictures(root / "darker", range(2000, 2150), light=70)
    write_pictures(root / "few", range(3000, 3015))
    return root


@pytest.fixture
def project(made, monkeypatch):
    """The project as the current folder, without a server of MLflow."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("DVC_ROOT", str(made))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (made / ".cache/drift/looks.json").unlink(missing_ok=True)
    return made
