"""Naming pictures as torchvision and timm do it themselves, tensor by tensor; and as well as it is told of them."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.stock.networks import NetworkRequest
from pipeline.stock.tasks import load_classifier
from tests.conftest import HYMENOPTERA

AS_PUBLISHED = {"inception_v3": {"init_weights": False, "transform_input": True}}  # what torchvision sets where it loads its weights
IMAGENET_CLASS = {"ants": 310, "bees": 309}


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "squeezenet1_1", "inception_v3", "swin_t", "densenet121"])
@pytest.mark.parametrize("size", [(300, 200), (61, 97)])
def test_probabilities_are_those_of_torchvisions_own_forward_pass(model, size, own, random_weights, make_picture, published, cpu, root):
    network = torchvision.models.get_model(model, weights=None, **AS_PUBLISHED.get(model, {}))
    state = random_weights(network)
    picture = make_picture(*size)
    picture.save(root / "a.png")
    classifier = load_classifier(own(model, state), cpu)
    prepared = published(model).transforms()(picture)
    assert np.array_equal(classifier.read(root / "a.png"), prepared.numpy())
    with torch.inference_mode():
        wanted = network(prepared[None]).softmax(dim=1).numpy()
    assert np.array_equal(classifier.predict_pixels(prepared[None].numpy()), wanted)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "xcit_nano_12_p16_224"])
def test_probabilities_are_those_of_timms_own_forward_pass(model, own, random_weights, make_picture, cpu, root):
    network = timm.create_model(model)
    state = random_weights(network)
    picture = make_picture(300, 200)
    picture.save(root / "a.png")
    classifier = load_classifier(own(model, state), cpu)
    prepared = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)(picture)
    assert np.array_equal(classifier.read(root / "a.png"), prepared.numpy())
    with torch.inference_mode():
        wanted = network(prepared[None]).softmax(dim=1).numpy()
    assert np.array_equal(classifier.predict_pixels(prepared[None].numpy()), wanted)


def test_a_file_may_have_classes_of_its_own(own, random_weights, cpu):
    state = random_weights(timm.create_model("test_resnet", num_classes=3))
    classifier = load_classifier(own("test_resnet", state, {"class_names": '["a", "b", "c"]'}), cpu)
    assert classifier.class_names == ["a", "b", "c"]
    assert classifier.predict_pixels(np.zeros((2, 3, 160, 160), np.float32)).shape == (2, 3)


def test_a_file_with_other_classes_that_says_nothing_of_them_does_not_fit(own, random_weights, cpu):
    state = random_weights(timm.create_model("test_resnet", num_classes=3))
    with pytest.raises(PipelineError) as error:
        load_classifier(own("test_resnet", state), cpu)
    assert str(error.value) == (
        "own.safetensors: does not fit test_resnet: 2 of its tensors differ, first fc.weight (3x96, not 1000x96), "
        "fc.bias (3, not 1000); name its own architecture, or its classes with --classes"
    )


def test_published_weights_with_older_names_are_understood(monkeypatch, own, random_weights, cpu, root):
    network = torchvision.models.get_model("densenet121", weights=None)
    state = random_weights(network)
    older = {key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.") if "denselayer" in key else key: state[key] for key in state}
    assert older.keys() != state.keys()
    classifier = load_classifier(own("densenet121", older), cpu)
    assert all(torch.equal(tensor, state[key]) for key, tensor in classifier.network.state_dict().items())


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (2500, 1700)])
def test_a_picture_may_have_any_size(size, root, cpu):
    Image.new("RGB", size, "orange").save(root / "a.png")
    classifier = load_classifier(NetworkRequest("tf_efficientnet_lite0", root), cpu)
    assert classifier.read(root / "a.png").shape == (3, 224, 224)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the default network says of hymenoptera's val pictures: their ImageNet classes and the most probable ones."""
    if not HYMENOPTERA.is_file():
        pytest.skip("hymenoptera is not on this disk")
    folder = tmp_path_factory.mktemp("hymenoptera")
    with zipfile.ZipFile(HYMENOPTERA) as archive:
        names = sorted(name for name in archive.namelist() if "/val/" in name and name.endswith(".jpg"))
        for number, name in enumerate(names):
            (folder / f"{number}.jpg").write_bytes(archive.read(name))
    classifier = load_classifier(NetworkRequest("tf_efficientnet_lite0", folder), torch.device("cpu"))
    probs = [classifier.predict_pixels(classifier.read(folder / f"{number}.jpg")[None])[0] for number in range(len(names))]
    truth = [IMAGENET_CLASS[name.split("/")[-2]] for name in names]
    return SimpleNamespace(truth=np.array(truth), named=np.stack(probs).argmax(axis=1), class_names=classifier.class_names)


def test_of_hymenopteras_val_pictures_84_in_a_hundred_are_named_exactly(answers):
    assert len(answers.truth) == 153
    assert (answers.named == answers.truth).mean() >= 0.84


def test_the_names_are_those_of_ants_and_bees(answers):
    assert {answers.class_names[number] for number in answers.truth} == {"ant", "bee"}


def test_the_packaged_network_is_prepared_for_as_its_publisher_says(root, cpu):
    transform = load_classifier(NetworkRequest("tf_efficientnet_lite0", root), cpu).transform
    steps = {type(step).__name__: step for step in transform.transforms}
    assert (steps["Resize"].size, steps["Resize"].interpolation.value, tuple(steps["CenterCrop"].size)) == (256, "bicubic", (224, 224))
    assert steps["Normalize"].mean.tolist() == steps["Normalize"].std.tolist() == [0.5, 0.5, 0.5]


def test_published_weights_come_from_their_publisher(root, cpu):
    url = zoo.torchvision_weights("resnet18").url
    with pytest.raises(PipelineError) as error:
        load_classifier(NetworkRequest("resnet18", root), cpu)
    assert str(error.value) == (
        f"--model resnet18: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
    )
