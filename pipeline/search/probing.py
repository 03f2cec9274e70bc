"""What a network is worth for some pictures: heads on its features, training runs on a sample, learning-rate curves."""

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
from scipy.special import log_softmax
from torch import nn
from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.hardware import Hardware
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.pictures.manifest import Manifest, Picture, read_manifest
from pipeline.training.batches import Batches, TrainingData
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.head import Array, Examples, Head, choose_head, out_of_fold_probs
from pipeline.training.loop import Trainer, prepare, train
from pipeline.training.recipe import Recipe
from pipeline.training.temperature import fit_temperature

_MOST = {"train": 1000, "val": 500}  # pictures that are looked at, but two of each class at least


@dataclass(frozen=True)
class Sample:
    """All pictures, and the train and val pictures of the sample."""

    manifest: Manifest
    train: list[Picture]
    val: list[Picture]

    @property
    def per_class(self) -> float:
        """The median number of training pictures per class."""
        return float(median(Counter(picture.label for picture in self.manifest.train).values()))


def read_sample(manifest: Path, seed: int) -> Sample:
    """The tables of train and val, and a sample of each. Test is not read."""
    table = read_manifest(manifest)
    least = 2 * len(table.class_names)
    train, val = (draw_sample(table.split(split), max(most, least), seed) for split, most in _MOST.items())
    return Sample(table, train, val)


def draw_sample(pictures: list[Picture], most: int, seed: int) -> list[Picture]:
    """At most so many pictures, in their order: of each class as many as of the others, while it has some left."""
    seen: Counter[str] = Counter()
    turns: dict[int, int] = {}  # how many of its class were drawn before it
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        turns[index] = seen[pictures[index].label]
        seen[pictures[index].label] += 1
    return [pictures[index] for index in sorted(sorted(turns, key=turns.__getitem__)[:most])]


_SMALLEST_PROBABILITY = 1e-6  # a probability counts as no less: a head cannot answer with a class that its folds lack


@dataclass(frozen=True)
class Probe:
    """A head to begin with, and what such heads say of pictures that they were not fitted on.

    `losses`: nats, float64 (pictures,); `wrong`: bool (pictures,). Of train and val.
    """

    head: Head
    losses: Array
    wrong: Array


@dataclass(frozen=True)
class SampleRun:
    """What a training run on a sample left.

    `losses`: cross entropy of each val picture at the best epoch, the start included, under the temperature that fits them best, nats,
    float64 (pictures,). `epochs`: after how many it stopped. Seconds: of what is done once before the first epoch, of a pass over the
    training pictures, of one over the val pictures.
    """

    losses: Array
    epochs: int
    once_seconds: float
    train_seconds: float
    val_seconds: float

    def seconds(self, epochs: float, train_times: float, val_times: float) -> float:
        """Those of a run of so many epochs with so many times the pictures, without start and export."""
        return (self.once_seconds + epochs * self.train_seconds) * train_times + (epochs + 1) * self.val_seconds * val_times


@torch.inference_mode()
def embed(backbone: Backbone, batches: Sequence[Array], hardware: Hardware) -> Array:
    """Features, float32 (pictures, D), of batches of pixels, uint8 (batch, S, S, 3)."""
    hardware.place(backbone.eval())
    return np.concatenate([backbone(torch.from_numpy(pixels).to(hardware.device)).cpu().numpy() for pixels in batches])


@torch.inference_mode()
def settle_norms(backbone: Backbone, batches: Sequence[Array], hardware: Hardware) -> None:
    """Give BatchNorm of a network with random weights the statistics of these pictures, without which little comes through."""
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    hardware.place(backbone.train())
    for pixels in batches if norms else []:
        backbone(torch.from_numpy(pixels).to(hardware.device))


def probe(features: Array, labels: Array, count_train: int, folds: Array, l2_grid: Sequence[float], threads: int) -> Probe:
    """Fit heads as the baseline is fitted: on features float32 (pictures, D) and labels int (pictures,), `count_train` of them of train.

    `folds`: int (pictures,), as `out_of_fold_probs` takes them.
    """
    train, val = (Examples(features[part], labels[part]) for part in (slice(count_train), slice(count_train, None)))
    head, history = choose_head(train, val, l2_grid, threads)
    l2 = min(history, key=lambda row: row["val_loss"])["l2"]
    probs = out_of_fold_probs(Examples(features, labels), folds, l2, threads)
    losses = -np.log(np.maximum(probs[np.arange(len(labels)), labels], _SMALLEST_PROBABILITY))
    return Probe(head, losses, probs.argmax(axis=1) != labels)


def join(backbone: Backbone, head: Head, start: str = "probe") -> Classifier:
    """A backbone under a head that was fitted on its features, or, with `start` fresh, under a random one of the same form."""
    classes, num_features = head.weight.shape
    classifier = Classifier(backbone, num_features, classes)
    if start == "probe":
        classifier.head.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    return classifier


def train_on_sample(
    classifier: Classifier, val_pixels: Sequence[Array], data: TrainingData, recipe: Recipe, hardware: Hardware
) -> SampleRun:
    """Train a classifier on a sample, by the regime and recipe. Raises PipelineError."""
    with tempfile.TemporaryDirectory() as folder:
        times = [time.monotonic()]
        trainer = prepare(classifier, val_pixels, recipe, data, hardware, Path(folder, "activations.npy"))
        times.append(time.monotonic())
        train(trainer, lambda _: times.append(time.monotonic()), Checkpoint(Path(folder, "checkpoint.pt")))
        losses = _losses(trainer.model, trainer.val, hardware)
    once, val_seconds, *epochs = np.diff(times).tolist()
    return SampleRun(losses, len(epochs), once, max(float(np.mean(epochs)) - val_seconds, 0.0), val_seconds)


@torch.inference_mode()
def _losses(model: nn.Module, batches: Batches, hardware: Hardware) -> Array:
    model.eval()
    logits = np.concatenate([model(inputs.to(hardware.device)).float().cpu().numpy() for inputs, _ in batches]).astype(np.float64)
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    return np.asarray(-log_softmax(logits / fit_temperature(logits, labels), axis=1)[np.arange(len(labels)), labels])


_LOWEST, _HIGHEST = 1e-7, 1.0
_MEMORY = 0.9  # share of the past in the smoothed loss
_BROKEN = 3.0  # times the lowest loss, at which training has broken down
_FEWEST_STEPS = 10  # steps without which there is nothing to see


@dataclass(frozen=True)
class Curve:
    """The highest learning rate of each step, and the smoothed loss before it."""

    rates: list[float]
    losses: list[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate from which the loss is twice its lowest: large, and at a distance from where training breaks down."""
        lowest = int(np.argmin(self.losses))
        beyond = (rate for rate, loss in zip(self.rates[lowest:], self.losses[lowest:], strict=True) if loss > 2 * self.losses[lowest])
        return float(f"{next(beyond, self.rates[-1]) / 10:.1g}")


def find_rates(trainer: Trainer, steps: int) -> Curve:
    """Train for at most that many steps, the rate rising by the same factor from step to step; the model is of no use afterwards.

    Raises PipelineError where training breaks down before there is anything to see.
    """
    hardware = trainer.hardware
    trainer.begin_epoch(trainer.epochs)
    top = max(group["lr"] for group in trainer.optimiser.param_groups)
    shares = [group["lr"] / top for group in trainer.optimiser.param_groups]
    curve, smoothed = Curve([], []), 0.0
    batches = chain.from_iterable(trainer.train for _ in count())
    for step, (inputs, labels) in enumerate(tqdm(batches, "find-lr", total=steps, disable=None, leave=False), start=1):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** ((step - 1) / (steps - 1))
        for group, share in zip(trainer.optimiser.param_groups, shares, strict=True):
            group["lr"] = rate * share
        with hardware.autocast():
            loss, _ = trainer.loss(inputs.to(hardware.device), labels.to(hardware.device))
        smoothed = _MEMORY * smoothed + (1 - _MEMORY) * float(loss.detach())
        unbiased = smoothed / (1 - _MEMORY**step)
        if not math.isfinite(unbiased) or (step > _FEWEST_STEPS and unbiased > _BROKEN * min(curve.losses)):
            break
        curve.rates.append(rate)
        curve.losses.append(unbiased)
        if step == steps:
            break
        trainer.step(loss, len(trainer.train), f"find-lr, rate {rate:.1e}")
    if len(curve.rates) < _FEWEST_STEPS:
        raise PipelineError(f"find-lr: training broke down after {len(curve.rates)} steps; say precision: fp32, or look at the data")
    return curve
