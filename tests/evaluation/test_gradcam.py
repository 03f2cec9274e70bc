"""Grad-CAM against CAM, which it must equal where the head is linear on the pooled map, and against a gradient worked by hand."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pipeline.evaluation.galleries import class_activation, grad_cam
from pipeline.networks.classifier import Backbone, Classifier, WithFeatureMap, find_feature_map, last_map

HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(Backbone(timm.create_model("test_resnet", num_classes=0), *HALF).eval(), 96, 3).eval()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_is_cam_where_the_head_is_linear_on_the_pooled_map(classifier, pixels, index):
    layer = find_feature_map(classifier.backbone, 96)
    shown = WithFeatureMap(classifier, classifier.backbone.network.get_submodule(layer["layer"]), layer["channel_axis"])
    with torch.no_grad():
        maps = shown(torch.tensor(pixels[None]))[1][0].numpy()
    wanted = class_activation(maps, classifier.head.weight.detach().numpy(), index)
    np.testing.assert_allclose(grad_cam(classifier, layer, pixels, index), wanted, atol=1e-4)


class Squared(nn.Module):
    """One map of the red channel, whose squares are summed: no head is linear on that."""

    def __init__(self):
        super().__init__()
        self.red = nn.Conv2d(3, 1, 1, bias=False)
        self.red.weight.data = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)

    def forward(self, pictures):
        return (self.red(pictures) ** 2).sum(dim=(1, 2, 3))[:, None]


def test_it_is_the_map_weighted_by_its_mean_gradient():
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
