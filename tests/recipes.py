"""A recipe without extras, which a test changes in what it is about, and trainers of small modules."""

import numpy as np
import torch

from pipeline.core.hardware import Hardware
from pipeline.networks.regimes import Regime
from pipeline.training.loop import Trainer
from pipeline.training.recipe import Recipe

PLAIN = {
    "epochs": 3, "batch_size": 8, "accumulate": 1, "optimiser": "adamw", "learning_rate": 0.01, "layer_decay": 1.0, "momentum": 0.9,
    "weight_decay": 0.01, "clip_norm": None, "schedule": "cosine", "warmup": 0.1, "ema": 0.0, "label_smoothing": 0.0, "balance": "none",
    "dropout": 0.0, "min_crop_area": 0.65, "flip": "auto", "augment": "none", "mixup": 0.0, "cutmix": 0.0, "monitor": "val_loss",
    "patience": 9, "precision": "fp32", "train_image_size": None, "stages": 2, "start": "probe", "batchnorm": "auto",
}  # fmt: skip
CPU = Hardware(torch.device("cpu"), "fp32")


def recipe_of(**changes):
    """The plain recipe, changed."""
    return Recipe(**{"seed": 0, "threads": 1, "regime": "finetuned", **PLAIN, **changes})


def trainer_of(model, train=((None, range(8)),) * 4, val=(), labels=(0, 1), classifier=None, hardware=CPU, **changes):
    """A trainer of a model by the plain recipe, changed. For single steps the labels in `train` are enough."""
    count = sum(len(labels) for _, labels in val)
    return Trainer(model, classifier or model, Regime(), recipe_of(**changes), train, val, np.arange(count) % 2 == 0, labels, hardware)
