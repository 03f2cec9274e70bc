"""Side heads: they answer in training alone, take the published weights but for their last layer, and leave with it."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.networks.classifier import Classifier, load_backbone
from pipeline.networks.regimes import Regime, WithSideHeads, add_side_heads
from pipeline.stages import backbone as backbone_stage


@pytest.fixture(scope="module", params=["googlenet", "inception_v3"])
def folder(request, tmp_path_factory):
    """A backbone folder of random weights."""
    path = tmp_path_factory.mktemp("models") / "backbone"
    backbone_stage.run(backbone_stage.Params(seed=0, name=request.param, weights="none", digest=None), path)
    return path


SIDE = 299  # Inception's side head takes no maps of much smaller pictures


@pytest.fixture
def model(folder):
    backbone, num_features = load_backbone(folder)
    return add_side_heads(Classifier(backbone, num_features, 3), folder, True, SIDE)


def draw_pixels():
    return torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_side_heads_answer_in_training_for_the_new_classes(model):
    Regime().train_mode(model, model.classifier, 1)
    with torch.no_grad():
        answer = model(draw_pixels())
    assert [tuple(logits.shape) for logits in answer] == [(2, 3)] * (1 + len(model.heads))


def test_in_use_there_are_the_logits_alone(model):
    with torch.no_grad():
        assert torch.equal(model.eval()(draw_pixels()), model.classifier(draw_pixels()))


def test_all_but_their_last_layer_has_the_weights_of_the_folder(model, folder):
    stored = load_file(folder / "weights.safetensors")
    name = "AuxLogits.conv0.conv.weight" if "AuxLogits.conv0.conv.weight" in stored else "aux1.conv.conv.weight"
    assert torch.equal(model.heads[0].get_parameter(name.split(".", 1)[1]), stored[name])


def test_they_learn_and_with_them_the_layers_before(model):
    Regime().train_mode(model, model.classifier, 1)
    _, *sides = model(draw_pixels())
    sum(side.sum() for side in sides).backward()
    first = next(parameter for parameter in model.classifier.backbone.parameters() if parameter.requires_grad)
    assert first.grad.abs().sum() > 0


def test_the_classifier_itself_knows_nothing_of_them(model):
    assert not [key for key in model.classifier.state_dict() if key.startswith("heads")]


@pytest.mark.parametrize("folder", ["inception_v3"], indirect=True)
def test_pictures_too_small_for_a_side_head_do_without(folder):
    backbone, num_features = load_backbone(folder)
    classifier = Classifier(backbone, num_features, 3)
    assert add_side_heads(classifier, folder, True, 96) is classifier


def test_most_networks_have_none(tmp_path):
    backbone_stage.run(backbone_stage.Params(seed=0, name="shufflenet_v2_x0_5", weights="none", digest=None), tmp_path / "backbone")
    backbone, num_features = load_backbone(tmp_path / "backbone")
    classifier = Classifier(backbone, num_features, 2)
    assert add_side_heads(classifier, tmp_path / "backbone", True, 64) is classifier
    assert not isinstance(classifier, WithSideHeads)
