"""`pipeline summary` prints layers, shapes, sizes, and what is trained."""

import shutil

import pytest
import torch

from pipeline.__main__ import main
from pipeline.core.files import read_json, write_json
from pipeline.networks.classifier import load_backbone
from pipeline.stages import backbone
from tests.stored import write_classifier


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a backbone of random weights, and a model of two classes on it."""
    root = tmp_path_factory.mktemp("summary")
    (root / "params.yaml").write_text("backbone: {name: test_resnet, weights: none, digest: null}\n")
    write_classifier(root, "test_resnet")
    return root


@pytest.fixture(autouse=True)
def project(made, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(made))
    monkeypatch.chdir(made)
    return made


def rows(capsys, *arguments):
    """The printed lines, each a list of words."""
    main(["summary", *arguments])
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_model_is_shown_with_its_head_at_its_size(capsys):
    lines = rows(capsys, "--model", "small")
    (head,) = [line for line in lines if "(head)" in line]
    assert head[-4:] == ["[1,", "2]", "194", "True"]
    assert any("[1, 64, 64, 3]" in " ".join(line) for line in lines)


def count_trained(capsys):
    """The number of trainable parameters that is printed for the model."""
    (line,) = [line for line in rows(capsys, "--model", "small") if line[:2] == ["Trainable", "params:"]]
    return int(line[2].replace(",", ""))


def test_the_baselines_head_alone_is_trained(capsys):
    assert count_trained(capsys) == 2 * 96 + 2


@pytest.mark.parametrize(
    ("regime", "batchnorm", "wanted"),
    [
        ("finetuned", "auto", lambda network: parameters(network) - norms(network)),
        ("finetuned", "training", lambda network: parameters(network)),
        ("scratch", "auto", lambda network: parameters(network)),
        ("partial", "training", lambda network: parameters(network.layer4)),
        ("frozen", "training", lambda network: 0),
    ],
)
def test_what_is_trained_is_as_the_models_regime_says(regime, batchnorm, wanted, capsys, made):
    path = made / "models/small/model.json"
    before = read_json(path)
    write_json(path, {**before, "params": {"regime": regime, "stages": 1, "batchnorm": batchnorm, "epochs": 4}})
    network = load_backbone(made / "models/backbone")[0].network
    assert count_trained(capsys) == 2 * 96 + 2 + wanted(network)
    write_json(path, before)


def parameters(layer):
    return sum(tensor.numel() for tensor in layer.parameters())


def norms(network):
    return sum(parameters(layer) for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["summary", *arguments])
    assert end.value.code == 1
    return capsys.readouterr().err


def test_another_backbone_than_that_of_params_is_refused(capsys, tmp_path, monkeypatch, made):
    (tmp_path / "models").symlink_to(made / "models")
    (tmp_path / "params.yaml").write_text("backbone: {name: resnet18}\n")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    fault = refusal(capsys)
    assert all(word in fault for word in ("models/backbone: ", "test_resnet", "resnet18", "run `dvc repro backbone`"))


def test_a_model_of_another_backbone_is_refused(capsys, tmp_path, monkeypatch, made):
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project/params.yaml").write_text("backbone: {name: resnet18}\n")
    shutil.rmtree(tmp_path / "project/models/backbone")
    backbone.run(backbone.Params(seed=0, name="resnet18", weights="none", digest=None), tmp_path / "project/models/backbone")
    fault = refusal(capsys, "--model", "small")
    assert all(word in fault for word in ("models/small: ", "models/backbone", "run `dvc repro`"))


def test_nothing_is_changed_by_looking(capsys, made):
    before = {path: path.read_bytes() for path in (made / "models").rglob("*") if path.is_file()}
    main(["summary"])
    assert {path: path.read_bytes() for path in before} == before
    assert torch.is_grad_enabled()
