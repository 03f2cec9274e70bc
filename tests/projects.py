"""A small project: every stage before `train` has run on generated pictures. Tests copy it, or train in it."""

from pathlib import Path

import yaml

from pipeline.commands.upkeep import refresh
from pipeline.core.sections import read_section
from pipeline.stages import backbone, download, embed, split, train, train_baseline
from tests.checkout import make_pictures
from tests.recipes import PLAIN

TREES = ("data/splits/train", "data/splits/val", "data/manifest.csv")
NOBODY = "http://127.0.0.1:9"  # no server listens there
PARAMS = {
    "seed": 3,
    "threads": 1,
    "processes": 1,
    "false_alarm_rate": 0.2,  # four val pictures are enough
    "download": {
        "source": "pictures", "digest": None, "url_mirrors": [], "encoding": None,
        "limits": {"fetch_gigabytes": 1, "fetch_hours": 1, "files": 100, "gigabytes": 1, "ratio": 100},
    },
    "split": {"val": 0.2, "test": 0.3, "folders": "auto", "group": None, "similarity": 0.99, "folders_up_to": 1000, "leak": "repair"},
    "backbone": {"name": "test_resnet", "weights": "none", "digest": None},
    "embed": {"image_size": 32, "batch_size": 8, "cluster": None},
    "train_baseline": {"l2_grid": [0.01, 0.1]},
    "recipe": {**PLAIN, "epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "min_crop_area": 0.8, "patience": 2, "start": "fresh"},
    "evaluate": {"confidence": 0.9},
    "gate": {
        "challenger": "auto", "metric": "top1_accuracy", "margin": 0.0, "error_rate": 0.05, "looks": 26, "tolerance": 0.02,
        "class_drop": 0.05, "class_pictures": 10, "log_loss": 0.1, "ece": 0.05, "latency": 2.0, "size": 2.0, "max_age_days": 180.0,
        "require_approval": False, "hook": None,
    },
}  # fmt: skip
SPACE = """\
tune:
  trials: 8
  startup_trials: 2
  space:
    learning_rate: {low: 1.0e-4, high: 1.0e+6, log: true}  # beyond all reason, so that some trials diverge
    weight_decay: {choices: [0.0, 0.1]}
"""
MODELS = """\
models:   # two
  finetuned: {regime: finetuned, weight_decay: 0.5}  # the whole
  partial: {regime: partial}
"""


def enter(folder, patch):
    """Let the project in `folder` be the current one, without a tracking server."""
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(module, section, *paths):
    module.run(read_section(section, module.Params), *map(Path, paths))


def train_by(name, model=None):
    """Run the stage `train` for an entry of `models`."""
    run(train, f"models.{name}", *TREES, "models/backbone", "data/embeddings", "models/baseline", model or f"models/{name}")


def make_project(folder):
    """Write the pictures and params.yaml into `folder`, the current one, and run the stages before `train`."""
    make_pictures(folder / "pictures", 12)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS) + SPACE + MODELS)
    refresh()
    run(download, "download", "data/raw", "data/source.json")
    run(backbone, "backbone", "models/backbone")
    run(split, "split", "data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
    run(embed, "embed", *TREES, "models/backbone", "data/embeddings")
    made = ("data/embeddings", "data/manifest.csv", "models/backbone", "models/baseline", "models/out_of_fold.csv")
    run(train_baseline, "train_baseline", *made)
