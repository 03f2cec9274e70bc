"""`pipeline summary` prints layers, shapes, sizes, and what is trained."""

import shutil

import pytest
import torch

from pipeline.__main__ import main
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.networks.classifier import Classifier, load_backbone, save_classifier
from pipeline.stages import backbone


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a backbone of random weights, and a model of three classes on it."""
    root = tmp_path_factory.mktemp("summary")
    (root / "params.yaml").write_text("backbone: {name: test_resnet, weights: none, digest: null}\n")
    backbone.run(backbone.Params(seed=0, name="test_resnet", weights="none", digest=None), root / "models/backbone")
    folder = root / "models/small"
    folder.mkdir()
    (folder / "model.onnx").touch()
    body, num_features = load_backbone(root / "models/backbone")
    save_classifier(Classifier(body, num_features, 3), folder / "model.safetensors")
    facts = {"class_names": ["a", "b", "c"], "preprocessing": {"image_size": 64}, "params": {"l2_grid": [0.1]}}
    sums = {"architecture": sha256_of_file(root / "models/backbone/backbone.json")}
    write_json(folder / "model.json", {**facts, "inputs_sha256": sums})
    return root


@pytest.fixture(autouse=True)
def project(made, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(made))
    monkeypatch.chdir(made)
    return made


def rows(capsys, *arguments):
    """What is printed, a list of words a line."""
    main(["summary", *arguments])
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_backbone_is_shown_alone(capsys, made):
    lines = rows(capsys)
    wanted = sum(tensor.numel() for tensor in load_backbone(made / "models/backbone")[0].parameters())
    assert ["Total", "params:", f"{wanted:,}"] in lines
    assert not any("Linear" in line for line in lines)


def test_a_model_is_shown_with_its_head_at_its_size(capsys):
    lines = rows(capsys, "--model", "small")
    (head,) = [line for line in lines if "(head)" in line]
    assert head[-4:] == ["[1,", "3]", "291", "True"]
    assert any("[1, 64, 64, 3]" in " ".join(line) for line in lines)


def count_trained(capsys):
    """How many parameters of the model are told to be trained."""
    (line,) = [line for line in rows(capsys, "--model", "small") if line[:2] == ["Trainable", "params:"]]
    return int(line[2].replace(",", ""))


def test_the_baselines_head_alone_is_trained(capsys):
    assert count_trained(capsys) == 3 * 96 + 3


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
    assert count_trained(capsys) == 3 * 96 + 3 + wanted(network)
    write_json(path, before)


def parameters(layer):
    return sum(tensor.numel() for tensor in layer.parameters())


def norms(network):
    return sum(parameters(layer) for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))


def test_batchnorm_is_told_to_be_frozen(capsys):
    lines = [line for line in rows(capsys) if any("BatchNorm" in word for word in line)]
    assert lines
    assert {line[-1] for line in lines} == {"False"}


def test_units_are_short(capsys):
    (line,) = [line for line in rows(capsys) if line[:2] == ["Total", "mult-adds"]]
    assert line[2] in ("(M):", "(G):")


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["summary", *arguments])
    assert end.value.code == 1
    return capsys.readouterr().err


def test_another_backbone_than_that_of_params_is_refused(capsys, tmp_path, monkeypatch, made):
    (tmp_path / "models").symlink_to(made / "models")
    (tmp_path / "params.yaml").write_text("backbone: {name: resnet18}\n")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert refusal(capsys) == "models/backbone: holds test_resnet, params.yaml names resnet18; run `dvc repro backbone`\n"


def test_a_model_of_another_backbone_is_told_so(capsys, tmp_path, monkeypatch, made):
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project/params.yaml").write_text("backbone: {name: resnet18}\n")
    shutil.rmtree(tmp_path / "project/models/backbone")
    backbone.run(backbone.Params(seed=0, name="resnet18", weights="none", digest=None), tmp_path / "project/models/backbone")
    fault = "models/small: was trained on another backbone than that in models/backbone; run `dvc repro`\n"
    assert refusal(capsys, "--model", "small") == fault


def test_a_project_without_a_backbone_is_told_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert refusal(capsys) == "models/backbone: is not there; run `dvc repro backbone`\n"


def test_a_model_that_is_not_there_is_told_with_those_that_are(capsys):
    assert refusal(capsys, "--model", "x") == "--model x: there is no such model, neither in models nor as a folder; available: small\n"


def test_nothing_is_changed_by_looking(capsys, made):
    before = {path: path.read_bytes() for path in (made / "models").rglob("*") if path.is_file()}
    main(["summary"])
    assert {path: path.read_bytes() for path in before} == before
    assert torch.is_grad_enabled()
