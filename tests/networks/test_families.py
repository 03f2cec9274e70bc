"""A small network of each family goes through all that the pipeline does with one."""

import numpy as np
import pytest
import torch

from bench.trial import STEPS, try_out
from pipeline.core.errors import PipelineError
from pipeline.networks.embedding import export_backbone

CONVOLUTIONAL = ("timm/test_resnet", "timm/test_efficientnet", "squeezenet1_1")
SLOW = (
    "googlenet",
    "alexnet",
    "vgg11",
    "resnet18",
    "densenet121",
    "inception_v3",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A project's root for what is kept between runs, and one thread: the networks are small."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_convolutional_network_does_all(name, tmp_path):
    found = try_out(name, tmp_path)
    assert {step: found.get(step) for step in ("built", *STEPS)} == dict.fromkeys(("built", *STEPS), "yes")


@pytest.mark.parametrize("name", ["timm/test_vit", pytest.param("timm/vit_tiny_patch16_224", marks=pytest.mark.slow)])
def test_a_transformer_does_all_but_grad_cam(name, tmp_path):
    found = try_out(name, tmp_path)
    wanted = {**dict.fromkeys(("built", *STEPS), "yes"), "Grad-CAM": "no feature map"}
    assert {step: found.get(step) for step in wanted} == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 64, r"Kernel size can't be greater than actual input size; set 299"),
        ("timm/vit_tiny_patch16_224", 64, r"Input height \(64\) doesn't match model \(224\); set 224"),
        ("timm/swin_tiny_patch4_window7_224", 96, r"Input height \(96\) doesn't match model \(224\); set 224"),
    ],
)
def test_a_size_that_a_network_refuses_is_reported_with_its_own(name, size, message, folder_of):
    with pytest.raises(PipelineError, match=rf"^params\.yaml: embed\.image_size: the backbone refuses {size}: .*{message}$"):
        export_backbone(folder_of(name), size, np.zeros((1, size, size, 3), np.uint8), 1)
