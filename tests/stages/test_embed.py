"""The embedding's stage: the size at which pictures enter the network, the export that is kept, the order of the features."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import inception_v3

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table
from pipeline.networks import onnx_file as session
from pipeline.networks.classifier import Backbone
from pipeline.networks.embedding import export_backbone, resolve_image_size, takes_size
from pipeline.networks.onnx_file import export_onnx
from pipeline.pictures.images import Preprocessing, read_square
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.stages import embed as stage
from pipeline.stages.embed import Params, run


def make_picture(width, height, image_id="a.png", split="train"):
    return Picture(image_id, image_id, "0" * 64, "ants", split, image_id, width, height)


def make_facts(image_size=224, fixed_size=False):
    return {"architecture": {"image_size": image_size, "fixed_size": fixed_size}}


def takes_all(side):
    """A network that takes every side."""
    return True


@pytest.mark.parametrize(
    ("side", "image_size"), [(1, 64), (8, 64), (28, 64), (32, 64), (33, 96), (48, 96), (96, 192), (112, 224), (113, 224), (500, 224)]
)
def test_auto_is_twice_the_pictures_side_up_to_the_networks_own(side, image_size):
    assert resolve_image_size("auto", make_facts(), [make_picture(side, side)], takes_all) == image_size


def test_the_longer_side_counts():
    assert resolve_image_size("auto", make_facts(), [make_picture(10, 40)], takes_all) == 96


def test_the_median_picture_counts():
    assert resolve_image_size("auto", make_facts(), [make_picture(side, side) for side in (8, 40, 2000)], takes_all) == 96


def test_of_two_pictures_the_mean_counts():
    pictures = [make_picture(side, side) for side in (40, 57)]
    assert resolve_image_size("auto", make_facts(), pictures, takes_all) == 128  # twice 48.5 is above 96


def test_a_network_smaller_than_the_least_takes_its_own():
    assert resolve_image_size("auto", make_facts(image_size=32), [make_picture(8, 8)], takes_all) == 32


@pytest.mark.parametrize("side", [8, 500])
def test_a_network_of_fixed_size_takes_its_own(side):
    assert resolve_image_size("auto", make_facts(384, fixed_size=True), [make_picture(side, side)], takes_all) == 384


@pytest.mark.parametrize("fixed_size", [False, True])
def test_a_number_is_taken_as_it_is(fixed_size):
    assert resolve_image_size(100, make_facts(fixed_size=fixed_size), [make_picture(8, 8)], takes_all) == 100


@pytest.mark.parametrize(("side", "asked"), [(8, [64]), (500, [])])
def test_a_network_that_refuses_a_smaller_size_takes_its_own(side, asked):
    tried = []
    assert resolve_image_size("auto", make_facts(299), [make_picture(side, side)], tried.append) == 299
    assert tried == asked


@pytest.fixture(scope="module")
def inception():
    """A network that takes no picture below 75 pixels, at weights that torch draws quickly."""
    network = inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    network.fc = nn.Identity()
    return Backbone(network, (0.5,) * 3, (0.5,) * 3).eval()


@pytest.mark.parametrize(("side", "image_size"), [(8, 299), (48, 96)])
def test_tiny_pictures_enter_inception_at_its_own_size(inception, side, image_size):
    takes = partial(takes_size, inception)
    assert resolve_image_size("auto", make_facts(299), [make_picture(side, side)], takes) == image_size


class Refusing(nn.Module):
    """A network that takes one size alone, and says so in two lines."""

    def forward(self, pixels):
        raise AssertionError(f"Input height ({pixels.shape[1]}) doesn't match model (224)\nmore")


def write_backbone(folder):
    """A backbone folder whose network is put in its place by the test."""
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    architecture = {"image_size": 224, "fixed_size": False, "crop": 1.0, "interpolation": "bicubic"}
    (folder / "backbone.json").write_text(json.dumps({"architecture": architecture, "feature_map": {"layer": "0", "channel_axis": 1}}))
    return folder


def test_a_size_that_the_network_refuses_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(stage, "load_backbone", lambda _: (Refusing(), 3))
    with pytest.raises(PipelineError) as error:
        export_backbone(write_backbone(tmp_path / "backbone"), 64, np.zeros((1, 64, 64, 3), np.uint8), 1)
    assert str(error.value) == (
        "params.yaml: embed.image_size: the backbone refuses 64: Input height (64) doesn't match model (224); say 224"
    )


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Six pictures, embedded by a network of one convolution, twice."""
    root, patch = tmp_path_factory.mktemp("embed"), pytest.MonkeyPatch()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone, exported = Backbone(network, (0.5,) * 3, (0.5,) * 3).eval(), []
    pictures = []
    for number, split in enumerate(["val", "train", "train", "val", "train", "train"]):
        path = root / split / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        pictures.append(make_picture(8, 8, path.name, split))
    write_manifest(root / "manifest.csv", pictures)
    write_backbone(root / "backbone")
    patch.setenv("DVC_ROOT", str(root))
    patch.setattr(stage, "load_backbone", lambda _: (backbone, 4))
    patch.setattr(stage, "export_onnx", lambda *told: exported.append(told[1]) or export_onnx(*told))
    patch.setattr(stage.runtime, "choose_device", lambda: torch.device("cpu"))
    for name in ("first", "second"):
        paths = (root / "train", root / "val", root / "manifest.csv", root / "backbone", root / name)
        run(Params(threads=1, image_size="auto", batch_size=4), *paths)
    patch.undo()
    return SimpleNamespace(root=root, folder=root / "first", backbone=backbone, exported=exported)


def test_the_pictures_are_those_of_train_and_then_of_val(embedded):
    assert [row["image_id"] for row in read_table(embedded.folder / "image_ids.csv")] == [
        "1.png",
        "2.png",
        "4.png",
        "5.png",
        "0.png",
        "3.png",
    ]


def test_the_features_are_those_of_the_network_in_the_pictures_order(embedded):
    splits = {"0": "val", "1": "train", "2": "train", "3": "val", "4": "train", "5": "train"}
    paths = [embedded.root / splits[number] / f"{number}.png" for number in "124503"]
    pixels = np.stack([read_square(path, Preprocessing(64, 1.0, "bicubic")) for path in paths])
    with torch.inference_mode():
        wanted = embedded.backbone(torch.from_numpy(pixels)).numpy()
    found = np.load(embedded.folder / "features.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_size_that_was_resolved_is_written_down(embedded):
    assert json.loads((embedded.folder / "embedding.json").read_text()) == {
        "preprocessing": {"image_size": 64, "crop": 1.0, "interpolation": "bicubic"},
        "tiny": True,
        "size": {"parameters": 4 * 3 * 9 + 4, "gflops": 0.0004152},  # multiply-adds: 62 x 62 places, 4 x 27 weights each
    }


def test_a_backbone_too_large_for_one_file_has_its_tensors_beside_it(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_LARGEST", 100)
    monkeypatch.setattr(session, "_LEAST", 100)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(stage, "load_backbone", lambda _: (embedded.backbone, 4))
    paths = (embedded.root / name for name in ("train", "val", "manifest.csv", "backbone"))
    run(Params(threads=1, image_size="auto", batch_size=4), *paths, tmp_path / "large")
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == [
        "backbone.onnx",
        "backbone.onnx.data",
        "embedding.json",
        "features.npy",
        "image_ids.csv",
    ]
    assert (tmp_path / "large" / "features.npy").read_bytes() == (embedded.folder / "features.npy").read_bytes()
    graph = session.read_onnx(tmp_path / "large" / "backbone.onnx")
    assert sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > (4 * 3 * 9 + 4) * 4


def test_pictures_too_small_for_a_network_are_embedded_at_its_own_size(embedded, tmp_path, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 75, 75), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # it takes no picture below 75 pixels
    backbone = Backbone(network, (0.5,) * 3, (0.5,) * 3).eval()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(stage, "load_backbone", lambda _: (backbone, 4))
    monkeypatch.setattr(stage.runtime, "choose_device", lambda: torch.device("cpu"))
    paths = (embedded.root / name for name in ("train", "val", "manifest.csv", "backbone"))
    run(Params(threads=1, image_size="auto", batch_size=4), *paths, tmp_path / "own")
    assert json.loads((tmp_path / "own" / "embedding.json").read_text())["preprocessing"]["image_size"] == 224


def test_an_export_is_made_once(embedded):
    assert embedded.exported == [64]


def test_embedding_twice_gives_equal_bytes(embedded):
    names = sorted(path.name for path in embedded.folder.iterdir())
    assert names == ["backbone.onnx", "embedding.json", "features.npy", "image_ids.csv"]
    assert all((embedded.folder / name).read_bytes() == (embedded.root / "second" / name).read_bytes() for name in names)
