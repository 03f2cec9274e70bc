"""What a training run is made of besides its loop: what is trained, how fast, on which loss, and when it is over."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import PipelineError
from pipeline.models.classifier import Classifier, Regime
from pipeline.models.side_heads import main_logits
from pipeline.training.averaging import Average
from pipeline.training.schedules import Plateau, make_schedule
from pipeline.training.settings import Settings
from pipeline.training.variation import Mix, class_weights, make_mix

_SIDE_SHARE = 0.3  # of a side head's loss (Szegedy et al., 2015)

Row = dict[str, float]


class DivergedError(PipelineError):
    """A loss is no finite number: these settings lead nowhere, while others may."""


@dataclass
class BestEpoch:
    """Keeps the weights of the epoch that `monitor` ranks first, and tells when no better one is to be hoped for."""

    patience: int
    monitor: str = "val_loss"
    value: float = math.inf  # the lower the better
    waited: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def see(self, row: Row, model: nn.Module) -> None:
        """Take the weights where the figure is the best so far."""
        value = row[self.monitor] * (1 if self.monitor.endswith("loss") else -1)
        self.waited += 1
        if value < self.value:
            self.value, self.waited = value, 0
            self.state = copy.deepcopy(model.state_dict())

    @property
    def is_over(self) -> bool:
        """Whether `patience` epochs went by without a better one."""
        return self.waited >= self.patience


class Recipe:
    """How a model is trained: `settings`, which hold no `auto`, put to work on what the `regime` lets move."""

    def __init__(
        self, model: nn.Module, classifier: Classifier, regime: Regime, settings: Settings, batches: int, labels: Sequence[int]
    ) -> None:
        """`model` holds the `classifier`; `batches`: how many an epoch has; `labels`: of the training pictures."""
        self.model, self.classifier, self.regime, self.settings = model, classifier, regime, settings
        self.epochs, self.batches = int(settings.epochs), batches
        num_classes = classifier.head.out_features
        self.weights = class_weights(labels, num_classes) if settings.balance == "loss" else None
        steps = self.epochs * math.ceil(batches / settings.accumulate)
        classifier.dropout.p = settings.dropout
        self.plateau = Plateau()
        self.optimiser = make_optimiser(regime.stages_of(model, classifier), regime.stages, settings)
        self.schedule = make_schedule(settings.schedule, self.optimiser, steps, settings.warmup, self.plateau)
        self.average = Average(model, settings.ema)
        self.best = BestEpoch(settings.patience, settings.monitor)
        self._mix: Mix = make_mix(float(settings.mixup), settings.cutmix, num_classes)

    def begin_epoch(self, epoch: int) -> None:
        """Switch the model to training, as the regime wants it in this epoch."""
        self.regime.train_mode(self.model, self.classifier, epoch)

    def loss(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss that is minimised on a batch, and the logits (N, classes)."""
        inputs, targets = self._mix(inputs, labels)
        logits, side_logits = main_logits(self.model(inputs))
        return self._cross_entropy(logits, targets) + _SIDE_SHARE * sum(self._cross_entropy(side, targets) for side in side_logits), logits

    def step(self, loss: Tensor, number: int, title: str) -> None:
        """Learn from the loss of batch `number` of an epoch, counted from 1. Raises DivergedError where it is no finite number."""
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"{title}, step {number}: the train loss is {float(loss.detach())}; lower the learning rate, or say precision: fp32"
            )
        together = self.settings.accumulate
        begun = (number - 1) // together * together
        (loss / min(together, self.batches - begun)).backward()  # type: ignore[no-untyped-call]
        if number % together and number < self.batches:
            return
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        self.average.update()

    def end_epoch(self, row: Row) -> None:
        """Look at the figures of an epoch: is it the best, is it time to slow down?"""
        self.plateau.see(row["val_loss"])
        self.best.see(row, self.average.judged)

    def state(self) -> dict[str, Any]:
        """All that `restore` brings back, of plain types and tensors."""
        parts = {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(), "average": self.average.state()}
        return {**parts, "plateau": dict(vars(self.plateau)), "best": dict(vars(self.best))}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.restore(state["average"])
        vars(self.plateau).update(state["plateau"])
        vars(self.best).update(state["best"])

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(logits.device)
        return functional.cross_entropy(logits.float(), targets, weights, label_smoothing=self.settings.label_smoothing)


def make_optimiser(stage_of: dict[nn.Parameter, int], stages: int, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser of these parameters, whose rate falls by `layer_decay` with each stage before the head (at `stages`).

    Biases and the weights of norms do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, stage in stage_of.items():
        rate = float(settings.learning_rate) * settings.layer_decay ** (stages - stage)
        groups.setdefault((rate, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    sorted_groups = sorted(groups.items(), key=lambda group: group[0], reverse=True)
    listed = [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in sorted_groups]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(listed, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.Adam(listed) if settings.optimiser == "adam" else torch.optim.AdamW(listed)
