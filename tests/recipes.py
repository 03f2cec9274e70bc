"""A recipe without any extra, from which a test departs in what it is about."""

from pipeline.networks.regimes import Regime
from pipeline.training.loop import Trainer
from pipeline.training.recipe import Recipe

PLAIN = {
    "epochs": 3, "batch_size": 8, "accumulate": 1, "optimiser": "adamw", "learning_rate": 0.01, "layer_decay": 1.0, "momentum": 0.9,
    "weight_decay": 0.01, "clip_norm": None, "schedule": "cosine", "warmup": 0.1, "ema": 0.0, "label_smoothing": 0.0, "balance": "none",
    "dropout": 0.0, "min_crop_area": 0.65, "flip": "auto", "augment": "none", "mixup": 0.0, "cutmix": 0.0, "monitor": "val_loss",
    "patience": 9, "precision": "fp32", "stages": 2, "start": "probe", "batchnorm": "auto",
}  # fmt: skip


def settings(**changes):
    """The plain settings, changed."""
    return Recipe(**{"seed": 0, "threads": 1, "regime": "finetuned", **PLAIN, **changes})


def recipe_of(model, batches=4, labels=(0, 1), regime=None, classifier=None, **changes):
    """The plain recipe, changed, for a model with that many batches an epoch."""
    return Trainer(model, classifier or model, regime or Regime(), settings(**changes), batches, labels)
