"""Side heads: they answer only in training, and have the published weights but for their last layer."""

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models.googlenet import InceptionAux

from pipeline.networks.classifier import Classifier, load_backbone
from pipeline.networks.regimes import Regime, add_side_heads

# Inception's side head takes no maps of much smaller pictures.
SIDES = {"googlenet": 64, "inception_v3": 299}


@pytest.fixture(scope="module", params=["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, folder_of):
    return folder_of(name)


@pytest.fixture
def model(name, folder):
    backbone, num_features = load_backbone(folder)
    return add_side_heads(Classifier(backbone, num_features, 3), folder, True, SIDES[name])


@pytest.fixture
def pixels(name):
    return torch.randint(0, 256, (2, SIDES[name], SIDES[name], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_side_heads_answer_in_training_for_the_new_classes(model, pixels):
    Regime().train_mode(model, model.classifier, 1)
    with torch.no_grad():
        answer = model(pixels)
    assert [tuple(logits.shape) for logits in answer] == [(2, 3)] * (1 + len(model.heads))


def test_in_use_there_are_the_logits_alone(model, pixels):
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels), model.classifier(pixels))


def test_all_but_their_last_layer_has_the_weights_of_the_folder(model, folder):
    stored = load_file(folder / "weights.safetensors")
    name = "AuxLogits.conv0.conv.weight" if "AuxLogits.conv0.conv.weight" in stored else "aux1.conv.conv.weight"
    assert torch.equal(model.heads[0].get_parameter(name.split(".", 1)[1]), stored[name])


def test_they_learn_and_with_them_the_layers_before(model, pixels):
    Regime().train_mode(model, model.classifier, 1)
    _, *sides = model(pixels)
    sum(side.sum() for side in sides).backward()
    first = next(parameter for parameter in model.classifier.backbone.parameters() if parameter.requires_grad)
    assert first.grad.abs().sum() > 0


def test_the_classifier_itself_knows_nothing_of_them(model):
    assert not [key for key in model.classifier.state_dict() if key.startswith("heads")]


@pytest.mark.slow
def test_pictures_too_small_for_a_side_head_do_without(folder_of):
    backbone, num_features = load_backbone(folder_of("inception_v3"))
    classifier = Classifier(backbone, num_features, 3)
    assert add_side_heads(classifier, folder_of("inception_v3"), True, 96) is classifier


def test_a_side_head_that_refuses_the_maps_is_left_out(folder_of, monkeypatch):
    def refuse(*_):
        raise RuntimeError("Kernel size can't be greater than actual input size")

    monkeypatch.setattr(InceptionAux, "forward", refuse)
    backbone, num_features = load_backbone(folder_of("googlenet"))
    classifier = Classifier(backbone, num_features, 3)
    assert add_side_heads(classifier, folder_of("googlenet"), True, 64) is classifier


def test_most_networks_have_none(folder_of):
    folder = folder_of("mobilenet_v3_small")
    backbone, num_features = load_backbone(folder)
    classifier = Classifier(backbone, num_features, 2)
    assert add_side_heads(classifier, folder, True, 64) is classifier
