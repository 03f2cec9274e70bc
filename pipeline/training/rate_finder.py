"""Which learning rate? The loss while the rate rises from almost nothing until training breaks down (Smith, 2017)."""

import math
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.training.course import Course
from pipeline.training.finetune import Hardware

_LOWEST, _HIGHEST = 1e-7, 1.0
_MEMORY = 0.9  # share of the past in the smoothed loss
_BROKEN = 3.0  # times the lowest loss, at which training has broken down
_LEAST = 10  # steps without which there is nothing to see


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


def find_rates(course: Course, hardware: Hardware, steps: int) -> Curve:
    """Train for at most that many steps, the rate rising by the same factor from step to step; the model is of no use afterwards.

    Raises PipelineError where training breaks down before there is anything to see.
    """
    recipe = course.recipe
    recipe.begin_epoch(recipe.epochs)
    top = max(group["lr"] for group in recipe.optimiser.param_groups)
    shares = [group["lr"] / top for group in recipe.optimiser.param_groups]
    curve, smoothed = Curve([], []), 0.0
    batches = chain.from_iterable(course.train for _ in count())
    for step, (inputs, labels) in enumerate(tqdm(batches, "find-lr", total=steps, disable=None, leave=False), start=1):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** ((step - 1) / (steps - 1))
        for group, share in zip(recipe.optimiser.param_groups, shares, strict=True):
            group["lr"] = rate * share
        with hardware.autocast():
            loss, _ = recipe.loss(inputs.to(hardware.device), labels.to(hardware.device))
        smoothed = _MEMORY * smoothed + (1 - _MEMORY) * float(loss.detach())
        unbiased = smoothed / (1 - _MEMORY**step)
        if not math.isfinite(unbiased) or (step > _LEAST and unbiased > _BROKEN * min(curve.losses)):
            break
        curve.rates.append(rate)
        curve.losses.append(unbiased)
        if step == steps:
            break
        recipe.step(loss, recipe.batches, f"find-lr, rate {rate:.1e}")
    if len(curve.rates) < _LEAST:
        raise PipelineError(f"find-lr: training broke down after {len(curve.rates)} steps; say precision: fp32, or look at the data")
    return curve
