"""The last feature map: found by trying, shown beside the answer, counted work against torchvision's own table."""

import pytest
import timm
import torch
from torch import nn

from pipeline.networks.classifier import Backbone, WithFeatureMap, find_feature_map, with_feature_map
from pipeline.networks.onnx_file import count_work
from pipeline.networks.zoo import find_architecture

HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("timm/test_resnet", "layer4"),
        ("timm/test_vit", None),
        ("mobilenet_v3_small", None),
    ],
)
def test_the_layer_whose_mean_is_the_features_is_found(name, layer, backbone_of):
    found = find_feature_map(backbone_of(name), find_architecture(name).image_size)
    assert found == (layer and {"layer": layer, "channel_axis": 1})


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.permute = nn.Conv2d(3, 5, 3), nn.Identity()

    def forward(self, pictures):
        return self.permute(self.conv(pictures).permute(0, 2, 3, 1)).mean(dim=(1, 2))


def test_channels_may_come_last():
    backbone = Backbone(ChannelsLast(), *HALF)
    layer = find_feature_map(backbone, 8)
    assert layer == {"layer": "permute", "channel_axis": 3}
    features, maps = with_feature_map(backbone, backbone, layer)(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert maps.shape == (2, 5, 6, 6)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), features)


def test_a_map_of_one_place_is_none():
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), *HALF)
    assert find_feature_map(backbone, 8) is None


def test_a_network_without_a_map_stays_as_it_is():
    backbone = Backbone(nn.Flatten(), *HALF)
    assert with_feature_map(backbone, backbone, None) is backbone


def test_the_answer_beside_a_map_is_the_same():
    backbone = Backbone(timm.create_model("test_resnet", num_classes=0), *HALF).eval()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        answer, maps = WithFeatureMap(backbone, backbone.network.layer4, 1)(pixels)
        torch.testing.assert_close(answer, backbone(pixels))
    assert maps.shape[:2] == (2, 96)


def test_work_is_counted_as_torchvision_does(backbone_of):
    # Its table: 11,689,512 parameters and 1.814 GMACs with a head of 1000 classes, which has 513,000 and 0.000512 of them.
    assert count_work(backbone_of("resnet18"), 224) == {"parameters": 11_689_512 - 513_000, "gmacs": pytest.approx(1.814, abs=2e-3)}


class Token(nn.Module):
    """A network whose layer takes a view of a parameter, as CaiT's do."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 2)

    def forward(self, pixels):
        return self.layer(self.token.expand(len(pixels), -1))


def test_work_on_a_parameter_itself_is_counted_too():
    assert count_work(Token(), 8) == {"parameters": 4 + 8 + 2, "gmacs": 8e-9}
