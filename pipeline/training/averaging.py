"""Weights averaged over the steps of training, which often do better than the last ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average:
    """The exponential moving average of a model's weights (Polyak and Juditsky, 1992); with `decay` 0 the model itself.

    The decay rises to `decay` over the first steps, so that a short run is not held to where it started.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self._averaged = AveragedModel(model, avg_fn=_towards(decay), use_buffers=True) if decay else None

    @property
    def judged(self) -> nn.Module:
        """The model that is scored and kept."""
        return self._averaged.module if self._averaged else self.model

    def update(self) -> None:
        """Take a step of the model in."""
        if self._averaged:
            self._averaged.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """What `restore` brings back; of the model itself nothing."""
        return self._averaged.state_dict() if self._averaged else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if self._averaged:
            self._averaged.load_state_dict(state)


def _towards(decay: float) -> Any:
    def blend(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return (averaged + (current - averaged) * (1 - kept)).to(averaged.dtype)  # exactly the same where they are equal: what is frozen

    return blend
