"""The last feature map of a network: which layer gives it, and how it comes out beside the answer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.models.classifier import Backbone

_TOLERANCE = 1e-4


class WithMap(nn.Module):
    """A network that answers, and shows what one of its layers gave: float32 (N, C, h, w)."""

    def __init__(self, network: nn.Module, layer: nn.Module, channel_axis: int) -> None:
        super().__init__()
        self.network = network
        self.channel_axis = channel_axis
        self._layer = (layer,)  # not registered: its tensors keep their one name

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with watched(self._layer[0]) as seen:
            answer = self.network(pixels)
        return answer, channels_first(seen[-1], self.channel_axis).float()


def with_map(network: nn.Module, backbone: Backbone, feature_map: Mapping[str, Any] | None) -> nn.Module:
    """The network with the map of the layer of its backbone that backbone.json names; as it is where that names none."""
    if feature_map is None:
        return network
    return WithMap(network, backbone.network.get_submodule(feature_map["layer"]), feature_map["channel_axis"])


def find_feature_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """The layer of a backbone whose output, averaged over its places, is the features; None where there is none.

    It is looked for by trying: a head that is linear on the features is then linear on the pooled map (Zhou et al., 2016).
    """
    features, outputs = _try(backbone, image_size)
    for name, output in reversed(outputs):
        for axis in (1, 3):
            if _is_pooled_to(output, axis, features):
                return {"layer": name, "channel_axis": axis}
    return None


def last_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """The last layer of a backbone that gives a map of more than one place, pooled to the features or not.

    None where none does, or where tokens come after it, as in a vision transformer.
    """
    for name, output in reversed(_try(backbone, image_size)[1]):
        if output.dim() == 3:
            return None
        for axis in (1, 3):
            height, width = channels_first(output, axis).shape[2:]
            if height == width > 1:
                return {"layer": name, "channel_axis": axis}
    return None


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer gives out within the block."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output)

    handle = layer.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def channels_first(maps: Tensor, channel_axis: int) -> Tensor:
    """Maps with their channels where `channel_axis` says, as (N, C, h, w)."""
    return maps if channel_axis == 1 else maps.permute(0, 3, 1, 2)


def _try(backbone: Backbone, image_size: int) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The features of two random pictures, and what each layer gave on the way that has the form of maps or tokens, in their order."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    outputs: list[tuple[str, Tensor]] = []
    handles = [layer.register_forward_hook(_note(outputs, name)) for name, layer in backbone.network.named_modules() if name]
    with torch.no_grad():
        features = backbone(pixels)
    for handle in handles:
        handle.remove()
    return features, outputs


def _note(outputs: list[tuple[str, Tensor]], name: str) -> Callable[[nn.Module, object, object], None]:
    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() in (3, 4):
            outputs.append((name, output))

    return note


def _is_pooled_to(output: Tensor, axis: int, features: Tensor) -> bool:
    if output.dim() != 4:
        return False
    maps = channels_first(output, axis)
    if maps.shape[:2] != features.shape or maps.shape[2] * maps.shape[3] == 1:
        return False
    scale = cast(float, features.abs().max().item())
    return bool((maps.mean(dim=(2, 3)) - features).abs().max().item() <= _TOLERANCE * max(scale, 1e-6))
