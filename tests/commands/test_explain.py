"""`pipeline explain` draws a sheet: each picture beside what spoke for the answer."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.__main__ import main
from pipeline.core.files import sha256_of_file
from pipeline.networks.artifact import write_facts
from pipeline.networks.classifier import Classifier, WithProbs, load_backbone, save_classifier
from pipeline.networks.onnx_file import export_onnx
from pipeline.stages import backbone

PREPROCESSING = {"crop": 1.0, "interpolation": "bicubic"}


def write_convolutional_model(root, network, side=64):
    """A backbone with random weights and a model of two classes on it, for pictures of that side."""
    backbone.run(backbone.Params(seed=0, name=network, weights="none", digest=None), root / "models/backbone")
    body, num_features = load_backbone(root / "models/backbone")
    torch.manual_seed(0)
    classifier = Classifier(body, num_features, 2).eval()
    folder = root / "models/small"
    folder.mkdir()
    save_classifier(classifier, folder / "model.safetensors")
    sums = {"architecture": sha256_of_file(root / "models/backbone/backbone.json")}
    facts = {"class_names": ["ants", "bees"], "preprocessing": {**PREPROCESSING, "image_size": side}, "inputs_sha256": sums}
    write_facts(folder, export_onnx(WithProbs(classifier, 1.0), side, ["probs"]), facts, [{"epoch": 0, "val_loss": 0.5}])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    (root / "params.yaml").write_text("threads: 1\n")
    write_convolutional_model(root, "test_resnet")
    generator = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8)).save(root / "pictures" / name)
    return root


@pytest.fixture
def project(made, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(made))
    monkeypatch.chdir(made)
    return made


def explain(*arguments):
    main(["explain", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        explain(*arguments)
    assert error.value.code == 1
    return capsys.readouterr().err


def test_each_picture_stands_beside_its_map(project, tmp_path, capsys):
    explain("pictures", "--output", tmp_path / "sheet.png")
    assert capsys.readouterr().out == f"{tmp_path}/sheet.png\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 + 4 * 188, 44 + 228)  # two pictures and two maps in a row


def test_the_maps_of_two_classes_differ(project, tmp_path):
    for name in ("ants", "bees"):
        explain("pictures/a.png", "--class", name, "--output", tmp_path / f"{name}.png")
    assert (tmp_path / "ants.png").read_bytes() != (tmp_path / "bees.png").read_bytes()


def test_the_same_picture_gives_the_same_sheet(project, tmp_path):
    for name in ("one", "two"):
        explain("pictures/a.png", "--output", tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_broken_picture_is_crossed_out_and_the_rest_goes_on(project, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    explain(tmp_path / "broken.png", tmp_path / "absent.png", "pictures/a.png", "--output", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 12 + 4 * 188


def test_an_unknown_class_is_refused(project, tmp_path, capsys):
    said = refused(capsys, "pictures", "--class", "wasps", "--output", tmp_path / "sheet.png")
    assert said == "--class wasps: is no class of models/small; its classes are ants, bees\n"
    assert os.listdir(tmp_path) == []


def test_a_network_of_tokens_says_why_not(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("threads: 1\n")
    write_convolutional_model(tmp_path, "test_vit", 160)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    said = refused(capsys, tmp_path / "a.png", "--output", tmp_path / "sheet.png")
    assert said == "test_vit: gives no feature map, as transformers do not; Grad-CAM needs a convolutional network\n"
