"""Architectures of torchvision and timm by name: how to build one, which input it expects, and where its head is."""

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum

_IMAGENET_CLASSES = 1000
_SIDE_HEADS = ("AuxLogits", "aux1", "aux2")  # of Inception and GoogLeNet: they predict ImageNet's classes


@dataclass(frozen=True)
class Architecture:
    """A network and the input it expects: side in pixels, mean and std per channel (of pixels 0 to 1), interpolation and crop.

    `fixed_size`: whether it accepts no other side.
    """

    name: str
    library: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop: float
    fixed_size: bool
    crop_mode: str = "center"  # see `Preprocessing`


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name: a classification model of torchvision or else of timm; `timm/<name>` is one of timm.

    Raises PipelineError with the five nearest names if there is none.
    """
    library = library_of(name)
    if library is None:
        raise PipelineError(f"params.yaml: backbone.name: {name!r} is not a known model; the nearest are {', '.join(nearest_names(name))}")
    return _torchvision_architecture(name) if library == "torchvision" else _timm_architecture(name)


def library_of(name: str) -> str | None:
    """Return the library with a classification model of that name, torchvision before timm, or None."""
    if name in torchvision_names():
        return "torchvision"
    try:
        timm_published(name)
    except RuntimeError:  # timm knows no such model, or not with that tag
        return None
    return "timm"


def nearest_names(name: str) -> list[str]:
    """Return the five names of models most similar to this one."""
    return difflib.get_close_matches(name, dict.fromkeys([*torchvision_names(), *timm_names()]), n=5, cutoff=0.0)


def build(architecture: Architecture, num_classes: int | None = None) -> "nn.Module":
    """Build the network with the head of its published weights, or with `num_classes`. Weights are random, from torch's current state."""
    if architecture.library == "torchvision":
        import torchvision

        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if architecture.name in ("googlenet", "inception_v3"):
            options |= {"init_weights": True, "transform_input": True}
        elif architecture.name.startswith("vit"):
            options |= {"image_size": architecture.image_size}  # its published weights may be for more than 224 pixels
        return cast("nn.Module", torchvision.models.get_model(architecture.name, weights=None, **options))
    import timm

    return timm.create_model(architecture.name.removeprefix("timm/"), pretrained=False, num_classes=num_classes)


def take_head_away(network: "nn.Module", architecture: Architecture) -> None:
    """Remove the head and the side heads of a network, so that it returns its pooled features (N, D). Raises PipelineError."""
    from torch import nn

    if architecture.library == "timm":
        if not hasattr(network, "reset_classifier"):
            raise _no_head(architecture)
        cast(Any, network).reset_classifier(0)
        return
    network.set_submodule(_torchvision_head(network, architecture), nn.Identity())
    for name in _SIDE_HEADS:
        if hasattr(network, name):
            setattr(network, name, None)
            network.aux_logits = False  # type: ignore[assignment]


def name_heads(head_tensors: Iterable[str]) -> str:
    """Return the names of the layers with these tensors, side heads left out, as text."""
    layers = dict.fromkeys(key.rpartition(".")[0] for key in head_tensors if not key.startswith(_SIDE_HEADS))
    return ", ".join(layers) or "none"


def count_features(backbone: "nn.Module", architecture: Architecture) -> int:
    """Return the number of features of a backbone. Raises PipelineError if its output is not (N, D)."""
    import torch

    side = architecture.image_size
    with torch.inference_mode():
        features = backbone.eval()(torch.zeros(2, side, side, 3, dtype=torch.uint8))
    if features.dim() != 2 or len(features) != 2:
        raise _no_head(architecture)
    return int(features.shape[1])


def _torchvision_head(network: "nn.Module", architecture: Architecture) -> str:
    """Return the name of the last layer with an output per ImageNet class: linear, or a 1 x 1 convolution. Raises PipelineError."""
    from torch import nn

    heads: list[str] = []
    for name, layer in network.named_modules():
        is_linear = isinstance(layer, nn.Linear) and layer.out_features == _IMAGENET_CLASSES
        if is_linear or (isinstance(layer, nn.Conv2d) and layer.out_channels == _IMAGENET_CLASSES and layer.kernel_size == (1, 1)):
            heads.append(name)
    if not heads:
        raise _no_head(architecture)
    return heads[-1]


def _no_head(architecture: Architecture) -> PipelineError:
    return PipelineError(f"backbone {architecture.name}: its head cannot be found; choose another model")


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def timm_names() -> list[str]:
    """Return the names of timm's models."""
    import timm

    return list(timm.list_models())


def torchvision_weights(name: str) -> "WeightsEnum":
    """Return torchvision's best published weights of a model: their URL and their preprocessing."""
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT


def timm_published(name: str) -> Any:
    """Return timm's best published weights of a model: their URL and their preprocessing."""
    import timm

    return timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)


def timm_loads_as_is(name: str) -> bool:
    """Whether timm loads a model's older files as they are. If not, its module has a function that translates them (`…filter_…`)."""
    import timm

    module = sys.modules[timm.model_entrypoint(name.removeprefix("timm/")).__module__]
    return not any("filter_" in function for function in vars(module))


def _torchvision_architecture(name: str) -> Architecture:
    transform = torchvision_weights(name).transforms()
    side = transform.crop_size[0]
    return Architecture(
        name, "torchvision", side, tuple(transform.mean), tuple(transform.std), transform.interpolation.value,
        side / transform.resize_size[0], name.startswith(("vit", "maxvit")),
    )  # fmt: skip


def _timm_architecture(name: str) -> Architecture:
    published = timm_published(name)
    return Architecture(
        name, "timm", published.input_size[-1], tuple(published.mean), tuple(published.std), published.interpolation,
        published.crop_pct, published.fixed_input_size, published.crop_mode,
    )  # fmt: skip
