"""Names to architectures: what each expects, where its head is, and what is suggested for an unknown name."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.networks.classifier import headless

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TINY = zoo.Architecture("tiny", "torchvision", 8, *HALVES, "bicubic", 1.0, False)


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
def test_a_name_resolves_to_the_preprocessing_of_its_publisher(name, library, statistics, interpolation, crop):
    assert zoo.find_architecture(name) == zoo.Architecture(name, library, 224, *statistics, interpolation, pytest.approx(crop), False)


@pytest.mark.parametrize("name", ["vit_b_16", "timm/vit_tiny_patch16_224"])
def test_a_vision_transformer_takes_no_other_size(name):
    assert zoo.find_architecture(name).fixed_size


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "timm/no_such_model"])
def test_a_name_that_no_library_knows_is_refused(name):
    assert zoo.library_of(name) is None
    with pytest.raises(PipelineError, match=f"^params.yaml: backbone.name: '{name}' is not a known model; the nearest are "):
        zoo.find_architecture(name)


def test_a_network_may_have_other_classes_than_those_of_its_published_weights():
    for name, head in (("resnet18", "fc"), ("inception_v3", "fc"), ("test_resnet", "fc")):
        with torch.device("meta"):
            network = zoo.build(zoo.find_architecture(name), num_classes=3)
        assert network.get_submodule(head).out_features == 3


def build(name):
    """A network on the meta device: its tensors have no data."""
    with torch.device("meta"):
        return zoo.build(zoo.find_architecture(name))


def test_a_vision_transformer_is_built_for_its_own_size():
    assert zoo.find_architecture("vit_h_14").image_size == 518  # of its best published weights
    assert build("vit_h_14").image_size == 518


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("efficientnet_b0", "classifier.1"),
        ("squeezenet1_1", "classifier.1"),  # a convolution
        ("inception_v3", "fc"),
        ("vit_b_16", "heads.head"),
        ("tf_efficientnet_lite0", "classifier"),
        ("timm/resnet18", "fc"),
        ("timm/vit_tiny_patch16_224", "head"),
        ("timm/deit_tiny_distilled_patch16_224", "head, head_dist"),
        ("timm/vit_small_patch14_dinov2", "none"),
    ],
)
def test_the_head_is_taken_away_and_named(name, heads):
    network = build(name)
    before = list(network.state_dict())
    zoo.take_head_away(network, zoo.find_architecture(name))
    assert zoo.name_heads([key for key in before if key not in network.state_dict()]) == heads


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_side_heads_go_too(name):
    network = build(name)
    zoo.take_head_away(network, zoo.find_architecture(name))
    assert not network.aux_logits
    assert not [key for key in network.state_dict() if key.startswith(("AuxLogits", "aux", "fc"))]


@pytest.mark.parametrize(("name", "count"), [("squeezenet1_1", 512), ("timm/test_resnet", 96), ("timm/test_vit", 64)])
def test_the_features_are_counted(name, count):
    architecture = zoo.find_architecture(name)
    assert zoo.count_features(headless(zoo.build(architecture), architecture), architecture) == count


@pytest.mark.parametrize("network", [nn.Identity(), nn.Flatten(0, 1)], ids=["maps", "rows for pixels"])
def test_a_network_without_a_row_of_features_per_picture_is_refused(network):
    with pytest.raises(PipelineError) as error:
        zoo.count_features(network, TINY)
    assert str(error.value) == "backbone tiny: its head cannot be found; choose another model"


@pytest.mark.parametrize(
    ("network", "library"), [(nn.Linear(3, 10), "torchvision"), (nn.Conv2d(3, 1000, 3), "torchvision"), (nn.Linear(3, 1000), "timm")]
)
def test_a_network_without_a_head_is_refused(network, library):
    with pytest.raises(PipelineError) as error:
        zoo.take_head_away(network, replace(TINY, library=library))
    assert str(error.value) == "backbone tiny: its head cannot be found; choose another model"


def test_an_unknown_name_is_refused_with_the_five_nearest():
    with pytest.raises(PipelineError) as error:
        zoo.find_architecture("mobilenet_v3_smal")
    start, _, names = str(error.value).partition("the nearest are ")
    assert start == "params.yaml: backbone.name: 'mobilenet_v3_smal' is not a known model; "
    assert len(names.split(", ")) == 5
    assert names.split(", ")[0] == "mobilenet_v3_small"


def test_the_nearest_names_differ_from_each_other():
    with pytest.raises(PipelineError) as error:
        zoo.find_architecture("resnet19")  # torchvision and timm both have a resnet18
    names = str(error.value).partition("the nearest are ")[2].split(", ")
    assert len(set(names)) == 5


def test_the_prefix_asks_timm_alone():
    with pytest.raises(PipelineError, match=r"^params\.yaml: backbone\.name: 'timm/mobilenet_v2' is not a known model; "):
        zoo.find_architecture("timm/mobilenet_v2")  # torchvision has it
