"""The stages of a network, and a split network: front and rear together return the features of the whole."""

import copy

import pytest
import torch
from torch import nn

from pipeline.networks.classifier import Backbone, Classifier
from pipeline.networks.regimes import Regime
from pipeline.networks.splitting import Rear, measure, run_front, split_at


@pytest.mark.parametrize(
    ("name", "side", "ends"),
    [
        ("resnet18", 64, ("relu", "layer1", "layer2", "layer3")),
        pytest.param("vgg11", 64, ("features.1", "features.4", "features.9", "features.14", "features.19"), marks=pytest.mark.slow),
        ("mobilenet_v3_small", 64, ("features.0", "features.1", "features.3", "features.8")),
        ("shufflenet_v2_x0_5", 64, ("conv1", "maxpool", "stage2", "stage3")),
        ("tf_efficientnet_lite0", 64, ("bn1", "blocks.1", "blocks.2", "blocks.4")),
        ("squeezenet1_1", 64, ("features.1", "features.4", "features.7")),
        ("timm/test_convnext", 64, ("stem", "stages.1", "stages.2")),
        pytest.param("timm/swin_tiny_patch4_window7_224", 224, ("patch_embed", "layers.1", "layers.2"), marks=pytest.mark.slow),
        pytest.param("timm/vit_tiny_patch16_224", 224, tuple(f"blocks.{number}" for number in range(11)), marks=pytest.mark.slow),
    ],
)
def test_a_stage_is_a_sequence_of_layers_at_one_resolution_or_a_block_of_tokens(name, side, ends, backbone_of):
    assert measure(backbone_of(name), side).ends == ends


class Block(nn.Module):
    """Attention and a norm. torch's attention takes the weights of its layer `out_proj` without calling it."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, tokens):
        return self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])


class Transformer(nn.Module):
    """Patches, three blocks of tokens, a norm and their mean."""

    def __init__(self):
        super().__init__()
        self.patches, self.blocks, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Sequential(Block(), Block(), Block()), nn.LayerNorm(8)

    def forward(self, pictures):
        return self.norm(self.blocks(self.patches(pictures).flatten(2).transpose(1, 2))).mean(dim=1)


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return Backbone(Transformer(), (0.5,) * 3, (0.5,) * 3).eval()


def test_every_layer_has_its_stage(backbone_of):
    depth = measure(backbone_of("resnet18"), 64)
    assert depth.count == 5
    stages = {name: depth.stage_of[name] for name in ("conv1", "bn1", "maxpool", "layer1.1.conv2", "layer2.0", "layer4.1.bn2", "fc")}
    assert stages == {"conv1": 0, "bn1": 0, "maxpool": 1, "layer1.1.conv2": 1, "layer2.0": 2, "layer4.1.bn2": 4, "fc": 4}


def test_a_transformer_has_a_stage_per_block_and_its_patches_belong_to_the_first(transformer):
    depth = measure(transformer, 16)
    assert depth.ends == ("blocks.0", "blocks.1")
    assert (depth.stage_of[""], depth.stage_of["patches"], depth.stage_of["norm"]) == (0, 0, 2)


def test_a_layer_that_is_never_called_has_the_stage_of_its_parent(transformer):
    assert measure(transformer, 16).stage_of["blocks.2.attention.out_proj"] == 2


class Skips(nn.Module):
    """A network whose last layer also takes the output of the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(channels, 4, 3, 2, 1) for channels in (3, 4, 4))

    def forward(self, pictures):
        first = self.first(pictures)
        return self.third(self.second(first)).mean(dim=(2, 3)) + first.mean(dim=(2, 3))


def test_a_layer_with_a_connection_past_it_ends_no_stage():
    assert measure(Backbone(Skips(), (0.5,) * 3, (0.5,) * 3), 16).ends == ("first",)


def draw_pixels(count, side):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("googlenet", 64), ("densenet121", 64), ("transformer", 16)])
def test_front_and_rear_together_answer_as_the_whole(name, side, backbone_of, transformer):
    backbone = transformer if name == "transformer" else backbone_of(name)
    pixels = draw_pixels(3, side)
    with torch.no_grad():
        wanted = backbone(pixels)
        for layer in measure(backbone, side).ends[::3]:
            found = Rear(backbone, layer, side)(run_front(backbone, layer, pixels))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_rear_does_not_run_the_front(backbone_of):
    backbone = backbone_of("resnet18")
    with torch.no_grad():
        activations = run_front(backbone, "layer3", draw_pixels(2, 64))
        rear = Rear(backbone, "layer3", 64)
        nn.init.constant_(backbone.network.conv1.weight, torch.nan)
        assert rear(activations).isfinite().all()


def test_a_front_does_not_run_the_rear(backbone_of):
    backbone = backbone_of("resnet18")
    asked = []
    backbone.network.layer4.register_forward_hook(lambda *_: asked.append(1))
    run_front(backbone, "layer3", draw_pixels(1, 64))
    assert not asked


def test_after_a_rear_has_run_the_network_is_whole_again(backbone_of):
    backbone, pixels = backbone_of("resnet18"), draw_pixels(2, 64)
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
def test_training_behind_a_front_moves_the_classifier_itself_as_training_the_whole_would(layer, backbone_of):
    # BatchNorm frozen, no dropout: the gradient behind the cut is that of the whole network with a frozen front.
    pixels, labels = draw_pixels(4, 64), torch.tensor([0, 1, 0, 1])
    classifier = Classifier(backbone_of("resnet18"), 512, 2)
    whole = copy.deepcopy(classifier)
    found = measure(classifier.backbone, 64)
    regime = Regime(found.count, found.stage_of, first=3 if layer else 5)
    model, front = split_at(classifier, layer, 64)
    with torch.no_grad():
        activations = front(pixels)
    for trained, holder, inputs in ((model, classifier, activations), (whole, whole, pixels)):
        optimiser = torch.optim.SGD(regime.stages_of(trained, holder), lr=0.1)
        regime.train_mode(trained, holder, 1)
        nn.functional.cross_entropy(trained(inputs), labels).backward()
        optimiser.step()
    before = Classifier(backbone_of("resnet18"), 512, 2).state_dict()  # its backbone is the same
    for key, tensor in classifier.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[key], rtol=1e-4, atol=1e-6)
    moved = {
        key.split(".")[2] for key, tensor in classifier.state_dict().items() if "backbone" in key and not torch.equal(tensor, before[key])
    }
    assert moved == ({"layer3", "layer4"} if layer else set())
