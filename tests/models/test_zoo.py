"""Names to architectures: what each expects, where its head is, and what an unknown name is told."""

import pytest
from torch import nn

from pipeline.errors import PipelineError
from pipeline.models import zoo

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "library", "statistics", "interpolation", "crop"),
    [
        ("resnet18", "torchvision", IMAGENET, "bilinear", 224 / 256),
        ("mobilenet_v3_small", "torchvision", IMAGENET, "bilinear", 224 / 256),
        ("efficientnet_b0", "torchvision", IMAGENET, "bicubic", 224 / 256),
        ("tf_efficientnet_lite0", "timm", HALVES, "bicubic", 0.875),
        ("timm/tf_efficientnet_lite0", "timm", HALVES, "bicubic", 0.875),
        ("timm/resnet18", "timm", IMAGENET, "bicubic", 0.95),
    ],
)
def test_a_name_resolves_to_what_its_publisher_says(name, library, statistics, interpolation, crop):
    assert zoo.find_architecture(name) == zoo.Architecture(name, library, 224, *statistics, interpolation, pytest.approx(crop), False)


@pytest.mark.parametrize("name", ["vit_b_16", "timm/vit_tiny_patch16_224"])
def test_a_vision_transformer_takes_no_other_size(name):
    assert zoo.find_architecture(name).fixed_size


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("efficientnet_b0", "classifier.1"),
        ("tf_efficientnet_lite0", "classifier"),
        ("timm/resnet18", "fc"),
        ("timm/vit_tiny_patch16_224", "head"),
    ],
)
def test_the_head_is_found(name, head):
    architecture = zoo.find_architecture(name)
    assert zoo.head_name(zoo.build(architecture), architecture) == head


def test_an_unknown_name_is_told_the_five_nearest():
    with pytest.raises(PipelineError) as error:
        zoo.find_architecture("mobilenet_v3_smal")
    start, _, names = str(error.value).partition("the nearest are ")
    assert start == "params.yaml: backbone.name: 'mobilenet_v3_smal' is no known model; "
    assert len(names.split(", ")) == 5
    assert names.split(", ")[0] == "mobilenet_v3_small"


def test_the_nearest_names_differ_from_each_other():
    with pytest.raises(PipelineError) as error:
        zoo.find_architecture("resnet19")  # torchvision and timm both have a resnet18
    names = str(error.value).partition("the nearest are ")[2].split(", ")
    assert len(set(names)) == 5


def test_the_prefix_asks_timm_alone():
    with pytest.raises(PipelineError, match=r"^params\.yaml: backbone\.name: 'timm/mobilenet_v2' is no known model; "):
        zoo.find_architecture("timm/mobilenet_v2")  # torchvision has it


def test_a_network_without_imagenets_head_is_refused():
    architecture = zoo.Architecture("tiny", "timm", 8, *HALVES, "bicubic", 1.0, False)
    with pytest.raises(PipelineError) as error:
        zoo.head_name(nn.Linear(3, 10), architecture)
    assert str(error.value) == "backbone tiny: has no linear head of 1000 classes; take another model"
