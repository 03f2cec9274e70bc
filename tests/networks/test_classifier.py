"""Backbone and head: the features are the network's own, BatchNorm stays as it was, what is saved comes back."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from pipeline.networks import zoo
from pipeline.networks.classifier import (
    Backbone,
    Classifier,
    WithProbs,
    fill,
    headless,
    load_backbone,
    load_classifier,
    save_classifier,
    save_tensors,
)
from pipeline.networks.regimes import Regime

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw_pixels(count=2, side=32, seed=0):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalise(pixels):
    """What torchvision makes of pixels."""
    steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return steps(pixels.permute(0, 3, 1, 2))


def build_small(num_classes=3):
    """A classifier of two convolutions with BatchNorm between them."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.SyncBatchNorm(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    network = nn.Sequential(*layers)
    return Classifier(Backbone(network, MEAN, STD), 5, num_classes)


def train_mode(classifier, epoch=1, **regime):
    Regime(**regime).train_mode(classifier, classifier, epoch)


def take_step(classifier, learning_rate=0.1):
    """One step of an optimiser over all that has a gradient."""
    optimiser = torch.optim.SGD(classifier.parameters(), lr=learning_rate)
    classifier(draw_pixels(4, 16)).square().sum().backward()
    optimiser.step()


def test_pixels_are_normalised_as_torchvision_does_it():
    pixels = draw_pixels()
    torch.testing.assert_close(Backbone(nn.Identity(), MEAN, STD)(pixels), normalise(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("tf_efficientnet_lite0", "classifier")]
)
def test_features_are_the_input_of_the_networks_own_head(name, head):
    architecture = zoo.find_architecture(name)
    torch.manual_seed(0)
    network = zoo.build(architecture).eval()
    pixels, seen = draw_pixels(2, 64), []
    backbone = Backbone(network, architecture.mean, architecture.std)
    network.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.inference_mode():
        backbone(pixels)
        features = headless(network, architecture).eval()(pixels)
    assert torch.equal(features, seen[0])


@pytest.mark.parametrize(("name", "num_features"), [("googlenet", 1024)])
def test_a_network_with_side_heads_returns_features_while_it_trains(name, num_features, backbone_of):
    classifier = Classifier(backbone_of(name), num_features, 2)
    train_mode(classifier)
    assert classifier(draw_pixels(1, 64)).shape == (1, 2)


def test_features_are_float32_under_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        assert build_small().backbone(draw_pixels(2, 16)).dtype == torch.float32


def test_probabilities_are_the_softmax_of_the_logits():
    classifier, pixels = build_small().eval(), draw_pixels(3, 16)
    logits = classifier(pixels)
    torch.testing.assert_close(WithProbs(classifier, 1.0)(pixels)[0], logits.exp() / logits.exp().sum(dim=1, keepdim=True))


def is_of_norm(key):
    return key.startswith(("backbone.network.1.", "backbone.network.4."))


def test_a_step_leaves_batchnorm_unmoved():
    classifier = build_small()
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items() if is_of_norm(key)}
    train_mode(classifier)
    take_step(classifier)
    assert len(before) == 10  # of each: weight, bias, running mean and variance, number of batches
    assert all(torch.equal(classifier.state_dict()[key], tensor) for key, tensor in before.items())


def test_a_step_moves_all_other_weights():
    classifier = build_small()
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items() if not is_of_norm(key)}
    train_mode(classifier)
    take_step(classifier)
    assert not any(torch.equal(classifier.state_dict()[key], tensor) for key, tensor in before.items())


def test_timms_norms_with_activation_are_frozen_too(backbone_of):
    classifier = Classifier(backbone_of("tf_efficientnet_lite0"), 1280, 2)
    train_mode(classifier)
    norms = [layer for layer in classifier.modules() if hasattr(layer, "running_mean")]
    assert norms
    assert not any(layer.training or layer.weight.requires_grad for layer in norms)


def test_layers_other_than_batchnorm_are_in_training():
    classifier = build_small()
    classifier.eval()
    train_mode(classifier)
    assert classifier.training
    assert classifier.backbone.network[0].training


# Two stages: layers 0 to 2, and 3 to 6.
IN_TWO = {"stages": 2, "stage_of": {str(layer): int(layer > 2) for layer in range(7)}}


def moved_layers(**regime):
    """The layers whose tensors a step changes, their BatchNorm statistics included."""
    classifier = build_small()
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items()}
    train_mode(classifier, **regime)
    take_step(classifier)
    after = classifier.state_dict()
    return {key.removeprefix("backbone.network.").split(".")[0] for key, tensor in before.items() if not torch.equal(tensor, after[key])}


@pytest.mark.parametrize(
    ("regime", "moved"),
    [
        ({"first": 2}, {"head"}),
        ({"first": 1}, {"3", "head"}),
        ({"first": 0}, {"0", "3", "head"}),
        ({"first": 2, "norms": True}, {"head"}),
        ({"first": 1, "norms": True}, {"3", "4", "head"}),
        ({"first": 0, "norms": True}, {"0", "1", "3", "4", "head"}),
    ],
)
def test_a_regime_moves_its_stages_alone_and_batchnorm_of_what_is_frozen_stays(regime, moved, monkeypatch):
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)  # which runs on GPUs alone
    assert moved_layers(**IN_TWO, **regime) == moved


def test_stages_join_one_after_the_other_from_the_last_to_the_first():
    assert [Regime(stages=4, thaw_epochs=4).first_stage(epoch) for epoch in range(1, 7)] == [3, 2, 1, 0, 0, 0]
    assert [Regime(stages=5, thaw_epochs=2).first_stage(epoch) for epoch in (1, 2, 3)] == [2, 0, 0]
    assert [Regime(stages=4, first=2, thaw_epochs=2).first_stage(epoch) for epoch in (1, 2, 3)] == [3, 2, 2]


def test_without_thawing_all_stages_are_there_at_once():
    assert Regime(stages=4, first=1).first_stage(1) == 1


def test_every_parameter_that_ever_moves_has_a_stage():
    classifier = build_small()
    stages = Regime(**IN_TWO, first=1, thaw_epochs=3).stages_of(classifier, classifier)
    names = {parameter: name.removeprefix("backbone.network.") for name, parameter in classifier.named_parameters()}
    assert {names[parameter]: stage for parameter, stage in stages.items()} == {
        "3.weight": 1,
        "3.bias": 1,
        "head.weight": 2,
        "head.bias": 2,
    }


@pytest.fixture(scope="module")
def folder(folder_of):
    return folder_of("mobilenet_v3_small")


def test_a_backbone_is_loaded_frozen_in_eval_mode(folder):
    backbone, num_features = load_backbone(folder)
    assert num_features == 1024
    assert not any(layer.training for layer in backbone.modules())


def test_a_loaded_backbone_has_the_tensors_of_its_folder(folder):
    stored, found = load_file(folder / "weights.safetensors"), load_backbone(folder)[0].network.state_dict()
    assert stored.keys() - found.keys() == {"classifier.3.weight", "classifier.3.bias"}
    assert all(torch.equal(found[key], stored[key]) for key in found)


def test_a_saved_classifier_comes_back_as_it_was(folder, tmp_path):
    backbone, num_features = load_backbone(folder)
    classifier = Classifier(backbone, num_features, 3).to(memory_format=torch.channels_last).eval()
    save_classifier(classifier, tmp_path / "model.safetensors")
    loaded, pixels = load_classifier(folder, tmp_path, 3), draw_pixels(2, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pixels), classifier(pixels), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in classifier.state_dict().items())


class Versioned(nn.Linear):
    """A layer that refuses tensors of no version, as MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        assert metadata["version"] == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_tensors_are_loaded_as_of_the_version_that_is_here():
    layer, tensors = Versioned(1, 1), {"weight": torch.tensor([[3.0]]), "bias": torch.tensor([4.0])}
    fill(layer, tensors)
    assert {key: tensor.tolist() for key, tensor in layer.state_dict().items()} == {"weight": [[3.0]], "bias": [4.0]}
    with pytest.raises(RuntimeError, match="Missing key"):
        fill(layer, {"weight": tensors["weight"]})


def test_a_tensor_that_layers_share_is_stored_for_each_of_them(tmp_path):
    shared = nn.Linear(2, 2, bias=False)
    save_tensors(nn.Sequential(shared, nn.ReLU(), shared).state_dict(), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert {key: tensor.tolist() for key, tensor in saved.items()} == dict.fromkeys(("0.weight", "2.weight"), shared.weight.tolist())


def test_the_normalisation_is_not_among_the_saved_weights(tmp_path):
    save_classifier(build_small(), tmp_path / "model.safetensors")
    assert not [key for key in load_file(tmp_path / "model.safetensors") if key.endswith((".scale", ".offset"))]
