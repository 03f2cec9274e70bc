"""The training loop: an epoch, a look at val, and so on, to the epoch that is best on val."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.training.checkpoint import Checkpoint
from pipeline.training.recipe import DivergedError, Recipe, Row

# Pixels uint8 (N, S, S, 3), or what the model takes in their place, and the numbers of their classes int64 (N,).
Batches = Sequence[tuple[Tensor, Tensor]] | DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Hardware:
    """Where it runs: the device, and whether products are taken in bf16 (`precision`: bf16 or fp32)."""

    device: torch.device
    precision: str

    def place(self, model: nn.Module) -> None:
        """Bring a model there, laid out as convolutions run fastest."""
        model.to(self.device)
        if self.device.type != "mps":  # whose backward pass stumbles over it
            model.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def finetune(
    model: nn.Module, train: Batches, val: Batches, recipe: Recipe, hardware: Hardware, log: Callable[[Row], None], checkpoint: Checkpoint
) -> list[Row]:
    """Train `model` and leave it with the weights of its best epoch, the start included; return a row an epoch.

    It lies on the hardware. Row 0 is the start, of which there is no train figure. Goes on after the last epoch of
    `checkpoint`; its rows are logged again. Raises DivergedError where a loss is not a number.
    """
    history = checkpoint.restore(model, recipe, train)
    for row in history:
        log(row)
    while len(history) <= recipe.epochs and not recipe.best.is_over:
        epoch = len(history)
        title = f"epoch {epoch}/{recipe.epochs}"
        row = {"epoch": epoch, "learning_rate": float(recipe.schedule.get_last_lr()[0])}
        if epoch > 0:
            recipe.begin_epoch(epoch)
            row |= train_epoch(train, recipe, hardware, title)
        row |= score(recipe.average.judged, val, hardware, title)
        recipe.end_epoch(row)
        history.append(row)
        log(row)
        checkpoint.write(model, recipe, train, history)
    model.load_state_dict(recipe.best.state)
    return history


def train_epoch(batches: Batches, recipe: Recipe, hardware: Hardware, title: str) -> Row:
    """One pass over the training pictures: their mean loss, as it is minimised, and accuracy."""
    tally = Tally()
    for number, (pixels, labels) in enumerate(tqdm(batches, title, disable=None, leave=False), start=1):
        pixels, labels = pixels.to(hardware.device), labels.to(hardware.device)  # noqa: PLW2901 - the same, elsewhere
        with hardware.autocast():
            loss, logits = recipe.loss(pixels, labels)
        recipe.step(loss, number, title)
        tally.add(loss, logits, labels)
    return tally.row("train", title)


@torch.inference_mode()
def score(model: nn.Module, batches: Batches, hardware: Hardware, title: str) -> Row:
    """The mean cross entropy and the accuracy on the val pictures as they are."""
    model.eval()
    tally = Tally()
    for pixels, labels in batches:
        pixels, labels = pixels.to(hardware.device), labels.to(hardware.device)  # noqa: PLW2901 - the same, elsewhere
        with hardware.autocast():
            logits = model(pixels).float()
        tally.add(functional.cross_entropy(logits, labels), logits, labels)
    return tally.row("val", title)


class Tally:
    """Sums of a pass: loss, right answers, pictures."""

    def __init__(self) -> None:
        self.loss, self.right, self.count = 0.0, 0, 0

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        self.loss += float(mean_loss.detach()) * len(labels)
        self.right += int((logits.argmax(dim=1) == labels).sum())
        self.count += len(labels)

    def row(self, name: str, title: str) -> Row:
        """The means. Raises DivergedError where the loss is not a number."""
        loss = self.loss / self.count
        if not math.isfinite(loss):
            raise DivergedError(f"{title}: the {name} loss is {loss}; lower the learning rate, or say precision: fp32")
        return {f"{name}_loss": loss, f"{name}_accuracy": self.right / self.count}
