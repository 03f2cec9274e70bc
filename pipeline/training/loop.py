"""The training loop: train an epoch, score it on val, keep the best epoch.

`train` is the loop, `Trainer` is the state that it changes, and `prepare` builds a trainer from a recipe and data.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pipeline.core import processes
from pipeline.core.hardware import Hardware
from pipeline.networks.artifact import describe_model
from pipeline.networks.classifier import Classifier, load_backbone, load_classifier
from pipeline.networks.embedding import takes_size
from pipeline.networks.folding import depthwise_in_fp32, folded_norms
from pipeline.networks.regimes import Regime, add_side_heads, main_logits, make_plan
from pipeline.networks.splitting import split_at
from pipeline.pictures.images import Array
from pipeline.training.batches import Batches, TrainingData, ValBatches, activation_batches, batch_sizes, picture_batches
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.recipe import (
    DivergedError,
    EarlyStopping,
    EpochMetrics,
    Plateau,
    Recipe,
    WeightAverage,
    class_weights,
    make_mix,
    make_optimiser,
    make_schedule,
    training_size,
)
from pipeline.training.temperature import calibrated_losses

_LOOK_EVERY = 100  # batches
_SIDE_SHARE = 0.3  # weight of a side head's loss (Szegedy et al., 2015)


def train(trainer: "Trainer", log: Callable[[EpochMetrics], None], checkpoint: Checkpoint) -> list[EpochMetrics]:
    """Train the model, leave it with the weights of its best epoch, the start included, and return the metrics of each epoch.

    Epoch 0 is the start and has no train metrics. A run that was killed continues after the last epoch of `checkpoint`, whose metrics
    are logged again. Raises DivergedError if a loss is not finite.
    """
    history = checkpoint.restore(trainer)
    processes.wait_for_all()  # the leading one may write the checkpoint, or remove it, soon after
    for metrics in history:
        log(metrics)
    with trainer.fast_layers():
        while len(history) <= trainer.epochs and not trainer.stopping.is_over:
            epoch = len(history)
            title = f"epoch {epoch}/{trainer.epochs}"
            metrics = {"epoch": epoch, "learning_rate": float(trainer.schedule.get_last_lr()[0])}
            if epoch > 0:
                trainer.begin_epoch(epoch)
                metrics |= train_epoch(trainer, title)
            scores = score(trainer.average.scored, trainer.val, trainer.val_halves, trainer.hardware.device, title)
            metrics |= processes.of_leader(scores)  # all stop in the same epoch
            trainer.end_epoch(metrics)
            history.append(metrics)
            log(metrics)
            checkpoint.write(trainer, history)
    trainer.model.load_state_dict(trainer.stopping.weights)
    return history


def train_epoch(trainer: "Trainer", title: str) -> EpochMetrics:
    """Run once over the training pictures: the mean of the loss that is minimised, and the accuracy."""
    means, device = RunningMeans(title), trainer.hardware.device
    for number, batch in enumerate(tqdm(trainer.train, title, disable=None, leave=False), start=1):
        inputs, labels = (part.to(device, non_blocking=True) for part in batch)
        with trainer.hardware.autocast():
            loss, logits = trainer.loss(inputs, labels)
        size = trainer.batch_sizes[number - 1]
        own = len(range(size)[processes.share(size)])
        loss = loss * trainer.weight(labels[:own], size)
        trainer.step(loss, number)
        means.add(loss, logits[:own], labels[:own], size)
    return means.metrics()


def score(model: nn.Module, batches: ValBatches, halves: Array, device: torch.device, title: str) -> EpochMetrics:
    """Loss and accuracy on the val pictures as the stored model would have them: in fp32, the loss after temperature scaling.

    `halves`: see `calibrated_losses`. `val_loss_unscaled` is the cross entropy before temperature scaling.
    """
    logits, labels = val_logits(model, batches, device)
    unscaled = float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    check_finite(unscaled, f"{title}: the val loss")
    return {
        "val_loss": float(calibrated_losses(logits, labels, halves).mean()),
        "val_accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "val_loss_unscaled": unscaled,
    }


@torch.inference_mode()
def val_logits(model: nn.Module, batches: ValBatches, device: torch.device) -> tuple[Array, Array]:
    """The logits of all pictures in fp32, float32 (pictures, classes), and their labels, int64 (pictures,)."""
    model.eval()
    own = range(len(batches))[processes.share(len(batches))]  # whole batches: kernels differ by their shape
    scored = [(model(inputs.to(device)).float().cpu().numpy(), labels.numpy()[:, None]) for inputs, labels in map(batches.__getitem__, own)]
    nothing = np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
    logits, labels = (processes.gather(np.concatenate(parts)) for parts in zip(*(scored or [nothing]), strict=True))
    return logits, labels[:, 0]


class Trainer:
    """A classifier in training: its batches, and everything that changes its weights.

    `model` is what the loop runs: the classifier itself, the classifier with side heads, or the part of it behind a frozen front.
    `recipe` contains no `auto`. `labels` are the class numbers of the training pictures.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: Classifier,
        regime: Regime,
        recipe: Recipe,
        train: Batches,
        val: ValBatches,
        val_halves: Array,
        labels: Sequence[int],
        hardware: Hardware,
    ) -> None:
        self.model, self.classifier, self.regime, self.recipe = model, classifier, regime, recipe
        self.replica = model  # what a training pass runs
        self.train, self.val, self.val_halves, self.hardware = train, val, val_halves, hardware
        self.epochs = int(recipe.epochs)
        num_classes = classifier.head.out_features
        classifier.dropout.p = recipe.dropout
        self.mix = make_mix(float(recipe.mixup), recipe.cutmix, num_classes)
        self.class_weights = class_weights(labels, num_classes).to(hardware.device) if recipe.balance == "loss" else None
        self.batch_sizes = batch_sizes(train)
        steps = self.epochs * math.ceil(len(train) / recipe.accumulate)
        self.plateau = Plateau()
        self.optimiser = make_optimiser(regime.stages_of(model, classifier), regime.stages, recipe)
        self.scaler = hardware.make_scaler()
        self.schedule = make_schedule(recipe.schedule, self.optimiser, steps, recipe.warmup, self.plateau)
        self.average = WeightAverage(model, recipe.ema)
        self.stopping = EarlyStopping(recipe.patience, recipe.monitor, math.ceil(recipe.warmup * self.epochs))

    def begin_epoch(self, epoch: int) -> None:
        """Switch the model to training mode, with frozen what the regime freezes in this epoch."""
        self.regime.train_mode(self.model, self.classifier, epoch)
        self.replica = processes.replicate(self.model, self.recipe.seed, epoch)

    @contextmanager
    def fast_layers(self) -> Iterator[None]:
        """Within the block, frozen norms are folded, and depthwise convolutions run in the faster precision."""
        inputs = next((inputs[:2].to(self.hardware.device) for inputs, _ in self.val), None)
        with ExitStack() as stack:
            if inputs is not None and not self.regime.norms:
                stack.enter_context(folded_norms(self.model, inputs))
            if self.hardware.depthwise != self.hardware.precision:
                stack.enter_context(depthwise_in_fp32(self.model))
            yield

    def loss(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits (N, classes)."""
        inputs, targets = self.mix(inputs, labels)
        logits, side_logits = main_logits(self.replica(inputs))
        return self._cross_entropy(logits, targets) + _SIDE_SHARE * sum(self._cross_entropy(side, targets) for side in side_logits), logits

    def weight(self, labels: Tensor, size: int) -> Tensor | float:
        """The weight of this process's pictures of a batch of that size, of which it has these labels, in the loss of the batch."""
        if self.class_weights is None:
            return len(labels) / size
        own = self.class_weights[labels].sum()
        return own / processes.total(own)

    def step(self, loss: Tensor, number: int) -> None:
        """Backpropagate the loss of batch `number`, counted from 1, and update the weights when a group of batches is complete.

        With several processes the loss of the batch is the sum of what each has.
        """
        # The last batch of an epoch may be short, and so may be its group: each picture has the same weight in its step.
        together = self.recipe.accumulate
        first = (number - 1) // together * together
        pictures = sum(self.batch_sizes[first : first + together])
        part = loss / (pictures / self.batch_sizes[number - 1]) * processes.group_size()
        self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        if number % together and number < len(self.batch_sizes):
            return
        self.scaler.unscale_(self.optimiser)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.schedule.step()
        self.average.update()

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Take the epoch's metrics into account for the schedule and for early stopping."""
        self.plateau.see(metrics["val_loss"])
        self.stopping.see(metrics, self.average.scored)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as plain types and tensors."""
        parts = {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(), "average": self.average.state()}
        return {**parts, "scaler": self.scaler.state_dict(), "plateau": dict(vars(self.plateau)), "stopping": dict(vars(self.stopping))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.restore(state["average"])
        vars(self.plateau).update(state["plateau"])
        vars(self.stopping).update(state["stopping"])

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), targets, self.class_weights, label_smoothing=self.recipe.label_smoothing)


class RunningMeans:
    """Loss and accuracy, averaged over the pictures of all batches and all processes.

    They stay on the device, which need not wait for each batch.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.waiting: list[Tensor] = []  # losses that are still on the device
        self.losses: list[float] = []
        self.right: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, size: int) -> None:
        """Add this process's part of a batch of that size: what it adds to the mean loss, the logits and the labels.

        Now and then the losses are looked at: raises DivergedError if one is not finite.
        """
        self.waiting.append(loss.detach())
        self.right.append((logits.argmax(dim=1) == labels).sum())
        self.counts.append(size)
        if len(self.waiting) == _LOOK_EVERY:
            self._look()

    def metrics(self) -> EpochMetrics:
        """`train_loss` and `train_accuracy`. Raises DivergedError if a loss is not finite."""
        self._look()
        pictures = sum(self.counts)
        loss = sum(loss * count for loss, count in zip(self.losses, self.counts, strict=True)) / pictures
        return {"train_loss": loss, "train_accuracy": int(processes.total(torch.stack(self.right).sum())) / pictures}

    def _look(self) -> None:
        for loss in processes.total(torch.stack(self.waiting)).tolist() if self.waiting else ():
            self.losses.append(loss)
            check_finite(loss, f"{self.title}, step {len(self.losses)}: the train loss")
        self.waiting.clear()


def check_finite(loss: float, title: str) -> None:
    """Raise DivergedError if the loss is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"{title} is {loss}; lower the learning rate, or set precision: fp32")


def prepare(
    classifier: Classifier, val_pixels: Sequence[Array], recipe: Recipe, data: TrainingData, hardware: Hardware, activations: Path
) -> Trainer:
    """A trainer of a classifier. Raises PipelineError.

    `val_pixels`: what `decode_val` returns. `activations`: the .npy file that keeps the output of a frozen front.
    """
    size, epochs = data.preprocessing.image_size, int(recipe.epochs)
    plan = make_plan(recipe.regime, recipe.stages, recipe.batchnorm, epochs, recipe.layer_decay < 1, classifier.backbone, size)
    if plan.regime.norms:
        processes.share_norms(classifier)
    model: nn.Module
    if plan.has_front:
        # The front never changes, so it runs once per picture: the loop sees its activations in place of pictures.
        hardware.place(classifier)
        model, front = split_at(classifier, plan.front_end, size)
        with processes.leader_first():
            train_batches, val_batches = activation_batches(data, val_pixels, recipe, front, hardware, activations)
    else:
        model = add_side_heads(classifier, data.backbone, recipe.regime != "scratch", size)
        train_size = training_size(recipe.train_image_size, size, partial(takes_size, classifier.backbone))
        train_batches, val_batches = picture_batches(data, val_pixels, recipe, train_size)
        hardware.place(model)  # before the trainer copies the weights to average them
    return Trainer(model, classifier, plan.regime, recipe, train_batches, val_batches, data.val_halves, data.train_labels, hardware)


def start_classifier(recipe: Recipe, data: TrainingData) -> Classifier:
    """The classifier before its first step: with the baseline's head, or with a random one."""
    if recipe.start == "probe" and recipe.regime != "scratch":
        return load_classifier(data.backbone, data.baseline, len(data.class_names))
    body, num_features = load_backbone(data.backbone, with_weights=recipe.regime != "scratch")
    return Classifier(body, num_features, len(data.class_names))


def describe_training(name: str, recipe: Recipe, data: TrainingData, hardware: Hardware, code: str) -> dict[str, Any]:
    """The facts of a training run, see `describe_model`: model `name`, trained by the module `code`."""
    facts: dict[str, str | int] = {
        "device": hardware.device.type, "precision": hardware.precision, "depthwise": hardware.depthwise, "threads": recipe.threads
    }  # fmt: skip
    return describe_model(name, data.class_names, data.preprocessing, recipe, code, data.inputs, facts, data.learned)
