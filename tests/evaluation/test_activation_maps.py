"""CAM worked by hand; Grad-CAM equals it if the head is linear on the pooled map, and a gradient worked by hand otherwise."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from pipeline.evaluation.galleries import class_activation, grad_cam, overlay
from pipeline.networks.classifier import Backbone, Classifier, WithFeatureMap, find_feature_map, last_map

FEATURES = np.array(
    [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]
)  # the first channel is active in the upper left, the second in the upper right
WEIGHT = np.array([[3.0, 1.0], [1.0, 3.0]])
HALF = ((0.5,) * 3, (0.5,) * 3)


def test_a_channel_is_evidence_for_the_class_with_the_larger_weight():
    # Rows less their mean: (1, -1) and (-1, 1). Times the channels: 1 and -2 for the first class, -1 and 2 for the second.
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT, 0), [[1, 0], [0, 0]])
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT, 1), [[0, 1], [0, 0]])


def test_weights_that_all_classes_share_change_nothing():
    np.testing.assert_allclose(class_activation(FEATURES, WEIGHT + 5, 0), class_activation(FEATURES, WEIGHT, 0))


def test_evidence_against_the_class_is_0_and_the_strongest_evidence_is_1():
    feature_map = np.array([[[4.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 0.0]]])
    np.testing.assert_allclose(class_activation(feature_map, WEIGHT, 0), [[1, 0.5], [0, 0]])
    np.testing.assert_allclose(class_activation(feature_map[:1], np.array([[-1.0], [1.0]]), 0), np.zeros((2, 2)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_overlay_is_as_large_as_the_picture(mode):
    assert overlay(Image.new(mode, (40, 30)), np.eye(2)).size == (40, 30)


def test_an_overlay_is_brightest_where_the_map_is():
    grey = np.asarray(overlay(Image.new("RGB", (40, 40), "grey"), np.array([[1.0, 0.0], [0.0, 0.0]])).convert("L"))
    assert grey[2, 2] > grey[37, 37] + 50


# Grad-CAM


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(Backbone(timm.create_model("test_resnet", num_classes=0), *HALF).eval(), 96, 3).eval()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_grad_cam_is_cam_if_the_head_is_linear_on_the_pooled_map(classifier, pixels, index):
    layer = find_feature_map(classifier.backbone, 96)
    mapped = WithFeatureMap(classifier, classifier.backbone.network.get_submodule(layer["layer"]), layer["channel_axis"])
    with torch.no_grad():
        maps = mapped(torch.tensor(pixels[None]))[1][0].numpy()
    wanted = class_activation(maps, classifier.head.weight.detach().numpy(), index)
    np.testing.assert_allclose(grad_cam(classifier, layer, pixels, index), wanted, atol=1e-4)


class Squared(nn.Module):
    """The sum of squares of the red channel: no head is linear on its map."""

    def __init__(self):
        super().__init__()
        self.red = nn.Conv2d(3, 1, 1, bias=False)
        self.red.weight.data = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)

    def forward(self, pictures):
        return (self.red(pictures) ** 2).sum(dim=(1, 2, 3))[:, None]


def test_grad_cam_is_the_map_weighted_by_its_mean_gradient():
    # Pixels 255 and 0 are 1 and -1 to the network; the gradient of the sum of squares is twice the map, on average 1 where 3 of 4 are 1.
    classifier = Classifier(Backbone(Squared(), *HALF), 1, 2)
    classifier.head.weight.data, classifier.head.bias.data = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    pixels = np.array([[255, 255], [255, 0]], np.uint8)[:, :, None].repeat(3, axis=2)
    layer = last_map(classifier.backbone, 2)
    np.testing.assert_allclose(grad_cam(classifier, layer, pixels, 0), [[1, 1], [1, 0]], atol=1e-5)
    np.testing.assert_allclose(grad_cam(classifier, layer, pixels, 1), [[0, 0], [0, 1]], atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_a_network_of_tokens_has_no_last_map(name):
    assert last_map(Backbone(timm.create_model(name, num_classes=0), *HALF).eval(), 160) is None


@pytest.mark.parametrize(("name", "layer"), [("test_convnext", "norm_pre"), ("mobilenetv3_small_050", "blocks")])
def test_a_network_whose_head_is_not_linear_on_its_map_has_a_last_one(name, layer):
    assert last_map(Backbone(timm.create_model(name, num_classes=0), *HALF).eval(), 160) == {"layer": layer, "channel_axis": 1}
