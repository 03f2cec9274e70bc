"""Cheap measurements on some pictures: heads on features, training runs on a sample, a learning-rate curve."""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.hardware import Hardware
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.pictures.manifest import Manifest, Picture, read_manifest
from pipeline.training.batches import TrainingData
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.head import Examples, Head, fit_baseline, losses_of
from pipeline.training.logistic import Array
from pipeline.training.loop import Trainer, prepare, train, val_logits
from pipeline.training.recipe import Recipe
from pipeline.training.temperature import calibrated_losses

_SAMPLE_SIZE = {"train": 1000, "val": 500}  # pictures at most, but two per class

# Of the learning-rate finder.
_LOWEST, _HIGHEST = 1e-7, 1.0
_MEMORY = 0.9  # weight of the past in the smoothed loss
_DIVERGED = 3.0  # times the lowest loss
_FEWEST_STEPS = 10  # without which the curve shows nothing


@dataclass(frozen=True)
class Sample:
    """The manifest, and the train and val pictures of the sample."""

    manifest: Manifest
    train: list[Picture]
    val: list[Picture]

    @property
    def per_class(self) -> float:
        """The median number of training pictures per class, of the whole manifest."""
        return float(median(Counter(picture.label for picture in self.manifest.train).values()))


def read_sample(manifest: Path, seed: int) -> Sample:
    """Read the manifest and draw a sample of train and of val. No test picture is used."""
    table = read_manifest(manifest)
    fewest = 2 * len(table.class_names)
    train, val = (draw_sample(table.split(split), max(size, fewest), seed) for split, size in _SAMPLE_SIZE.items())
    return Sample(table, train, val)


def draw_sample(pictures: list[Picture], size: int, seed: int) -> list[Picture]:
    """At most `size` pictures, in their order: equally many per class, until a class has none left."""
    seen: Counter[str] = Counter()
    rank: dict[int, int] = {}  # by index: how many pictures of its class were drawn before it
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        rank[index] = seen[pictures[index].label]
        seen[pictures[index].label] += 1
    return [pictures[index] for index in sorted(sorted(rank, key=rank.__getitem__)[:size])]


@dataclass(frozen=True)
class Probe:
    """A head that was fitted on features, and the out-of-fold predictions of such heads for train and val pictures.

    `losses`: nats, float64 (pictures,); `wrong`: bool (pictures,).
    """

    head: Head
    losses: Array
    wrong: Array


def probe(
    features: Array, labels: Array, count_train: int, folds: Array, val_halves: Array, l2_grid: Sequence[float], threads: int
) -> Probe:
    """Fit heads as the stage `train_baseline` does.

    `features`: float32 (pictures, D), the `count_train` train pictures first, then val. `labels`, `folds`: int (pictures,), see
    `out_of_fold_probs`; `val_halves`: see `calibrated_losses`.
    """
    head, _, probs = fit_baseline(Examples(features, labels), count_train, folds, val_halves, l2_grid, threads)
    return Probe(head, losses_of(probs, labels), probs.argmax(axis=1) != labels)


@torch.inference_mode()
def settle_norms(backbone: Backbone, batches: Sequence[Array], hardware: Hardware) -> None:
    """Set the statistics of BatchNorm to those of these pictures. Without them, random weights let little through."""
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    hardware.place(backbone.train())
    for pixels in batches if norms else []:
        backbone(torch.from_numpy(pixels).to(hardware.device))


def with_head(backbone: Backbone, head: Head, start: str = "probe") -> Classifier:
    """A classifier of a backbone and a head that was fitted on its features, or, with `start` fresh, a random head of that shape."""
    classes, num_features = head.weight.shape
    classifier = Classifier(backbone, num_features, classes)
    if start == "probe":
        classifier.head.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    return classifier


@dataclass(frozen=True)
class SampleRun:
    """A training run on a sample: its result and its times.

    `losses`: of each val picture at the best epoch, the start included, see `calibrated_losses`: nats, float64 (pictures,). `epochs`: how
    many were trained. `once_seconds`: before the first epoch. `train_seconds`, `val_seconds`: per epoch.
    """

    losses: Array
    epochs: int
    once_seconds: float
    train_seconds: float
    val_seconds: float

    def seconds(self, epochs: float, train_times: float, val_times: float) -> float:
        """The time of a run of `epochs` epochs on that many times the pictures, without start and export."""
        return (self.once_seconds + epochs * self.train_seconds) * train_times + (epochs + 1) * self.val_seconds * val_times


def train_on_sample(
    classifier: Classifier, val_pixels: Sequence[Array], data: TrainingData, recipe: Recipe, hardware: Hardware
) -> SampleRun:
    """Train a classifier by a recipe without `auto`. Raises PipelineError."""
    with tempfile.TemporaryDirectory() as folder:
        times = [time.monotonic()]
        trainer = prepare(classifier, val_pixels, recipe, data, hardware, Path(folder, "activations.npy"))
        times.append(time.monotonic())
        train(trainer, lambda _: times.append(time.monotonic()), Checkpoint(Path(folder, "checkpoint.pt")))
        logits, labels = val_logits(trainer.model, trainer.val, hardware.device)
        losses = calibrated_losses(logits, labels, data.val_halves)
    # Epoch 0 only scores val, so its time is that of a pass over val, which each later epoch contains.
    once, val_seconds, *epochs = np.diff(times).tolist()
    return SampleRun(losses, len(epochs), once, max(float(np.mean(epochs)) - val_seconds, 0.0), val_seconds)


@dataclass(frozen=True)
class Curve:
    """The highest learning rate of each step, and the smoothed loss before that step."""

    rates: list[float]
    losses: list[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the first rate after the lowest loss whose loss is twice as high: large, but far from divergence."""
        lowest = int(np.argmin(self.losses))
        beyond = (rate for rate, loss in zip(self.rates[lowest:], self.losses[lowest:], strict=True) if loss > 2 * self.losses[lowest])
        return float(f"{next(beyond, self.rates[-1]) / 10:.1g}")


def find_rates(trainer: Trainer, steps: int) -> Curve:
    """Train for at most `steps` steps, at a rate that grows by the same factor from step to step (Smith, 2017).

    The model is of no use afterwards. Raises PipelineError if training diverges before the curve shows anything.
    """
    hardware, groups = trainer.hardware, trainer.optimiser.param_groups
    trainer.begin_epoch(trainer.epochs)
    top = max(group["lr"] for group in groups)
    fractions = [group["lr"] / top for group in groups]
    curve, smoothed = Curve([], []), 0.0
    batches = chain.from_iterable(trainer.train for _ in count())
    for step, (inputs, labels) in enumerate(tqdm(batches, "find-lr", total=steps, disable=None, leave=False), start=1):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** ((step - 1) / (steps - 1))
        for group, fraction in zip(groups, fractions, strict=True):
            group["lr"] = rate * fraction
        with hardware.autocast():
            loss, _ = trainer.loss(inputs.to(hardware.device), labels.to(hardware.device))
        smoothed = _MEMORY * smoothed + (1 - _MEMORY) * float(loss.detach())
        unbiased = smoothed / (1 - _MEMORY**step)
        if not math.isfinite(unbiased) or (step > _FEWEST_STEPS and unbiased > _DIVERGED * min(curve.losses)):
            break
        curve.rates.append(rate)
        curve.losses.append(unbiased)
        if step == steps:
            break
        trainer.step(loss, len(trainer.train))
    if len(curve.rates) < _FEWEST_STEPS:
        raise PipelineError(f"find-lr: training diverged after {len(curve.rates)} steps; set precision: fp32, or check the pictures")
    return curve
