"""Split a network behind one of its layers: the front runs once per picture, the rear in every epoch.

Libraries do not say where a network can be split. `measure` finds layers that end a stage by their output on two random pictures,
and verifies each one: from its activations alone, the rear must return the features of the whole network.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Backbone, Classifier, random_pixels, replaced_forward, run_watched

_TOLERANCE = 1e-4  # between the features of a rear and of the whole network, as a share of the largest feature
_MAX_TRIES = 12  # layers that are tried as the end of one stage


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer that returned a tensor: its name, its begin and end on the clock of the pass, and the shape of its output."""

    name: str
    begun: int
    ended: int
    shape: torch.Size

    @property
    def side(self) -> int | None:
        """The side of a square map, channels first or last; None for any other output."""
        if len(self.shape) != 4:
            return None
        _, first, second, third = self.shape
        return second if second == third else first if first == second else None


@dataclass(frozen=True)
class Depth:
    """The stages of a network, from pixels to features: the layer that ends each stage but the last, and the stage of each layer."""

    ends: tuple[str, ...]
    stage_of: Mapping[str, int]

    @property
    def count(self) -> int:
        """The number of stages."""
        return len(self.ends) + 1


class Rear(nn.Module):
    """The part of a backbone behind one of its layers: the layer's activations (N, …) to features (N, D) float32.

    The layers before it do not run, and all weights stay in the backbone.
    """

    def __init__(self, backbone: Backbone, layer: str, image_size: int, calls: Sequence[LayerCall] | None = None) -> None:
        super().__init__()
        self.backbone, self.layer, self.image_size = backbone, layer, image_size
        self._before = _layers_before(layer, calls or _trace(backbone, random_pixels(image_size))[0])

    def forward(self, activations: Tensor) -> Tensor:
        # A network has one forward pass, in Python, that cannot be entered half-way. So it runs from the start, while the layers before
        # the split return zeros of the right shape: views of one number, which cost neither time nor memory.
        num_pictures, side = len(activations), self.image_size
        outputs = {name: activations.new_zeros(()).expand(num_pictures, *shape[1:]) for name, shape in self._before.items()}
        outputs[self.layer] = activations.clone()  # the next layer may work in place
        with _replaced({self.backbone.network.get_submodule(name): output for name, output in outputs.items()}):
            features: Tensor = self.backbone(activations.new_zeros((), dtype=torch.uint8).expand(num_pictures, side, side, 3))
        return features


class FromActivations(nn.Module):
    """A classifier that begins behind a layer: the layer's activations, or the features if `rear` is None, to logits."""

    def __init__(self, classifier: Classifier, rear: Rear | None) -> None:
        super().__init__()
        self.classifier, self.rear = classifier, rear

    def forward(self, activations: Tensor) -> Tensor:
        return self.classifier.answer(self.rear(activations) if self.rear else activations)


def run_front(backbone: Backbone, layer: str, pixels: Tensor) -> Tensor:
    """Return the output of a layer of a backbone for pixels (N, S, S, 3) uint8. The layers behind it do not run."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)
        raise _Reached

    handle = backbone.network.get_submodule(layer).register_forward_hook(keep)
    try:
        with suppress(_Reached):
            backbone(pixels)
    finally:
        handle.remove()
    return outputs[0]


def split_at(classifier: Classifier, layer: str | None, image_size: int) -> tuple[FromActivations, Callable[[Tensor], Tensor]]:
    """Return the part of a classifier behind a layer of its backbone, and the function from pixels to that layer's activations.

    Without a layer the front is the whole backbone, and the part behind it is the head.
    """
    if layer is None:
        return FromActivations(classifier, None), classifier.backbone
    return FromActivations(classifier, Rear(classifier.backbone, layer, image_size)), partial(run_front, classifier.backbone, layer)


def measure(backbone: Backbone, image_size: int) -> Depth:
    """Return the stages of a backbone for pictures of that side in pixels."""
    trial = _Trial(backbone, image_size)
    ends = [call.ended for call in trial.ends]
    stage_of: dict[str, int] = {}
    for name, _ in backbone.network.named_modules():  # parents come first; a layer that is never called has the stage of its parent
        inherited = stage_of.get(name.rpartition(".")[0], 0)
        stage_of[name] = sum(trial.begun[name] > end for end in ends) if name in trial.begun else inherited
    return Depth(tuple(call.name for call in trial.ends), stage_of)


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass early
    """The front has its output."""


class _Trial:
    """A backbone run on two random pictures, and its layers tried as the ends of stages."""

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        self.backbone, self.pixels = backbone, random_pixels(image_size)
        self.calls, self.begun = _trace(backbone, self.pixels)
        with torch.no_grad():
            self.features = backbone(self.pixels)
        times = Counter(call.name for call in self.calls)
        self.once = [call for call in self.calls if times[call.name] == 1 and call.shape[:1] == (len(self.pixels),)]
        self.ends = self._by_resolution() or self._by_block()

    def _by_resolution(self) -> list[LayerCall]:
        """Return the last layer of each resolution but the lowest at which the network can be split; of nested layers the outermost."""
        sides: list[int] = []
        for call in self.once:
            if call.side and 1 < call.side < (sides[-1] if sides else self.pixels.shape[1] + 1):
                sides.append(call.side)
        ends: list[LayerCall] = []
        for side in sides[:-1]:
            since = ends[-1].ended if ends else -1
            at_side = [call for call in self.once if call.side == side and call.begun > since]
            at_side.sort(key=lambda call: (call.name.count("."), -call.ended))
            ends += next(([call] for call in at_side[:_MAX_TRIES] if self._is_end(call)), [])
        return ends

    def _by_block(self) -> list[LayerCall]:
        """Return all but the last of the longest sequence of sibling blocks that return tokens (N, L, D)."""
        sequences: dict[str, list[LayerCall]] = defaultdict(list)
        for call in self.once:
            if len(call.shape) == 3:
                sequences[call.name.rpartition(".")[0]].append(call)
        longest = max(sequences.values(), key=len, default=[])
        return [call for call in longest[:-1] if self._is_end(call)]

    def _is_end(self, call: LayerCall) -> bool:
        """Whether the features follow from the output of this layer alone: a skip connection past it would change them."""
        with torch.no_grad():
            try:
                activations = run_front(self.backbone, call.name, self.pixels)
                features = Rear(self.backbone, call.name, self.pixels.shape[1], self.calls)(activations)
            except (RuntimeError, ValueError, IndexError, AssertionError):  # a layer behind it does not accept the zeros before it
                return False
        largest = self.features.abs().max().clamp(min=1e-6)
        return bool((features - self.features).abs().max() <= _TOLERANCE * largest)


def _trace(backbone: Backbone, pixels: Tensor) -> tuple[list[LayerCall], dict[str, int]]:
    """Return the calls of layers that returned a tensor, in the order of their ends, and the first begin of each layer."""
    calls: list[LayerCall] = []
    first_begun: dict[str, int] = {}
    running: dict[str, list[int]] = defaultdict(list)  # a layer may call itself
    clock = count()

    def begin(name: str) -> None:
        running[name].append(next(clock))
        first_begun.setdefault(name, running[name][-1])

    def end(name: str, output: object) -> None:
        begun = running[name].pop()
        if isinstance(output, Tensor):
            calls.append(LayerCall(name, begun, next(clock), output.shape))

    run_watched(backbone, pixels, end, begin)
    return calls, first_begun


def _layers_before(layer: str, calls: Sequence[LayerCall]) -> dict[str, torch.Size]:
    """Return the outermost layers that return once, before this layer and outside of it, with the shapes of their outputs."""
    times = Counter(call.name for call in calls)
    before = calls[: [call.name for call in calls].index(layer)]
    around = ["", *(layer[:place] for place, letter in enumerate(layer) if letter == ".")]
    return {
        call.name: call.shape
        for call in before
        if call.name.rpartition(".")[0] in around and call.name not in around and times[call.name] == 1
    }


@contextmanager
def _replaced(outputs: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let each layer return its given output without running."""
    with ExitStack() as stack:
        for layer, output in outputs.items():
            stack.enter_context(replaced_forward(layer, lambda *_, output=output, **__: output))
        yield
