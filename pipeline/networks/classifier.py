"""A backbone and a head, from pixels to logits, and the feature map behind Grad-CAM and class activation maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.core.files import read_json
from pipeline.networks import zoo

_TOLERANCE = 1e-4  # between a pooled map and the features, as a share of the largest feature


class Backbone(nn.Module):
    """A network without its head: pixels (N, S, S, 3) uint8 to features (N, D) float32."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        self.register_buffer("offset", torch.tensor(mean).view(1, 3, 1, 1) / torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        # Normalisation is part of the network, so that it is part of the exported graph: whoever serves it sends pixels.
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
        """Return the logits (N, classes) of features (N, D)."""
        return cast(Tensor, self.head(self.dropout(features)))


class WithProbs(nn.Module):
    """A classifier that returns probabilities (N, classes), softmax(logits / temperature), and features (N, D).

    It computes what a stored model answers.
    """

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.backbone(pixels)
        return (self.classifier.answer(features) / self.temperature).softmax(dim=1), features


class WithFeatureMap(nn.Module):
    """A network that also returns the output of one of its layers: float32 (N, C, h, w)."""

    def __init__(self, network: nn.Module, layer: nn.Module, channel_axis: int) -> None:
        super().__init__()
        self.network = network
        self.channel_axis = channel_axis
        self._layer = (layer,)  # in a tuple, so that torch does not register it and its tensors keep one name

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        with record_output(self._layer[0]) as outputs:
            result = self.network(pixels)
        return *(result if isinstance(result, tuple) else (result,)), channels_first(outputs[-1], self.channel_axis).float()


def load_backbone(folder: Path, with_weights: bool = True) -> tuple[Backbone, int]:
    """Return the backbone of a folder written by the stage `backbone`, in eval mode, and its number of features.

    Without weights, its tensors are drawn from torch's current random state.
    """
    facts = read_json(folder / "backbone.json")
    architecture = zoo.Architecture(**facts["architecture"])
    backbone = headless(zoo.build(architecture), architecture)
    if with_weights:
        tensors = load_file(folder / "weights.safetensors")
        fill(backbone.network, {key: tensor for key, tensor in tensors.items() if key not in facts["head_tensors"]})
    return backbone.eval(), facts["num_features"]


def headless(network: nn.Module, architecture: zoo.Architecture) -> Backbone:
    """Remove the head and the side heads of a network. Raises PipelineError if no head is found."""
    zoo.take_head_away(network, architecture)
    return Backbone(network, architecture.mean, architecture.std)


def load_classifier(backbone: Path, model: Path, num_classes: int) -> Classifier:
    """Return the classifier that a model folder stores, in eval mode."""
    body, num_features = load_backbone(backbone)
    classifier = Classifier(body, num_features, num_classes)
    fill(classifier, load_file(model / "model.safetensors"))
    return classifier.eval()


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors of a module. Raises RuntimeError if one is missing or left over."""
    # safetensors stores no layer versions, and MNASNet refuses tensors without one. The module's own state has them.
    state = module.state_dict()
    state.clear()  # the versions are an attribute and remain
    state.update(tensors)
    module.load_state_dict(state)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write all tensors of a classifier as safetensors."""
    save_tensors(classifier.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors. A tensor that layers share, as in CoaT, is written once per name."""
    save_file({key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors makes a file that only its owner reads


def with_feature_map(network: nn.Module, backbone: Backbone, feature_map: Mapping[str, Any] | None) -> nn.Module:
    """Return the network with the feature map that backbone.json names, or the network itself if it names none."""
    if feature_map is None:
        return network
    return WithFeatureMap(network, backbone.network.get_submodule(feature_map["layer"]), feature_map["channel_axis"])


def find_feature_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """Return the last layer whose output, averaged over its places, equals the features, or None if there is none.

    A head that is linear in the features is then linear in the pooled map, and class activation maps follow (Zhou et al., 2016).
    """
    # Layers are compared by their output on random pictures: names and types differ from library to library.
    features, outputs = _maps_and_tokens(backbone, image_size)
    largest = max(features.abs().max().item(), 1e-6)
    for name, output in reversed(outputs):
        for axis in (1, 3) if output.dim() == 4 else ():
            maps = channels_first(output, axis)
            is_candidate = maps.shape[:2] == features.shape and maps.shape[2] * maps.shape[3] > 1
            if is_candidate and (maps.mean(dim=(2, 3)) - features).abs().max().item() <= _TOLERANCE * largest:
                return {"layer": name, "channel_axis": axis}
    return None


def last_map(backbone: Backbone, image_size: int) -> dict[str, Any] | None:
    """Return the last layer with a map of more than one place, pooled to the features or not.

    Returns None if there is none, or if tokens follow it, as in a vision transformer.
    """
    for name, output in reversed(_maps_and_tokens(backbone, image_size)[1]):
        if output.dim() == 3:
            return None
        for axis in (1, 3):
            height, width = channels_first(output, axis).shape[2:]
            if height == width > 1:
                return {"layer": name, "channel_axis": axis}
    return None


def channels_first(maps: Tensor, channel_axis: int) -> Tensor:
    """Return maps whose channels are at `channel_axis` (1 or 3) as (N, C, h, w)."""
    return maps if channel_axis == 1 else maps.permute(0, 3, 1, 2)


@contextmanager
def record_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a layer within the block."""
    outputs: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)

    handle = layer.register_forward_hook(note)
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def replaced_forward(layer: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let a layer run another function for the block."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def random_pixels(image_size: int) -> Tensor:
    """Return two random pictures, always the same: uint8 (2, S, S, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8, generator=generator)


def run_watched(
    backbone: Backbone, pixels: Tensor, on_output: Callable[[str, object], None], on_call: Callable[[str], None] | None = None
) -> Tensor:
    """Return the features of pixels, and report each call of a layer: `on_call` before it, `on_output` after it."""
    handles = []
    for name, layer in list(backbone.network.named_modules())[1:]:  # the first is the network itself
        if on_call:
            handles.append(layer.register_forward_pre_hook(lambda _, __, name=name: on_call(name)))
        handles.append(layer.register_forward_hook(lambda _, __, output, name=name: on_output(name, output)))
    try:
        with torch.no_grad():
            return cast(Tensor, backbone(pixels.to(cast(Tensor, backbone.scale).device)))
    finally:
        for handle in handles:
            handle.remove()


def _maps_and_tokens(backbone: Backbone, image_size: int) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Return the features of two random pictures, and in order of execution every layer output of three or four dimensions."""
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() in (3, 4):
            outputs.append((name, output))

    return run_watched(backbone, random_pixels(image_size), note), outputs
