"""The stages of a network, and a network taken apart: the rear answers to the front's activations as the whole does to pixels."""

import copy

import pytest
import torch
from torch import nn

from pipeline.networks import splitting as depth
from pipeline.networks import zoo
from pipeline.networks.classifier import Backbone, Classifier, headless
from pipeline.networks.regimes import Regime
from pipeline.networks.splitting import Rear, run_front, split_at


def build(name):
    architecture = zoo.find_architecture(name)
    torch.manual_seed(0)
    network = zoo.build(architecture)
    return headless(network, architecture).eval()


@pytest.mark.parametrize(
    ("name", "side", "ends"),
    [
        ("resnet18", 64, ("relu", "layer1", "layer2", "layer3")),
        ("vgg11", 64, ("features.1", "features.4", "features.9", "features.14", "features.19")),
        ("mobilenet_v3_small", 64, ("features.0", "features.1", "features.3", "features.8")),
        ("shufflenet_v2_x0_5", 64, ("conv1", "maxpool", "stage2", "stage3")),
        ("tf_efficientnet_lite0", 64, ("bn1", "blocks.1", "blocks.2", "blocks.4")),
        ("timm/swin_tiny_patch4_window7_224", 224, ("patch_embed", "layers.1", "layers.2")),
        ("timm/vit_tiny_patch16_224", 224, tuple(f"blocks.{number}" for number in range(11))),
    ],
)
def test_a_stage_is_a_run_of_layers_at_one_resolution_or_a_block_of_tokens(name, side, ends):
    assert depth.measure(build(name), side).ends == ends


def test_every_layer_has_its_stage():
    found = depth.measure(build("resnet18"), 64)
    assert found.count == 5
    stages = {name: found.stage_of[name] for name in ("conv1", "bn1", "maxpool", "layer1.1.conv2", "layer2.0", "layer4.1.bn2", "fc")}
    assert stages == {"conv1": 0, "bn1": 0, "maxpool": 1, "layer1.1.conv2": 1, "layer2.0": 2, "layer4.1.bn2": 4, "fc": 4}


def test_what_stands_before_the_blocks_of_a_transformer_belongs_to_its_first_stage():
    backbone = build("timm/vit_tiny_patch16_224")
    found = depth.measure(backbone, 224)
    assert (found.stage_of[""], found.stage_of["patch_embed.proj"], found.stage_of["norm"]) == (0, 0, 11)


def test_a_layer_that_is_never_asked_lies_where_its_parent_does():
    found = depth.measure(build("vit_b_32"), 224)  # its attention takes the weights of `out_proj` without asking it
    assert found.stage_of["encoder.layers.encoder_layer_7.self_attention.out_proj"] == 7


def draw_pixels(count, side):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("googlenet", 96), ("densenet121", 64), ("timm/vit_tiny_patch16_224", 224)])
def test_front_and_rear_together_answer_as_the_whole(name, side):
    backbone = build(name)
    pixels = draw_pixels(3, side)
    with torch.no_grad():
        wanted = backbone(pixels)
        for layer in depth.measure(backbone, side).ends[::3]:
            found = Rear(backbone, layer, side)(run_front(backbone, layer, pixels))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_rear_does_not_run_the_front(monkeypatch):
    backbone = build("resnet18")
    with torch.no_grad():
        activations = run_front(backbone, "layer3", draw_pixels(2, 64))
        rear = Rear(backbone, "layer3", 64)
        nn.init.constant_(backbone.network.conv1.weight, torch.nan)
        assert rear(activations).isfinite().all()


def test_a_front_does_not_run_the_rear():
    backbone = build("resnet18")
    asked = []
    backbone.network.layer4.register_forward_hook(lambda *_: asked.append(1))
    run_front(backbone, "layer3", draw_pixels(1, 64))
    assert not asked


def test_after_a_rear_has_run_the_network_is_whole_again():
    backbone, pixels = build("resnet18"), draw_pixels(2, 64)
    with torch.no_grad():
        wanted = backbone(pixels)
        Rear(backbone, "layer2", 64)(run_front(backbone, "layer2", pixels))
        assert torch.equal(backbone(pixels), wanted)


def test_a_rear_leaves_the_activations_as_they_are():
    layers = [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    backbone = Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        activations = run_front(backbone, "1", draw_pixels(2, 16))
        kept = activations.clone()
        Rear(backbone, "1", 16)(activations)
    assert torch.equal(activations, kept)


@pytest.mark.parametrize("layer", ["layer2", None])
def test_training_behind_a_front_moves_the_classifier_itself_as_training_the_whole_would(layer):
    # BatchNorm frozen, no dropout: the gradient behind the cut is that of the whole network with a frozen front.
    pixels, labels = draw_pixels(4, 64), torch.tensor([0, 1, 0, 1])
    classifier = Classifier(build("resnet18"), 512, 2)
    whole = copy.deepcopy(classifier)
    found = depth.measure(classifier.backbone, 64)
    regime = Regime(found.count, found.stage_of, first=3 if layer else 5)
    model, front = split_at(classifier, layer, 64)
    with torch.no_grad():
        activations = front(pixels)
    for trained, holder, inputs in ((model, classifier, activations), (whole, whole, pixels)):
        optimiser = torch.optim.SGD(regime.stages_of(trained, holder), lr=0.1)
        regime.train_mode(trained, holder, 1)
        nn.functional.cross_entropy(trained(inputs), labels).backward()
        optimiser.step()
    before = Classifier(build("resnet18"), 512, 2).state_dict()
    for key, tensor in classifier.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[key], rtol=1e-4, atol=1e-6)
    moved = {
        key.split(".")[2] for key, tensor in classifier.state_dict().items() if "backbone" in key and not torch.equal(tensor, before[key])
    }
    assert moved == ({"layer3", "layer4"} if layer else set())
