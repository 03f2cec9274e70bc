"""The stored model predicts from bytes and paths alike, as its metadata says, and without torch."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.networks.artifact import write_facts
from pipeline.networks.classifier import Backbone, Classifier, WithProbs
from pipeline.networks.onnx_file import export_onnx
from pipeline.pictures.images import BrokenPicture, Preprocessing, read_square
from pipeline.serving.predictor import Predictor

PREPROCESSING = Preprocessing(8, 0.875, "bicubic")


def draw_picture(seed):
    """The bytes of a PNG file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small model: the module of torch, the model folder, and the open predictor."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    module = WithProbs(Classifier(Backbone(network, (0.5,) * 3, (0.5,) * 3), 144, 3), 1.0).eval()
    folder = tmp_path_factory.mktemp("model")
    preprocessing = {"image_size": 8, "crop": 0.875, "interpolation": "bicubic"}
    facts = {"class_names": ["ants", "bees", "Käfer"], "preprocessing": preprocessing}
    write_facts(folder, export_onnx(module, 8, ["probs", "features"]), facts, [{"epoch": 0}])
    return SimpleNamespace(module=module, folder=folder, predictor=Predictor.load(folder / "model.onnx", 1))


def test_the_classes_are_read_in_their_order(stored):
    assert stored.predictor.class_names == ["ants", "bees", "Käfer"]


def test_the_preprocessing_is_read(stored):
    assert stored.predictor.preprocessing == PREPROCESSING


def test_bytes_and_path_of_a_picture_give_the_same_probabilities(stored, tmp_path):
    (tmp_path / "a.png").write_bytes(draw_picture(0))
    first, second = stored.predictor.predict([draw_picture(0), tmp_path / "a.png"])
    np.testing.assert_array_equal(first, second)


def test_probabilities_are_float32_and_sum_to_one(stored):
    probs = stored.predictor.predict([draw_picture(0), draw_picture(1)])
    assert (probs.shape, probs.dtype) == ((2, 3), np.float32)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)


def test_probabilities_are_those_of_torch_on_the_prepared_picture(stored):
    pixels = np.stack([read_square(draw_picture(seed), PREPROCESSING) for seed in (0, 1, 2)])
    with torch.inference_mode():
        wanted = stored.module(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(stored.predictor.predict([draw_picture(seed) for seed in (0, 1, 2)]), wanted, atol=1e-6)


def test_probabilities_are_in_the_order_of_the_pictures(stored):
    forth = stored.predictor.predict([draw_picture(0), draw_picture(1)])
    back = stored.predictor.predict([draw_picture(1), draw_picture(0)])
    np.testing.assert_allclose(forth, back[::-1], atol=1e-6)


def test_prepared_pixels_and_their_picture_give_the_same_probabilities(stored):
    pixels = read_square(draw_picture(0), PREPROCESSING)[None]
    np.testing.assert_array_equal(stored.predictor.predict_pixels(pixels), stored.predictor.predict([draw_picture(0)]))


def test_bytes_that_are_no_picture_are_refused(stored):
    with pytest.raises(BrokenPicture, match=r"^not a picture$"):
        stored.predictor.predict([b"hello"])


def test_it_runs_on_the_cpu_with_the_given_number_of_threads(stored):
    assert stored.predictor.session.get_providers() == ["CPUExecutionProvider"]
    options = Predictor.load(stored.folder / "model.onnx", 2).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_importing_it_imports_no_heavy_library():
    code = "import sys, pipeline.serving.predictor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "torchvision", "timm", "mlflow", "sklearn", "matplotlib", "onnx"} & set(modules) == set()


def test_more_pictures_than_a_batch_keep_their_order(stored):
    pictures = [draw_picture(seed) for seed in range(70)]
    probs = stored.predictor.predict(pictures)
    assert probs.shape == (70, 3)
    np.testing.assert_allclose(probs[[0, 40, 69]], stored.predictor.predict([pictures[number] for number in (0, 40, 69)]), atol=1e-6)
