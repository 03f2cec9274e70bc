"""Other forms of a model: the same outputs, nearly the same numbers, the facts of the model; nothing reports home, nothing is a pickle."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.networks.artifact import read_facts, verify_model
from pipeline.networks.classifier import Classifier, WithProbs, load_backbone, save_classifier
from pipeline.networks.forms import make_form, open_form
from pipeline.serving.predictor import open_model
from tests.checkout import ROOT, traces, type_in, watched
from tests.stored import SIZE, conv_graph, linear_graph, write_model

OUTPUTS = ["probs", "unfamiliarity", "features", "feature_map"]


def draw_pixels(count, low=0, high=256):
    return np.random.default_rng(count).integers(low, high, (count, SIZE, SIZE, 3), dtype=np.uint8)


def make(kind, model, folder, pixels=None):
    """Make a form in a new folder, and open it."""
    folder.mkdir()
    facts = read_facts(model)
    make_form(kind, model, Path("nowhere"), facts, lambda: draw_pixels(32) if pixels is None else pixels, folder)
    return open_form(kind, folder, facts, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "small", graph=conv_graph(SIZE, 3))


@pytest.mark.parametrize(("kind", "tolerance"), [("fp16", 2e-3), ("int8", 0.05), ("openvino", 2e-3)])
def test_a_form_has_the_outputs_of_its_model_and_nearly_its_answers_at_any_batch_size(kind, tolerance, model, tmp_path):
    form, predictor = make(kind, model, tmp_path / "form"), open_model(model, 1)
    assert sorted(form.outputs) == sorted(OUTPUTS)
    assert form.preprocessing == predictor.preprocessing
    for count in (1, 5):
        pixels = draw_pixels(count)
        expected, found = predictor.run(pixels, *OUTPUTS[1:]), form.run(pixels)
        assert np.abs(form.predict_pixels(pixels) - expected.probs).max() <= tolerance
        for name in OUTPUTS:
            wanted = getattr(expected, name)
            assert (found[name].dtype, found[name].shape) == (np.float32, wanted.shape)
            assert np.abs(found[name] - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_an_onnx_form_is_a_model_folder_with_the_facts_of_its_model_and_one_of_its_own(kind, model, tmp_path):
    make(kind, model, tmp_path / "form")
    assert verify_model(tmp_path / "form") == sha256_of_file(tmp_path / "form/model.onnx")
    own, facts = open_model(tmp_path / "form", 1).facts, open_model(model, 1).facts
    assert own == {**facts, "form": kind, "exported_from": sha256_of_file(model / "model.onnx")}
    assert sorted(path.name for path in (tmp_path / "form").iterdir()) == ["history.csv", "model.json", "model.onnx"]
    assert str(tmp_path).encode() not in (tmp_path / "form/model.onnx").read_bytes()


def test_weights_are_16_or_8_bits_before_the_features_and_32_after_them(model, tmp_path):
    types = {}
    for kind in ("fp16", "int8"):
        make(kind, model, tmp_path / kind)
        stored = onnx.load(tmp_path / kind / "model.onnx").graph.initializer
        types[kind] = {
            len(tensor.dims): onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in stored if len(tensor.dims) in (2, 4)
        }
    assert types == {"fp16": {4: "FLOAT16", 2: "FLOAT"}, "int8": {4: "INT8", 2: "FLOAT"}}


def test_int8_takes_the_range_of_activations_from_the_pictures_that_it_is_given(model, tmp_path):
    bright = draw_pixels(4, 200)
    expected = open_model(model, 1).run(bright, "features").features
    errors = [
        np.abs(make("int8", model, tmp_path / name, pixels).run(bright)["features"] - expected).max()
        for name, pixels in {"bright": draw_pixels(16, 200), "dark": draw_pixels(16, 0, 20)}.items()
    ]
    assert errors[0] < 0.1 * errors[1]  # beyond the range that dark pictures have, all is clipped


def test_fp16_of_a_graph_without_features_is_made_from_all_of_it(tmp_path):
    model = write_model(tmp_path / "old", graph=linear_graph(SIZE, 3))
    pixels = draw_pixels(3)
    assert np.abs(make("fp16", model, tmp_path / "form").predict_pixels(pixels) - open_model(model, 1).predict_pixels(pixels)).max() < 2e-3


def test_a_model_of_two_gigabytes_is_refused_where_the_converter_cannot_take_it(tmp_path):
    model = write_model(tmp_path / "large")
    (model / "model.onnx.data").touch()
    with pytest.raises(
        PipelineError, match=r"large: has 2 GB of weights or more, which ONNX Runtime cannot convert to int8; export openvino"
    ):
        make("int8", model, tmp_path / "form")


def test_openvino_stores_the_facts_in_its_file_and_model_json_the_sums_of_both_files(model, tmp_path):
    make("openvino", model, tmp_path / "form")
    import openvino  # after `make`, which silences it

    facts = read_facts(tmp_path / "form")
    assert facts["model_sha256"] == sha256_of_file(tmp_path / "form/model.xml")
    assert facts["data_sha256"] == sha256_of_file(tmp_path / "form/model.bin")
    stored = openvino.Core().read_model(tmp_path / "form/model.xml").get_rt_info(["transfer_pipeline"]).astype(str)
    assert json.loads(stored) == {key: value for key, value in facts.items() if key not in ("model_sha256", "data_sha256")}


def test_openvino_reports_nothing_home_and_leaves_no_file_there(model, tmp_path):
    code = f"""
from pathlib import Path
from pipeline.networks.artifact import read_facts
from pipeline.networks.forms import make_form, open_form
model, folder = Path({str(model)!r}), Path("form")
folder.mkdir()
make_form("openvino", model, Path(), read_facts(model), list, folder)
print(open_form("openvino", folder, read_facts(model), 1).outputs)
"""
    assert "probs" in type_in(tmp_path, sys.executable, "-c", code, **watched(tmp_path / "user", ROOT))
    assert traces(tmp_path / "user") == []


@pytest.fixture(scope="module")
def program(folder_of, tmp_path_factory):
    """A classifier of torch, and the folder of its form pt2."""
    backbone, root = folder_of("test_resnet"), tmp_path_factory.mktemp("torch")
    body, num_features = load_backbone(backbone)
    torch.manual_seed(0)
    classifier = Classifier(body, num_features, 2).eval()
    save_classifier(classifier, root / "model.safetensors")
    facts = {"class_names": ["ants", "bees"], "temperature": 2.0, "model_sha256": "0" * 64}
    facts["preprocessing"] = {"image_size": 64, "crop": 1.0, "interpolation": "bicubic"}
    (root / "form").mkdir()
    make_form("pt2", root, backbone, facts, list, root / "form")
    return WithProbs(classifier, 2.0), root / "form", facts


def test_pt2_answers_as_torch_does_at_any_batch_size_and_is_loaded_without_a_pickle(program, monkeypatch):
    network, folder, facts = program

    def refuse(*_, **__):
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(torch, "load", refuse)
    threads = torch.get_num_threads()
    form = open_form("pt2", folder, facts, threads)
    assert form.outputs[:2] == ["probs", "features"]
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        with torch.no_grad():
            probs, features = (tensor.numpy() for tensor in network(torch.from_numpy(pixels)))
        found = form.run(pixels)
        np.testing.assert_allclose(found["probs"], probs, atol=1e-5)
        np.testing.assert_allclose(found["features"], features, atol=1e-4)


def test_pt2_names_no_folder_of_this_machine_and_stores_the_facts(program):
    _, folder, facts = program
    content = (folder / "model.pt2").read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content
    extra = {"transfer_pipeline.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    stored = json.loads(extra["transfer_pipeline.json"])
    assert stored["class_names"] == facts["class_names"]
    assert stored["exported_from"] == "0" * 64
    assert read_facts(folder)["model_sha256"] == sha256_of_file(folder / "model.pt2")
