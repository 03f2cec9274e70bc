"""The backbone's stage: the same seed, the same bytes; and what the network is, in a table."""

import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.core.sections import read_section
from pipeline.networks import zoo
from pipeline.networks.classifier import Classifier, load_backbone, save_classifier
from pipeline.stages.backbone import Params, run


def make_params(seed=0, name="mobilenet_v3_small", weights="none", digest=None):
    return Params(seed=seed, name=name, weights=weights, digest=digest)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random backbones: two of one seed, one of another."""
    root = tmp_path_factory.mktemp("backbones")
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        run(make_params(seed), root / name)
    return root


def digest_of(folder):
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_one_seed_draws_equal_bytes_twice(folders):
    assert digest_of(folders / "first") == digest_of(folders / "again")
    assert (folders / "first" / "backbone.json").read_bytes() == (folders / "again" / "backbone.json").read_bytes()


def test_another_seed_draws_other_bytes(folders):
    assert digest_of(folders / "first") != digest_of(folders / "other")


def test_backbone_json_describes_the_network(folders):
    assert read_json(folders / "first" / "backbone.json") == {
        "architecture": {
            "name": "mobilenet_v3_small",
            "library": "torchvision",
            "image_size": 224,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bilinear",
            "crop": 0.875,
            "fixed_size": False,
            "crop_mode": "center",
        },
        "head": "classifier.3",
        "head_tensors": ["classifier.3.weight", "classifier.3.bias"],
        "num_features": 1024,
        "parameters": 2542856,  # the figure of torchvision's documentation
        "feature_map": None,  # a nonlinear layer is between its pooled map and the head
        "weights": {"name": "random", "sha256": None, "licence": "none needed"},
        "learned": "",
    }


def test_all_tensors_are_stored_with_imagenets_head(folders):
    network = zoo.build(zoo.find_architecture("mobilenet_v3_small"))
    found = load_file(folders / "first" / "weights.safetensors")
    assert {key: tensor.shape for key, tensor in found.items()} == {key: tensor.shape for key, tensor in network.state_dict().items()}


def test_an_unknown_name_leaves_no_folder(tmp_path):
    with pytest.raises(PipelineError):
        run(make_params(name="nonsense"), tmp_path / "backbone")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_there_leave_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(PipelineError):
        run(make_params(weights="absent.pth"), tmp_path / "backbone")
    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_64_hex_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\nbackbone: {name: resnet18, weights: own.pth, digest: abc}\n")
    with pytest.raises(PipelineError, match=r"^params\.yaml: backbone\.digest: 'abc'"):
        read_section("backbone", Params)


# Training on from a model of this pipeline


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A project that keeps a model of two classes on a small network, and that network; `sha256`: of the model's weights."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    run(make_params(1, "test_resnet"), tmp_path / "old")
    classifier = Classifier(*load_backbone(tmp_path / "old"), 2)
    (tmp_path / "kept").mkdir()
    save_classifier(classifier, tmp_path / "kept" / "model.safetensors")
    sums = {"model_sha256": "a" * 64, "weights_sha256": sha256_of_file(tmp_path / "kept" / "model.safetensors")}
    write_json(tmp_path / "kept" / "model.json", {"model": "finetuned", "learned": "AAAAAAA=", **sums})
    return SimpleNamespace(network=classifier.backbone.network, sha256=sums["weights_sha256"])


def test_the_backbone_has_the_weights_of_a_kept_model(kept, tmp_path):
    run(make_params(2, "test_resnet", "kept", kept.sha256), tmp_path / "new")
    found, wanted = load_backbone(tmp_path / "new")[0].network.state_dict(), kept.network.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert read_json(tmp_path / "new" / "backbone.json")["weights"]["name"] == f"model finetuned, model.onnx {'a' * 64}"
    assert read_json(tmp_path / "new" / "backbone.json")["learned"] == "AAAAAAA="


def test_a_kept_model_of_another_network_is_refused_with_three_tensors(kept, tmp_path):
    with pytest.raises(PipelineError) as error:
        run(make_params(2, "test_vit", "kept", kept.sha256), tmp_path / "new")
    start, _, tensors = str(error.value).partition(" of its tensors differ, first ")
    assert re.fullmatch(rf"model finetuned, model\.onnx {'a' * 64}: does not fit test_vit: \d+", start)
    assert re.fullmatch(r"cls_token \(absent, not 1x1x64\), (\w|\.)+ \(.+\), (\w|\.)+ \(.+\); name its own architecture", tensors)
    assert not (tmp_path / "new").exists()
