"""A backbone and a head, from pixels to logits, and the feature map that class activation maps are drawn from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.core.files import read_json
from pipeline.networks import zoo


class Backbone(nn.Module):
    """A network without its head: pixels (N, S, S, 3) uint8 to features (N, D) float32."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        self.register_buffer("offset", torch.tensor(mean).view(1, 3, 1, 1) / torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.permute(0, 3, 1, 2).float() * cast(Tensor, self.scale) - cast(Tensor, self.offset)
        return cast(Tensor, self.network(scaled)).float()


class Classifier(nn.Module):
    """A backbone and a linear head: pixels (N, S, S, 3) uint8 to logits (N, classes) float32."""

    def __init__(self, backbone: Backbone, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.answer(self.backbone(pixels))

    def answer(self, features: Tensor) -> Tensor:
        """The logits (N, classes) of features (N, D)."""
        return cast(Tensor, self.head(self.dropout(features)))


class WithProbs(nn.Module):
    """A classifier that answers with probabilities, softmax(logits / temperature), (N, classes): what is exported and served."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, (self.classifier(pixels) / self.temperature).softmax(dim=1))


def load_backbone(folder: Path, with_weights: bool = True) -> tuple[Backbone, int]:
    """The backbone of a folder that the stage `backbone` wrote, in eval mode, and the number of its features.

    Its weights are those of the folder, or, without, drawn from torch's current random state.
    """
    facts = read_json(folder / "backbone.json")
    architecture = zoo.Architecture(**facts["architecture"])
    backbone = headless(zoo.build(architecture), architecture)
    if with_weights:
        tensors = load_file(folder / "weights.safetensors")
        fill(backbone.network, {key: tensor for key, tensor in tensors.items() if key not in facts["head_tensors"]})
    return backbone.eval(), facts["num_features"]


def headless(network: nn.Module, architecture: zoo.Architecture) -> Backbone:
    """Take the head and side heads away from a network. Raises PipelineError where there is none."""
    zoo.take_head_away(network, architecture)
    return Backbone(network, architecture.mean, architecture.std)


def load_classifier(backbone: Path, model: Path, num_classes: int) -> Classifier:
    """The classifier that a model folder stores, in eval mode."""
    body, num_features = load_backbone(backbone)
    classifier = Classifier(body, num_features, num_classes)
    fill(classifier, load_file(model / "model.safetensors"))
    return classifier.eval()


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors of a module, as of the versions that its layers have here: MNASNet refuses those of none."""
    state = module.state_dict()
    state.clear()  # the versions stay
    state.update(tensors)
    module.load_state_dict(state)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write all tensors of a classifier."""
    save_tensors(classifier.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, each by itself: what layers of a network share (as in CoaT) is there for each of them."""
    save_file({key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}, path)


_TOLERANCE = 1e-4


class WithFeatureMap(nn.Module):
    """A network that answers, and shows what one of its layers gave: float32 (N, C, h, w)."""

    def __init__(self, network: nn.Module, layer: nn.Module, channel_axis: int) -> None:
        super().__init__()
        self.network = network
        self.channel_axis = channel_axis
        self._layer = (layer,)  # not registered: its tensors keep their one name

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with record_output(self._layer[0]) as seen:
            answer = self.network(pixels)
        return answer, channels_first(seen[-1], self.channel_axis).float()


def with_feature_map(network: nn.Module, backbone: Backbone, feature_map: Mapping[str, Any] | None) -> nn.Module:
    """The network with the map of the layer of its backbone that backbone.json names; as it is where that names none."""
    if feature_map is None:
        return network
    return WithFeatureMap(network, backbone.network.get_submodule(feature_map["layer"]), feature_map["channel_axis"])


def find_feature_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """The layer of a backbone whose output, averaged over its places, is the features; None where there is none.

    It is looked for by trying: a head that is linear on the features is then linear on the pooled map (Zhou et al., 2016).
    """
    features, outputs = _run_watched(backbone, image_size)
    for name, output in reversed(outputs):
        for axis in (1, 3):
            if _is_pooled_to(output, axis, features):
                return {"layer": name, "channel_axis": axis}
    return None


def last_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """The last layer of a backbone that gives a map of more than one place, pooled to the features or not.

    None where none does, or where tokens come after it, as in a vision transformer.
    """
    for name, output in reversed(_run_watched(backbone, image_size)[1]):
        if output.dim() == 3:
            return None
        for axis in (1, 3):
            height, width = channels_first(output, axis).shape[2:]
            if height == width > 1:
                return {"layer": name, "channel_axis": axis}
    return None


@contextmanager
def record_output(layer: nn.Module) -> Iterator[list[Tensor]]:
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


def _run_watched(backbone: Backbone, image_size: int) -> tuple[Tensor, list[tuple[str, Tensor]]]:
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
