"""Split a network behind one of its layers: the front runs once per picture, the rest in every epoch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Backbone, Classifier


@dataclass(frozen=True)
class LayerCall:
    """A layer that answered with a tensor: its name, when it was asked and when it answered, and the form of its answer."""

    name: str
    begun: int
    ended: int
    shape: torch.Size

    @property
    def side(self) -> int | None:
        """The side of a square map, channels first or last."""
        if len(self.shape) != 4:
            return None
        _, first, second, third = self.shape
        return second if second == third else first if first == second else None


class Rear(nn.Module):
    """What of a backbone lies behind one of its layers: the layer's activations (N, …) to features (N, D) float32.

    The layers before it are not run; their weights stay where they are.
    """

    def __init__(self, backbone: Backbone, layer: str, image_size: int, calls: Sequence[LayerCall] | None = None) -> None:
        super().__init__()
        self.backbone, self.layer, self.image_size = backbone, layer, image_size
        self._before = _layers_before(layer, calls or watch_all(backbone, noise(image_size))[0])

    def forward(self, activations: Tensor) -> Tensor:
        pictures, side = len(activations), self.image_size
        answers = {name: activations.new_zeros(()).expand(pictures, *shape[1:]) for name, shape in self._before.items()}
        answers[self.layer] = activations.clone()  # the next layer may work in place
        with _answering({self.backbone.network.get_submodule(name): answer for name, answer in answers.items()}):
            features: Tensor = self.backbone(activations.new_zeros((), dtype=torch.uint8).expand(pictures, side, side, 3))
        return features


class FromActivations(nn.Module):
    """A classifier that begins behind a layer: the layer's activations, or the features where `rear` is None, to logits."""

    def __init__(self, classifier: Classifier, rear: Rear | None) -> None:
        super().__init__()
        self.classifier, self.rear = classifier, rear

    def forward(self, activations: Tensor) -> Tensor:
        return self.classifier.answer(self.rear(activations) if self.rear else activations)


def run_front(backbone: Backbone, layer: str, pixels: Tensor) -> Tensor:
    """What a layer of a backbone gives for pixels (N, S, S, 3) uint8; what lies behind it is not run."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output)
        raise _Reached

    handle = backbone.network.get_submodule(layer).register_forward_hook(keep)
    try:
        with suppress(_Reached):
            backbone(pixels)
    finally:
        handle.remove()
    return seen[0]


def split_at(classifier: Classifier, layer: str | None, image_size: int) -> tuple[FromActivations, Callable[[Tensor], Tensor]]:
    """The part of a classifier behind a layer of its backbone, None for all of it, and what makes its activations of pixels."""
    if layer is None:
        return FromActivations(classifier, None), classifier.backbone
    return FromActivations(classifier, Rear(classifier.backbone, layer, image_size)), partial(run_front, classifier.backbone, layer)


class _Reached(Exception):  # noqa: N818 - no fault: the rest need not be run
    """A front has what it wants."""


def noise(image_size: int) -> Tensor:
    """Two random pictures, always the same: uint8 (2, S, S, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8, generator=generator)


def watch_all(backbone: Backbone, pixels: Tensor) -> tuple[list[LayerCall], dict[str, int]]:
    """The layers that answer with a tensor, in that order, and when each layer was first asked."""
    calls: list[LayerCall] = []
    begun: dict[str, int] = {}
    asked: dict[str, list[int]] = defaultdict(list)
    clock = count()

    def begin(name: str) -> Callable[[nn.Module, object], None]:
        def note(_: nn.Module, __: object) -> None:
            asked[name].append(next(clock))
            begun.setdefault(name, asked[name][-1])

        return note

    def end(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(_: nn.Module, __: object, output: object) -> None:
            since = asked[name].pop()
            if isinstance(output, Tensor):
                calls.append(LayerCall(name, since, next(clock), output.shape))

        return note

    layers = [(name, layer) for name, layer in backbone.network.named_modules() if name]
    handles = [layer.register_forward_pre_hook(begin(name)) for name, layer in layers]
    handles += [layer.register_forward_hook(end(name)) for name, layer in layers]
    with torch.no_grad():
        backbone(pixels.to(next(backbone.buffers()).device))
    for handle in handles:
        handle.remove()
    return calls, begun


def _layers_before(layer: str, calls: Sequence[LayerCall]) -> dict[str, torch.Size]:
    """The outermost layers that answer once and before this one, without being part of it, and the form of their answers."""
    times = Counter(call.name for call in calls)
    before = calls[: [call.name for call in calls].index(layer)]
    around = ["", *(layer[:place] for place, letter in enumerate(layer) if letter == ".")]
    return {
        call.name: call.shape
        for call in before
        if call.name.rpartition(".")[0] in around and call.name not in around and times[call.name] == 1
    }


@contextmanager
def _answering(answers: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let layers give these answers, without being run."""
    for layer, answer in answers.items():
        layer.forward = lambda *_, answer=answer, **__: answer
    try:
        yield
    finally:
        for layer in answers:
            del layer.forward


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

    def _by_resolution(self) -> list[LayerCall]:
        """The last layer of each resolution but the lowest, of those behind which nothing before is needed; the outermost of them."""
        sides: list[int] = []
        for call in self.once:
            if call.side and 1 < call.side < (sides[-1] if sides else self.pixels.shape[1] + 1):
                sides.append(call.side)
        ends: list[LayerCall] = []
        for side in sides[:-1]:
            since = ends[-1].ended if ends else -1
            at_side = [call for call in self.once if call.side == side and call.begun > since]
            at_side.sort(key=lambda call: (call.name.count("."), -call.ended))
            ends += next(([call] for call in at_side[:_TRIES] if self._is_end(call)), [])
        return ends

    def _by_block(self) -> list[LayerCall]:
        """All but the last of the longest row of blocks that give tokens (N, L, D)."""
        rows: dict[str, list[LayerCall]] = defaultdict(list)
        for call in self.once:
            if len(call.shape) == 3:
                rows[call.name.rpartition(".")[0]].append(call)
        row = max(rows.values(), key=len, default=[])
        return [call for call in row[:-1] if self._is_end(call)]

    def _is_end(self, call: LayerCall) -> bool:
        """Whether the features follow from what this layer gives alone."""
        with torch.no_grad():
            try:
                activations = run_front(self.backbone, call.name, self.pixels)
                found = Rear(self.backbone, call.name, self.pixels.shape[1], self.calls)(activations)
            except (RuntimeError, ValueError, IndexError, AssertionError):  # what came before is wanted in a form that zeros have not
                return False
        largest = self.features.abs().max().clamp(min=1e-6)
        return bool((found - self.features).abs().max() <= _TOLERANCE * largest)
