"""The learning rate from step to step, as factors of its highest value."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

_DROP = 0.1
_DROPS_AT = (0.3, 0.6, 0.9)  # shares of the steps, as BiT's
_PLATEAU_EPOCHS = 1  # without a better val loss, after which the rate drops
_MOMENTUM_DIP = 0.1  # of one_cycle


class Plateau:
    """A factor that drops to a tenth after every two epochs in a row without a lower val loss."""

    def __init__(self) -> None:
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def see(self, val_loss: float) -> None:
        """Look at the val loss of an epoch."""
        self.waited += 1
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
        if self.waited > _PLATEAU_EPOCHS:
            self.factor, self.waited = self.factor * _DROP, 0


def make_schedule(kind: str, optimiser: torch.optim.Optimizer, steps: int, warmup: float, plateau: Plateau) -> LRScheduler:
    """The rate rises in a line over the share `warmup` of the steps, and then goes as `kind` says.

    cosine: to 0 along a cosine; step: to a tenth at 30, 60 and 90 %; plateau: as `plateau` says; constant. one_cycle: rises
    and falls along cosines, while the momentum, where there is one, falls by 0.1 and rises again (Smith and Topin, 2019).
    """
    if kind == "one_cycle":
        rates = [group["lr"] for group in optimiser.param_groups]
        total = max(4, steps + 1)  # torch divides by the length of each half
        momentum = momentum_of(optimiser)
        return OneCycleLR(
            optimiser, rates, total_steps=total, pct_start=min(max(warmup, 2 / total), 1 - 1 / total),
            cycle_momentum=momentum > 0, max_momentum=momentum, base_momentum=max(0.0, momentum - _MOMENTUM_DIP),
        )  # fmt: skip
    warm_steps = max(1, round(warmup * steps))
    falls: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: (1 + math.cos(math.pi * (step - warm_steps) / max(1, steps - warm_steps))) / 2,
        "step": lambda step: _DROP ** sum(step >= share * steps for share in _DROPS_AT),
        "plateau": lambda _: plateau.factor,
        "constant": lambda _: 1.0,
    }
    return LambdaLR(optimiser, lambda step: (step + 1) / warm_steps if step < warm_steps else falls[kind](step))


def momentum_of(optimiser: torch.optim.Optimizer) -> float:
    """SGD's momentum, or the first beta of Adam."""
    group = optimiser.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group["momentum"])
