"""Segmenting as torchvision does it itself, tensor by tensor."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import interpolate

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.stock.networks import NetworkRequest
from pipeline.stock.tasks import load_segmenter

LAST_BIAS = {
    "lraspp_mobilenet_v3_large": "classifier.low_classifier.bias",
    "deeplabv3_mobilenet_v3_large": "classifier.4.bias",
    "fcn_resnet50": "classifier.4.bias",
}


def build(model, num_classes=21):
    return torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)


@pytest.mark.parametrize("model", LAST_BIAS)
@pytest.mark.parametrize("size", [(150, 100), (60, 97)])
def test_a_mask_is_the_argmax_of_torchvisions_own_forward_pass(model, size, own, random_weights, make_picture, published, cpu):
    network, picture = build(model), make_picture(*size)
    prepared = published(model).transforms(resize_size=96)(picture)[None]
    state = random_weights(network)
    with torch.no_grad():
        state[LAST_BIAS[model]] -= network(prepared)["out"].mean((0, 2, 3))  # so that several classes win
    mask = load_segmenter(own(model, state, image_size=96), cpu).segment(picture)
    with torch.no_grad():
        scores = network(prepared)["out"]
        wanted = interpolate(scores, size=size[::-1], mode="bilinear", align_corners=False)[0].argmax(0)
    assert (mask.dtype, len(np.unique(mask)) > 5) == (np.uint8, True)
    assert np.array_equal(mask, wanted.numpy())


def test_a_picture_is_as_large_as_its_publisher_made_it(own, random_weights, make_picture, published, cpu):
    model, seen = "lraspp_mobilenet_v3_large", []
    network, picture = build(model), make_picture(80, 60)
    segmenter = load_segmenter(own(model, random_weights(network)), cpu)
    segmenter.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    segmenter.segment(picture)
    assert torch.equal(seen[0][0], published(model).transforms()(picture))


def test_a_file_with_the_head_that_serves_training_is_the_same_network(own, random_weights, make_picture, cpu):
    model, picture = "fcn_resnet50", make_picture(64, 64)
    state = random_weights(torchvision.models.get_model(model, weights=None, weights_backbone=None, aux_loss=True))
    assert any(key.startswith("aux_classifier.") for key in state)
    plain = {key: tensor for key, tensor in state.items() if not key.startswith("aux_classifier.")}
    masks = [load_segmenter(own(model, each, image_size=64), cpu).segment(picture) for each in (state, plain)]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 2), (3, 5)])
def test_a_picture_may_have_any_size(size, own, random_weights, cpu):
    model = "lraspp_mobilenet_v3_large"
    segmenter = load_segmenter(own(model, random_weights(build(model)), image_size=64), cpu)
    assert segmenter.segment(Image.new("RGB", size, "orange")).shape == size[::-1]


def test_the_classes_are_those_of_the_published_weights(own, random_weights, cpu):
    model = "lraspp_mobilenet_v3_large"
    names = load_segmenter(own(model, random_weights(build(model))), cpu).class_names
    assert (len(names), names[:3], names[15]) == (21, ["background", "aeroplane", "bicycle"], "person")


def test_a_file_may_have_classes_of_its_own(own, random_weights, cpu):
    model, names = "lraspp_mobilenet_v3_large", '["background", "square", "disc"]'
    state = random_weights(build(model, num_classes=3))
    assert load_segmenter(own(model, state, {"class_names": names}), cpu).class_names == ["background", "square", "disc"]


def test_more_classes_than_a_mask_can_hold_are_refused(own, cpu):
    names = str([str(number) for number in range(257)]).replace("'", '"')
    with pytest.raises(PipelineError) as error:
        load_segmenter(own("fcn_resnet50", {"a": torch.zeros(1)}, {"class_names": names}), cpu)
    assert str(error.value) == "own.safetensors: has 257 classes; a mask can hold 256"


@pytest.mark.parametrize("model", LAST_BIAS)
def test_weights_that_are_not_on_this_disk_are_named_and_nothing_is_fetched(model, root, cpu):
    with pytest.raises(PipelineError) as error:
        load_segmenter(NetworkRequest(model, root), cpu)
    url = zoo.torchvision_weights(model).url
    assert str(error.value) == (
        f"--model {model}: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
    )
