"""How deep a layer lies: a network is a row of stages, found by trying, so that no table of architectures is needed.

A stage is a run of layers at one resolution, as the literature on convolutional networks counts them (C1 to C5 of a ResNet);
of a network of tokens, which has one resolution, it is one block.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.models.classifier import Backbone
from pipeline.models.halves import Call, Rear, noise, run_front, watch_all

_TOLERANCE = 1e-4
_TRIES = 12  # layers that are tried as the end of a stage


@dataclass(frozen=True)
class Depth:
    """The stages of a network, from pixels to features: the layer that ends each but the last, and the stage of each layer."""

    ends: tuple[str, ...]
    stage_of: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many stages there are."""
        return len(self.ends) + 1


def measure(backbone: Backbone, image_size: int) -> Depth:
    """The stages of a backbone for pictures of that side in pixels."""
    trial = _Trial(backbone, image_size)
    ends = [call.ended for call in trial.ends]
    stage_of: dict[str, int] = {}
    for name, _ in backbone.network.named_modules():  # parents come first; a layer that is never asked lies where its parent does
        inherited = stage_of.get(name.rpartition(".")[0], 0)
        stage_of[name] = sum(trial.begun[name] > end for end in ends) if name in trial.begun else inherited
    return Depth(tuple(call.name for call in trial.ends), stage_of)


class _Trial:
    """A backbone run on two random pictures, and its layers tried as the ends of stages."""

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        self.backbone, self.pixels = backbone, noise(image_size)
        self.calls, self.begun = watch_all(backbone, self.pixels)
        with torch.no_grad():
            self.features = backbone(self.pixels)
        times = Counter(call.name for call in self.calls)
        self.once = [call for call in self.calls if times[call.name] == 1 and call.shape[:1] == (len(self.pixels),)]
        self.ends = self._by_resolution() or self._by_block()

    def _by_resolution(self) -> list[Call]:
        """The last layer of each resolution but the lowest, of those behind which nothing before is needed; the outermost of them."""
        sides: list[int] = []
        for call in self.once:
            if call.side and 1 < call.side < (sides[-1] if sides else self.pixels.shape[1] + 1):
                sides.append(call.side)
        ends: list[Call] = []
        for side in sides[:-1]:
            since = ends[-1].ended if ends else -1
            at_side = [call for call in self.once if call.side == side and call.begun > since]
            at_side.sort(key=lambda call: (call.name.count("."), -call.ended))
            ends += next(([call] for call in at_side[:_TRIES] if self._is_end(call)), [])
        return ends

    def _by_block(self) -> list[Call]:
        """All but the last of the longest row of blocks that give tokens (N, L, D)."""
        rows: dict[str, list[Call]] = defaultdict(list)
        for call in self.once:
            if len(call.shape) == 3:
                rows[call.name.rpartition(".")[0]].append(call)
        row = max(rows.values(), key=len, default=[])
        return [call for call in row[:-1] if self._is_end(call)]

    def _is_end(self, call: Call) -> bool:
        """Whether the features follow from what this layer gives alone."""
        with torch.no_grad():
            try:
                activations = run_front(self.backbone, call.name, self.pixels)
                found = Rear(self.backbone, call.name, self.pixels.shape[1], self.calls)(activations)
            except (RuntimeError, ValueError, IndexError, AssertionError):  # what came before is wanted in a form that zeros have not
                return False
        largest = self.features.abs().max().clamp(min=1e-6)
        return bool((found - self.features).abs().max() <= _TOLERANCE * largest)
