"""The model folder: the head behind the backbone, the facts in both files, and the check that they agree."""

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.networks import onnx_file
from pipeline.networks.artifact import (
    append_head,
    describe_model,
    golden_fault,
    identity,
    kept_row,
    read_facts,
    verify_model,
    write_facts,
    write_golden,
)
from pipeline.networks.onnx_file import METADATA_KEY, open_session, read_onnx, write_onnx
from pipeline.pictures.images import Preprocessing
from pipeline.training.head import HeadParams

FACTS = {
    "model": "baseline",
    "class_names": ["Ameise", "Bär"],
    "inputs_sha256": {"data": "a", "code": "b"},
    "preprocessing": {"image_size": 4},
}
HARDWARE = {"device": "cpu", "precision": "fp32", "threads": 2}
HISTORY = [{"step": 0, "l2": 0.1, "val_loss": 0.5}, {"step": 1, "l2": 0.2, "val_loss": 0.25}]


def build_backbone():
    """A graph whose three features are the mean red, green and blue of a picture."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["features"], keepdims=0),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes, "backbone", [pixels], [features], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def build_model():
    generator = np.random.default_rng(0)
    return append_head(build_backbone(), generator.normal(size=(2, 3)).astype(np.float32), np.zeros(2, np.float32), 1.0)


@pytest.fixture
def folder(tmp_path):
    """A model folder without weights."""
    write_facts(tmp_path, build_model(), {**FACTS, "hardware": HARDWARE}, HISTORY)
    return tmp_path


def refusal(folder):
    with pytest.raises(PipelineError) as error:
        verify_model(folder)
    return str(error.value)


@pytest.mark.parametrize(("num_classes", "count"), [(2, 1), (5, 7)])
def test_the_head_is_the_softmax_of_a_linear_map(num_classes, count, tmp_path):
    generator = np.random.default_rng(num_classes)
    weight, bias = (generator.normal(size=shape).astype(np.float32) / 30 for shape in ((num_classes, 3), num_classes))
    pixels = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    write_onnx(append_head(build_backbone(), weight, bias, 1.0), tmp_path / "model.onnx")
    (probs,) = open_session(tmp_path / "model.onnx", 1).run(["probs"], {"pixels": pixels})
    logits = pixels.mean(axis=(1, 2)) @ weight.T + bias
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, wanted, atol=1e-5)


def test_golden_answers_agree_with_the_model_that_wrote_them_and_with_no_other(folder):
    write_golden(folder, 1)
    predictor = open_session(folder / "model.onnx", 1)

    def predict(pixels):
        return predictor.run(["probs"], {"pixels": pixels})[0]

    assert golden_fault(folder, predict) is None
    assert "golden answers differ by" in golden_fault(folder, lambda pixels: 1 - predict(pixels))


def test_a_model_that_was_stored_without_golden_answers_has_no_fault(folder):
    assert golden_fault(folder, lambda pixels: pixels) is None


def test_probabilities_are_the_first_output_and_the_features_remain():
    assert [output.name for output in build_model().graph.output] == ["probs", "features"]


def test_a_model_written_twice_has_equal_bytes(tmp_path):
    for name in ("first.onnx", "second.onnx"):
        write_onnx(build_model(), tmp_path / name)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


# The facts


def test_model_json_contains_the_facts_and_the_files_sha256(folder):
    found = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert found == {**FACTS, "hardware": HARDWARE, "model_sha256": sha256_of_file(folder / "model.onnx")}


def test_model_onnx_contains_the_facts_in_its_metadata(folder):
    (entry,) = onnx.load(folder / "model.onnx").metadata_props
    assert entry.key == METADATA_KEY
    assert json.loads(entry.value) == {**FACTS, "hardware": HARDWARE}


def test_the_history_is_written_beside_the_model(folder):
    assert (folder / "history.csv").read_text() == "step,l2,val_loss\n0,0.1,0.5\n1,0.2,0.25\n"


def test_the_start_has_no_train_figure_in_the_history(tmp_path):
    write_facts(tmp_path, build_model(), FACTS, [{"epoch": 0, "val_loss": 0.5}, {"epoch": 1, "train_loss": 0.25, "val_loss": 0.5}])
    assert (tmp_path / "history.csv").read_text() == "epoch,train_loss,val_loss\n0,,0.5\n1,0.25,0.5\n"


def test_a_description_contains_the_sums_of_all_that_the_model_was_made_from(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"")
    params, preprocessing = HeadParams(seed=0, threads=2, l2_grid=[0.1]), Preprocessing(64, 0.875, "bicubic")
    found = describe_model(
        "baseline", ("b", "a"), preprocessing, params, "pipeline.training.head", {"data": tmp_path / "data.csv"}, HARDWARE, "AAAA"
    )
    code = found["inputs_sha256"].pop("code")
    assert found == {
        "model": "baseline",
        "class_names": ["b", "a"],
        "preprocessing": {"image_size": 64, "crop": 0.875, "interpolation": "bicubic", "crop_mode": "center", "border": None},
        "params": {"seed": 0, "threads": 2, "l2_grid": [0.1]},
        "inputs_sha256": {
            "data": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",  # of no bytes
            "params": "0553f64e66cd7f03354768b282590c9202ef533fed0474b1a53fdfa064ead909",  # of {"l2_grid":[0.1],"seed":0,"threads":2}
        },
        "hardware": HARDWARE,
        "learned": "AAAA",
    }
    assert len(code) == 64


# The check


def test_a_folder_that_agrees_with_itself_returns_its_sha256(folder):
    assert verify_model(folder) == sha256_of_file(folder / "model.onnx")


def test_a_changed_model_file_is_refused(folder):
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    found = sha256_of_file(folder / "model.onnx")
    assert refusal(folder) == f"{folder}/model.onnx: its sha256 is {found}, model.json states another; run `dvc checkout`"


@pytest.mark.parametrize("change", [{"model": "finetuned"}, {"class_names": ["Bär", "Ameise"]}, {"more": 1}])
def test_a_changed_model_json_is_refused(change, folder):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}))
    assert refusal(folder) == f"{folder}: model.json differs from the metadata of model.onnx; run `dvc checkout`"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b""])
def test_a_damaged_model_json_is_refused(content, folder):
    (folder / "model.json").write_bytes(content)
    assert refusal(folder) == f"{folder}/model.json: is damaged; run `dvc checkout`"


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: contains no model; run `dvc repro`"


def test_a_missing_model_file_is_refused(folder):
    (folder / "model.onnx").unlink()
    assert refusal(folder).startswith(f"{folder}/model.onnx: ")


def test_facts_are_read_back(folder):
    assert read_facts(folder)["class_names"] == ["Ameise", "Bär"]


# The identity


@pytest.mark.parametrize(
    "change",
    [
        {"model": "finetuned"},
        {"inputs_sha256": {"data": "c", "code": "b"}},
        {"inputs_sha256": {"data": "a", "code": "c"}},
        {"inputs_sha256": {"data": "a", "code": "b", "params": "c"}},
        {"hardware": {**HARDWARE, "precision": "bf16"}},
        {"hardware": {**HARDWARE, "threads": 4}},
        {"hardware": {**HARDWARE, "device": "cuda"}},
    ],
    ids=str,
)
def test_the_identity_changes_with_all_that_decides_the_bytes(change):
    facts = {**FACTS, "hardware": HARDWARE}
    assert identity({**facts, **change}) != identity(facts)


def test_the_identity_does_not_change_with_the_order_of_the_inputs():
    facts = {**FACTS, "hardware": HARDWARE}
    assert identity({**facts, "inputs_sha256": {"code": "b", "data": "a"}}) == identity(facts)


def test_the_identity_is_known_before_the_model_is_made():
    facts = {**FACTS, "hardware": HARDWARE}
    assert identity({**facts, "model_sha256": "c"}) == identity(facts)


# Graphs too large for one file


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A model folder whose graph counts as too large for one file, with what its graph answers as one file."""
    monkeypatch.setattr(onnx_file, "_LEAST", 16)
    write_onnx(build_model(), tmp_path / "whole.onnx")
    monkeypatch.setattr(onnx_file, "_LARGEST", 16)
    (tmp_path / "model").mkdir()
    write_facts(tmp_path / "model", build_model(), FACTS, HISTORY)
    return tmp_path / "model"


def test_a_large_graph_has_its_tensors_beside_it(large):
    assert sorted(path.name for path in large.iterdir()) == ["history.csv", "model.json", "model.onnx", "model.onnx.data"]
    graph = onnx.load(large / "model.onnx", load_external_data=False).graph
    outside = [tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert outside == ["head.weight"]  # the bias has 8 bytes
    assert (large / "model.onnx.data").stat().st_size == 2 * 3 * 4


def test_a_large_graph_answers_as_a_small_one(large):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    answers = [open_session(path, 1).run(["probs"], {"pixels": pixels})[0] for path in (large / "model.onnx", large.parent / "whole.onnx")]
    np.testing.assert_array_equal(*answers)


def test_a_large_graph_may_be_moved_with_its_tensors(large):
    moved = large.rename(large.parent / "moved")
    assert open_session(moved / "model.onnx", 1).get_inputs()[0].name == "pixels"
    assert verify_model(moved) == sha256_of_file(moved / "model.onnx")


def test_the_sum_of_the_tensors_is_in_the_graph_and_in_model_json(large):
    (entry,) = onnx.load(large / "model.onnx").metadata_props
    wanted = sha256_of_file(large / "model.onnx.data")
    assert json.loads(entry.value)["data_sha256"] == read_facts(large)["data_sha256"] == wanted


def test_a_large_graph_written_twice_has_equal_bytes(large, tmp_path):
    (tmp_path / "again").mkdir()
    write_facts(tmp_path / "again", build_model(), FACTS, HISTORY)
    names = ["model.onnx", "model.onnx.data", "model.json"]
    assert [(tmp_path / "again" / name).read_bytes() for name in names] == [(large / name).read_bytes() for name in names]


@pytest.mark.parametrize("link", [None, os.link, os.symlink], ids=["a file", "a hard link", "a symbolic link"])
def test_a_large_graph_is_read_with_its_tensors_whatever_dvcs_cache_made_of_it(link, large):
    if link:
        (large.parent / "cache").mkdir()
        for number, name in enumerate(["model.onnx", "model.onnx.data"]):
            (large / name).rename(large.parent / "cache" / str(number))
            link(large.parent / "cache" / str(number), large / name)
    found, wanted = read_onnx(large / "model.onnx"), build_model()
    assert list(found.graph.initializer) == list(wanted.graph.initializer)


def test_a_large_graph_without_its_tensors_is_not_read(large):
    (large / "model.onnx.data").write_bytes(bytes(23))
    with pytest.raises(PipelineError) as error:
        read_onnx(large / "model.onnx")
    assert str(error.value) == f"{large}/model.onnx.data: is cut short; run `dvc checkout`"
    (large / "model.onnx.data").unlink()
    with pytest.raises(PipelineError) as error:
        read_onnx(large / "model.onnx")
    assert str(error.value) == f"{large}/model.onnx.data: is not there; run `dvc checkout`"


def test_changed_tensors_are_refused(large):
    (large / "model.onnx.data").write_bytes(bytes(24))
    found = sha256_of_file(large / "model.onnx.data")
    assert refusal(large) == f"{large}/model.onnx.data: its sha256 is {found}, model.json states another; run `dvc checkout`"


def test_missing_tensors_are_refused(large):
    (large / "model.onnx.data").unlink()
    assert refusal(large) == f"{large}/model.onnx.data: is not there; run `dvc checkout`"


def test_changed_weights_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_facts(tmp_path, build_model(), FACTS, HISTORY)
    assert len(verify_model(tmp_path)) == 64
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert refusal(tmp_path).startswith(f"{tmp_path}/model.safetensors: its sha256 is ")


# The epoch of which the weights are stored


def write_history(folder, rows, monitor=None):
    (folder / "model.json").write_text(json.dumps({"params": {"monitor": monitor}} if monitor else {}))
    lines = [f"{epoch},{loss},{accuracy}" for epoch, (loss, accuracy) in enumerate(rows)]
    (folder / "history.csv").write_text("\n".join(["epoch,val_loss,val_accuracy", *lines]) + "\n")
    return folder


@pytest.mark.parametrize(("monitor", "epoch"), [(None, "1"), ("val_loss", "1"), ("val_accuracy", "2")])  # the first of equals
def test_the_stored_epoch_is_the_best_by_the_figure_that_the_recipe_monitors(monitor, epoch, tmp_path):
    rows = [(0.5, 0.8), (3e-5, 0.9), (0.4, 0.95), (0.4, 0.95)]
    assert kept_row(write_history(tmp_path, rows, monitor))["epoch"] == epoch


def test_values_are_compared_as_numbers(tmp_path):
    assert kept_row(write_history(tmp_path, [(10, 0), (9, 0)]))["epoch"] == "1"
