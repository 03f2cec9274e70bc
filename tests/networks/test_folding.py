"""Frozen norms are folded into convolutions: the same outputs and gradients from the same tensors, and no norm that is used otherwise."""

import copy

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pipeline.networks.folding import depthwise_in_fp32, folded_norms
from pipeline.networks.regimes import freeze_norms


def with_statistics(model):
    """Let the norms of a model be as after training, all different."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4 + 1)
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return model


def build(*layers):
    torch.manual_seed(0)
    return with_statistics(nn.Sequential(*layers))


INPUTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def outcome(model, inputs=INPUTS):
    """The output in training mode, norms frozen, and the gradients of all that is trained."""
    model.train()
    freeze_norms(model)
    model.zero_grad()
    output = model(inputs)
    output.square().sum().backward()
    return output.detach(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("name", "folded"), [("tf_efficientnet_lite0", 49), ("resnet18", 20), ("mobilenetv3_small_050", 34), ("test_vit", 0)]
)
def test_a_folded_network_has_the_outputs_and_gradients_of_the_plain_one(name, folded):
    torch.manual_seed(0)
    size = 160 if name == "test_vit" else 64
    model = timm.create_model(name, num_classes=3, drop_rate=0.0)
    inputs = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain, gradients = outcome(model, inputs)
    before = copy.deepcopy(model.state_dict())
    with folded_norms(model, inputs) as count:
        assert count == folded
        output, found = outcome(model, inputs)
    torch.testing.assert_close(output, plain, rtol=1e-3, atol=1e-4)
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm2d(4, eps=0.1)], ids=["plain", "act", "eps"])
def test_a_norm_behind_a_convolution_is_folded_whatever_it_does_besides(bias, norm):
    model = build(nn.Conv2d(3, 4, 3, bias=bias), norm, nn.Flatten())
    plain, _ = outcome(model)
    with folded_norms(model, INPUTS) as count:
        assert count == 1
        torch.testing.assert_close(outcome(model)[0], plain, rtol=1e-4, atol=1e-4)
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])
    assert torch.equal(outcome(model)[0], plain)


class ReadTwice(nn.Module):
    """A network that also reads the output of the convolution past the norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, inputs):
        maps = self.conv(inputs)
        return (self.norm(maps) + maps).mean(dim=(2, 3))


class RunTwice(ReadTwice):
    """A network whose convolution runs twice."""

    def forward(self, inputs):
        return (self.norm(self.conv(inputs)) + self.conv(2 * inputs)).mean(dim=(2, 3))


ACTIVATION_BETWEEN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
NORM_FIRST = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("model", [ReadTwice(), RunTwice(), ACTIVATION_BETWEEN, NORM_FIRST])
def test_what_is_not_a_convolution_and_a_norm_alone_stays_as_it_is(model):
    with_statistics(model)
    plain, _ = outcome(model)
    with folded_norms(model, INPUTS) as count:
        assert count == 0
        assert torch.equal(outcome(model)[0], plain)


def test_depthwise_convolutions_leave_autocast_and_others_do_not():
    model = build(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    kinds = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(INPUTS)
        with depthwise_in_fp32(model), folded_norms(model, INPUTS):
            model(INPUTS)
    bf16, fp32 = torch.bfloat16, torch.float32
    assert kinds[:3] == [bf16] * 3
    assert kinds[-3:] == [bf16, fp32, bf16]
