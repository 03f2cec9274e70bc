"""`pipeline explain` draws a sheet: each picture beside the map of what speaks for a class."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from tests.stored import write_classifier


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    (root / "params.yaml").write_text("threads: 1\n")
    write_classifier(root, "test_resnet")
    generator = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8)).save(root / "pictures" / name)
    return root


@pytest.fixture(autouse=True)
def project(made, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(made))
    monkeypatch.chdir(made)


def explain(*arguments):
    main(["explain", *map(str, arguments)])


def test_each_picture_is_beside_its_map(tmp_path, capsys):
    explain("pictures", "--output", tmp_path / "sheet.png")
    assert capsys.readouterr().out == f"{tmp_path}/sheet.png\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 + 4 * 188, 44 + 228)  # two pictures and two maps in a row


def test_the_maps_of_two_classes_differ_and_the_same_question_gives_the_same_sheet(tmp_path):
    for name, class_name in (("ants", "ants"), ("bees", "bees"), ("again", "ants")):
        explain("pictures/a.png", "--class", class_name, "--output", tmp_path / f"{name}.png")
    ants, bees, again = ((tmp_path / f"{name}.png").read_bytes() for name in ("ants", "bees", "again"))
    assert ants == again
    assert ants != bees


def test_without_a_class_the_predicted_one_is_explained(tmp_path, made):
    from pipeline.serving.predictor import Predictor

    probs = Predictor.load(made / "models/small/model.onnx", 1).predict([made / "pictures/a.png"])[0]
    explain("pictures/a.png", "--output", tmp_path / "default.png")
    explain("pictures/a.png", "--class", ["ants", "bees"][int(probs.argmax())], "--output", tmp_path / "predicted.png")
    assert (tmp_path / "default.png").read_bytes() == (tmp_path / "predicted.png").read_bytes()


def test_a_broken_picture_is_crossed_out_and_the_others_are_drawn(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    explain(tmp_path / "broken.png", tmp_path / "absent.png", "pictures/a.png", "--output", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 12 + 4 * 188


def test_an_unknown_class_draws_nothing(tmp_path):
    with pytest.raises(SystemExit):
        explain("pictures", "--class", "wasps", "--output", tmp_path / "sheet.png")
    assert os.listdir(tmp_path) == []
