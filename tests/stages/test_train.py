"""The stage `train` by every regime: what moves, what is stored, what bad params are told."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.commands.upkeep import refresh
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table
from pipeline.core.params import read_section
from pipeline.networks.artifact import verify_model
from pipeline.stages import backbone, download, embed, split, train, train_baseline
from tests.test_pipeline import PARAMS

REGIMES = {
    "frozen": {"regime": "frozen", "start": "fresh", "learning_rate": 0.01},
    "partial": {"regime": "partial", "stages": 2, "start": "fresh", "balance": "loss", "mixup": 0.2},
    "gradual": {"regime": "gradual", "start": "fresh", "epochs": 4, "layer_decay": 0.5, "ema": 0.9},
    "finetuned": {"regime": "finetuned", "start": "fresh", "cutmix": 1.0, "augment": "trivial", "accumulate": 2, "clip_norm": 1.0},
    "scratch": {"regime": "scratch", "optimiser": "sgd", "schedule": "one_cycle", "dropout": 0.2, "balance": "sampling"},
}
TREES = ("data/splits/train", "data/splits/val", "data/manifest.csv")


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_pictures):
    """A folder in which all stages before `train` have run."""
    folder = tmp_path_factory.mktemp("project")
    make_pictures(folder / "pictures", 10)
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "models": REGIMES}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
        refresh()
        run(download, "download", "data/raw.zip", "data/source.json")
        run(backbone, "backbone", "models/backbone")
        run(split, "split", "data/raw.zip", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
        run(embed, "embed", *TREES, "models/backbone", "data/embeddings")
        made = ("data/embeddings", "data/manifest.csv", "models/backbone", "models/baseline", "models/out_of_fold.csv")
        run(train_baseline, "train_baseline", *made)
        yield folder


def run(module, section, *paths):
    from pathlib import Path

    module.run(read_section(section, module.Params), *map(Path, paths))


def train_by(name, model=None):
    run(train, f"models.{name}", *TREES, "models/backbone", "data/embeddings", "models/baseline", model or f"models/{name}")


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
def test_the_model_of_every_regime_is_stored_as_it_answers(name, trained, project):
    assert verify_model(project / "models" / name)
    history = read_table(project / f"models/{name}/history.csv")
    assert history[0]["train_loss"] == ""
    assert all(float(row["val_loss"]) > 0 for row in history)


def test_frozen_moves_the_head_alone(trained):
    assert moved(trained["frozen"], trained["baseline"]) == {"head.weight", "head.bias"}


def test_partial_moves_the_last_stages_and_no_batchnorm(trained):
    found = {key.split(".")[1] for key in moved(trained["partial"], trained["baseline"]) if key.startswith("features")}
    assert found == {str(number) for number in range(4, 13)}  # the two lowest resolutions of MobileNet v3 small
    assert not {key for key in moved(trained["partial"], trained["baseline"]) if "running_" in key}


@pytest.mark.parametrize("name", ["finetuned", "gradual"])
def test_the_whole_network_moves_but_no_batchnorm(name, trained):
    found = moved(trained[name], trained["baseline"])
    assert "features.0.0.weight" in found
    assert not {key for key in found if "running_" in key}


def test_scratch_begins_elsewhere_and_its_batchnorm_learns(trained):
    found = moved(trained["scratch"], trained["baseline"])
    assert {"features.0.0.weight", "features.0.1.running_mean"} <= found


def test_the_stored_params_are_the_numbers_that_auto_stood_for(trained, project):
    params = read_json(project / "models/frozen/model.json")["params"]
    assert (params["epochs"], params["regime"], params["stages"]) == (2, "frozen", 2)


@pytest.mark.parametrize("name", ["partial", "scratch"])
def test_training_again_gives_the_same_bytes(name, trained, project):
    train_by(name, f"again/{name}")
    for file in ("model.onnx", "model.safetensors", "model.json", "history.csv"):
        assert (project / "again" / name / file).read_bytes() == (project / "models" / name / file).read_bytes()


def test_nothing_is_kept_of_the_fronts_activations(trained, project):
    assert not [path for path in (project / ".cache/checkpoints").rglob("*") if path.is_file()]


def test_more_stages_than_there_are_is_one_line_that_lists_them(project, monkeypatch):
    entry = {"regime": "partial", "stages": 9}
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "models": {"partial": entry}}))
    with pytest.raises(PipelineError) as error:
        train_by("partial", "models/none")
    assert str(error.value) == (
        "params.yaml: models: stages: 9 are more than the 5 of this backbone, which end at features.0, features.1, features.3, "
        "features.8, the features; choose fewer"
    )
    assert not (project / "models/none").exists()
