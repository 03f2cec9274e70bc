"""What a network is worth for some pictures: heads on its features, and training runs on a sample."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from pipeline.models.classifier import Backbone, Classifier
from pipeline.training.batches import Material
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.course import prepare
from pipeline.training.finetune import Batches, Hardware, finetune
from pipeline.training.head import Array, Examples, Head, choose_head, out_of_fold_probs
from pipeline.training.settings import Settings
from pipeline.training.temperature import fit_temperature

_LEAST = 1e-6  # a probability counts as no less: a head cannot answer with a class that its folds lack


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
    losses = -np.log(np.maximum(probs[np.arange(len(labels)), labels], _LEAST))
    return Probe(head, losses, probs.argmax(axis=1) != labels)


def join(backbone: Backbone, head: Head, start: str = "probe") -> Classifier:
    """A backbone under a head that was fitted on its features, or, with `start` fresh, under a random one of the same form."""
    classes, num_features = head.weight.shape
    classifier = Classifier(backbone, num_features, classes)
    if start == "probe":
        classifier.head.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    return classifier


def train_on_sample(classifier: Classifier, material: Material, settings: Settings, folder: Path, hardware: Hardware) -> SampleRun:
    """Train a classifier by the regime and recipe of `settings`. Raises PipelineError.

    `folder`: the backbone's, as the stage of that name wrote it.
    """
    with tempfile.TemporaryDirectory() as kept:
        times = [time.monotonic()]
        course = prepare(classifier, material, settings, folder, hardware, Path(kept, "activations.npy"))
        times.append(time.monotonic())
        finetune(course.model, course.train, course.val, course.recipe, hardware, lambda _: times.append(time.monotonic()),
                 Checkpoint(Path(kept, "checkpoint.pt")))  # fmt: skip
        losses = _losses(course.model, course.val, hardware)
    once, val_seconds, *epochs = np.diff(times).tolist()
    return SampleRun(losses, len(epochs), once, max(float(np.mean(epochs)) - val_seconds, 0.0), val_seconds)


@torch.inference_mode()
def _losses(model: nn.Module, batches: Batches, hardware: Hardware) -> Array:
    model.eval()
    logits = np.concatenate([model(inputs.to(hardware.device)).float().cpu().numpy() for inputs, _ in batches]).astype(np.float64)
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    return np.asarray(-log_softmax(logits / fit_temperature(logits, labels), axis=1)[np.arange(len(labels)), labels])
