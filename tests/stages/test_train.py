"""The stage `train` by every regime: which tensors move, what is stored, and which params are refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table
from pipeline.networks.artifact import verify_model
from pipeline.training.batches import read_training_data
from pipeline.training.loop import start_classifier
from tests.projects import NOBODY, PARAMS, TREES, enter, train_by
from tests.recipes import recipe_of

REGIMES = {
    "frozen": {"regime": "frozen", "learning_rate": 0.01, "epochs": 2},
    "partial": {"regime": "partial", "stages": 2, "balance": "loss", "mixup": 0.2, "epochs": 2},
    "gradual": {"regime": "gradual", "epochs": 4, "layer_decay": 0.5, "ema": 0.9},
    "finetuned": {"regime": "finetuned", "cutmix": 1.0, "augment": "trivial", "accumulate": 2, "clip_norm": 1.0, "epochs": 2},
    "scratch": {"regime": "scratch", "optimiser": "sgd", "schedule": "one_cycle", "dropout": 0.2, "balance": "sampling", "epochs": 2},
}


@pytest.fixture(scope="module")
def project(small_project, tmp_path_factory):
    """A copy of the small project with an entry of `models` per regime, which is the current folder."""
    folder = tmp_path_factory.mktemp("train") / "project"
    shutil.copytree(small_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        write_models(folder, REGIMES)
        yield folder


def write_models(folder, models):
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "models": models}))


@pytest.fixture(scope="module")
def trained(project):
    """The weights of every regime's model, and of the baseline, without `backbone.network.` before their names."""
    for name in REGIMES:
        train_by(name)
    names = ("baseline", *REGIMES)
    return {
        name: {
            key.removeprefix("backbone.network."): value for key, value in load_file(project / f"models/{name}/model.safetensors").items()
        }
        for name in names
    }


def moved(weights, start):
    return {key for key, tensor in weights.items() if not torch.equal(tensor, start[key])}


@pytest.mark.parametrize("name", REGIMES)
def test_the_stored_files_of_every_regime_agree_with_each_other(name, trained, project):
    assert verify_model(project / "models" / name)
    history = read_table(project / f"models/{name}/history.csv")
    assert history[0]["train_loss"] == ""
    assert all(float(row["val_loss"]) > 0 for row in history)


def test_frozen_moves_the_head_alone(trained):
    assert moved(trained["frozen"], trained["baseline"]) == {"head.weight", "head.bias"}


def test_partial_moves_the_last_stages_and_no_batchnorm(trained):
    keys = moved(trained["partial"], trained["baseline"])
    assert {key.split(".")[0] for key in keys} == {"layer2", "layer3", "layer4", "head"}  # the last two of four stages
    assert not {key for key in keys if ".bn" in key}


@pytest.mark.parametrize("name", ["finetuned", "gradual"])
def test_the_whole_network_moves_but_no_batchnorm(name, trained):
    keys = moved(trained[name], trained["baseline"])
    assert {"conv1.0.weight", "layer4.0.conv2.weight", "head.weight"} <= keys
    assert not {key for key in keys if "running_" in key or ".bn" in key}


def test_scratch_begins_elsewhere_and_its_batchnorm_learns(trained):
    assert {"conv1.0.weight", "layer1.0.bn1.running_mean"} <= moved(trained["scratch"], trained["baseline"])


@pytest.mark.parametrize(
    ("regime", "start", "same_backbone", "same_head"),
    [("finetuned", "probe", True, True), ("finetuned", "fresh", True, False), ("scratch", "probe", False, False)],
)
def test_a_training_starts_from_the_baseline_as_far_as_its_recipe_takes_it(regime, start, same_backbone, same_head, project):
    made = (*map(Path, TREES), Path("models/backbone"), Path("data/embeddings"), Path("models/baseline"))
    weights = start_classifier(recipe_of(regime=regime, start=start), read_training_data(*made)).state_dict()
    baseline = load_file(project / "models/baseline/model.safetensors")
    same = {key: torch.equal(weights[key], baseline[key]) for key in ("backbone.network.conv1.0.weight", "head.weight", "head.bias")}
    assert list(same.values()) == [same_backbone, same_head, same_head]


def test_the_stored_params_are_those_that_were_used(trained, project):
    params = read_json(project / "models/frozen/model.json")["params"]
    assert (params["epochs"], params["regime"], params["stages"]) == (2, "frozen", 2)


@pytest.mark.parametrize("name", ["partial", pytest.param("scratch", marks=pytest.mark.slow)])
def test_training_again_gives_the_same_bytes(name, trained, project):
    train_by(name, f"again/{name}")
    for file in ("model.onnx", "model.safetensors", "model.json", "history.csv"):
        assert (project / "again" / name / file).read_bytes() == (project / "models" / name / file).read_bytes()


def test_nothing_is_kept_of_the_fronts_activations(trained, project):
    assert not [path for path in (project / ".cache/checkpoints").rglob("*") if path.is_file()]


def test_more_stages_than_there_are_is_one_line_that_lists_them(project):
    write_models(project, {"partial": {"regime": "partial", "stages": 9}})
    with pytest.raises(PipelineError, match=r"^params\.yaml: models: stages: 9 .* 4 .* act1, layer1, layer2, the features"):
        train_by("partial", "models/none")
    assert not (project / "models/none").exists()
