"""The stage `train_baseline`: ImageNet's head is replaced, and the model folder predicts what the head does."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, softmax

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table, write_table
from pipeline.core.sections import read_section
from pipeline.networks.artifact import verify_model
from pipeline.networks.onnx_file import write_onnx
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.serving.predictor import Predictor
from pipeline.stages.train_baseline import Params, check_head, run, with_head
from pipeline.training.head import Head
from pipeline.training.temperature import fit_temperature


def make_picture(image_id, label, split="train", group=""):
    return Picture(image_id, image_id, "0" * 64, label, split, group or image_id, 4, 4)


def write_embeddings(folder, image_ids, features):
    folder.mkdir()
    np.save(folder / "features.npy", np.asarray(features, np.float32))
    write_table(folder / "image_ids.csv", ["image_id"], [{"image_id": image_id} for image_id in image_ids])


def write_backbone(folder):
    """A stored network of one convolution and ImageNet's head."""
    folder.mkdir()
    tensors = {"conv.weight": np.ones((2, 2), np.float32), "conv.bias": np.zeros(2, np.float32)}
    save_file(
        {**tensors, "fc.weight": np.ones((1000, 2), np.float32), "fc.bias": np.ones(1000, np.float32)}, folder / "weights.safetensors"
    )
    (folder / "backbone.json").write_text('{"head_tensors": ["fc.weight", "fc.bias"], "learned": ""}')


def test_the_new_head_takes_the_place_of_imagenets(tmp_path):
    write_backbone(tmp_path / "backbone")
    tensors = with_head(tmp_path / "backbone", np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    shapes = {key: value.shape for key, value in tensors.items()}
    assert shapes == {"backbone.network.conv.weight": (2, 2), "backbone.network.conv.bias": (2,), "head.weight": (3, 2), "head.bias": (3,)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder trained on features that are the mean colours of pictures."""
    root = tmp_path_factory.mktemp("baseline")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    pixels[::3] //= 3
    pictures = [make_picture(f"{index:02}", "dark" if index % 3 == 0 else "light", "val" if index > 20 else "train") for index in range(30)]
    write_embeddings(root / "embeddings", [picture.image_id for picture in pictures], pixels.mean(axis=(1, 2)))
    preprocessing = {"image_size": 4, "crop": 1.0, "interpolation": "bicubic"}
    (root / "embeddings" / "embedding.json").write_text(
        json.dumps({"preprocessing": preprocessing, "tiny": False, "size": {"parameters": 0, "gmacs": 0.25}})
    )
    write_onnx(mean_colours(), root / "embeddings" / "backbone.onnx")
    write_manifest(root / "manifest.csv", pictures)
    write_backbone(root / "backbone")
    params = Params(seed=0, threads=1, false_alarm_rate=0.25, l2_grid=[0.01, 1.0])
    run(params, root / "embeddings", root / "manifest.csv", root / "backbone", root / "baseline", root / "out_of_fold.csv")
    return SimpleNamespace(folder=root / "baseline", pixels=pixels, out_of_fold=read_table(root / "out_of_fold.csv"))


def mean_colours():
    """A graph whose three features are the mean red, green and blue of a picture."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["features"], keepdims=0),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "backbone", [pixels], [features], [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_folder_agrees_with_itself(trained):
    assert len(verify_model(trained.folder)) == 64


def test_the_folder_holds_weights_graph_facts_golden_answers_and_history(trained):
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "golden.json",
        "history.csv",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]


def test_the_graph_answers_as_the_stored_head_does(trained):
    tensors = load_file(trained.folder / "model.safetensors")
    logits = trained.pixels.mean(axis=(1, 2)) @ tensors["head.weight"].T + tensors["head.bias"]
    predictor = Predictor.load(trained.folder / "model.onnx", 1)
    wanted = softmax(logits / predictor.facts["temperature"], axis=1)
    np.testing.assert_allclose(predictor.predict_pixels(trained.pixels), wanted, atol=1e-5)


def test_the_graph_tells_its_temperature_and_its_size(trained):
    facts = Predictor.load(trained.folder / "model.onnx", 1).facts
    tensors = load_file(trained.folder / "model.safetensors")
    logits = trained.pixels[21:].mean(axis=(1, 2)) @ tensors["head.weight"].T + tensors["head.bias"]
    assert facts["temperature"] == pytest.approx(fit_temperature(logits, (np.arange(21, 30) % 3 != 0).astype(int)), rel=1e-3)
    assert facts["size"] == {"parameters": 2 * 3 + 2, "gmacs": 0.25}


def test_the_graph_names_its_classes_in_their_order(trained):
    assert Predictor.load(trained.folder / "model.onnx", 1).class_names == ["dark", "light"]


def test_the_history_has_a_row_for_each_penalty(trained):
    assert [(row["step"], row["l2"]) for row in read_table(trained.folder / "history.csv")] == [("0", "0.01"), ("1", "1.0")]


def test_the_kept_penalty_is_that_of_the_lowest_loss_on_the_val_pictures_alone(trained):
    tensors = load_file(trained.folder / "model.safetensors")
    logits = trained.pixels[21:].mean(axis=(1, 2)) @ tensors["head.weight"].T + tensors["head.bias"]
    labels = np.arange(21, 30) % 3 != 0
    loss = -log_softmax(logits, axis=1)[np.arange(9), labels.astype(int)].mean()
    best = min(read_table(trained.folder / "history.csv"), key=lambda row: float(row["val_loss"]))
    assert float(best["val_loss_unscaled"]) == pytest.approx(loss, rel=1e-4)


def test_every_train_and_val_picture_has_an_answer_of_a_head_that_did_not_see_it(trained):
    assert [row["image_id"] for row in trained.out_of_fold] == [f"{index:02}" for index in range(30)]


def test_answers_out_of_fold_have_the_probabilities_of_the_predicted_class_and_of_the_label(trained):
    for row in trained.out_of_fold:
        prob, label_prob = float(row["probability"]), float(row["label_probability"])
        assert label_prob == pytest.approx(prob if row["label"] == row["predicted"] else 1 - prob, abs=2e-6)  # of two classes


@pytest.mark.parametrize("penalty", ["0", "-1.0"])
def test_a_penalty_must_be_above_zero(penalty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"seed: 0\nthreads: 1\nfalse_alarm_rate: 0.05\ntrain_baseline: {{l2_grid: [0.1, {penalty}]}}\n")
    with pytest.raises(PipelineError, match=rf"train_baseline\.l2_grid\.1: {penalty} "):
        read_section("train_baseline", Params)


def test_a_graph_that_differs_from_its_head_is_refused(trained):
    tensors = load_file(trained.folder / "model.safetensors")
    head = Head(tensors["head.weight"] * 1.5, tensors["head.bias"])
    with pytest.raises(PipelineError, match=r"^the baseline's model\.onnx: differs from its head by \d"):
        check_head(trained.folder / "model.onnx", trained.folder.parent / "embeddings" / "backbone.onnx", head, 1.0, 4, 1)
