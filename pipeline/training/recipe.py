"""What a training run is made of besides its loop: optimiser, schedule, augmentation, when to stop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from pipeline.models.classifier import Classifier, train_mode


@dataclass
class BestEpoch:
    """Keeps the weights of the epoch with the lowest val loss, and tells when no better one is to be hoped for."""

    patience: int
    loss: float = math.inf
    waited: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, loss: float, model: nn.Module) -> None:
        """Take the weights where the loss is the lowest so far."""
        self.waited += 1
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    @property
    def is_over(self) -> bool:
        """Whether `patience` epochs went by without a lower loss."""
        return self.waited >= self.patience


@dataclass
class Recipe:
    """What a loop needs besides the model and the pictures."""

    epochs: int
    label_smoothing: float
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    best: BestEpoch


def make_recipe(
    model: Classifier,
    epochs: int,
    steps_an_epoch: int,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    label_smoothing: float,
    patience: int,
) -> Recipe:
    """AdamW, warm-up and cosine, early stopping on the val loss."""
    train_mode(model)  # freezes BatchNorm, whose weights the optimiser then leaves out
    optimiser = make_optimiser(model, learning_rate, weight_decay)
    schedule = make_schedule(optimiser, epochs * steps_an_epoch, warmup)
    return Recipe(epochs, label_smoothing, optimiser, schedule, BestEpoch(patience))


def make_optimiser(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what is trainable; biases and the weights of norms do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def make_schedule(optimiser: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate rises in a line over the share `warmup` of the steps, then falls along a cosine to 0."""
    warm_steps = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warm_steps:
            return (step + 1) / warm_steps
        return (1 + math.cos(math.pi * (step - warm_steps) / max(1, steps - warm_steps))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def make_variation(image_size: int, interpolation: str, min_crop_area: float, flip: bool) -> Callable[[Image.Image], Image.Image]:
    """A random crop of at least that share of the picture, resized; mirrored half the time where `flip` allows."""
    steps: list[nn.Module] = [v2.RandomResizedCrop(image_size, (min_crop_area, 1.0), interpolation=v2.InterpolationMode(interpolation))]
    variation: Callable[[Image.Image], Image.Image] = v2.Compose([*steps, v2.RandomHorizontalFlip()] if flip else steps)
    return variation
