"""Architectures of torchvision and timm by name: how they are built, what they expect, where their head is."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Architecture:
    """What a network was made for: side in pixels, mean and std a channel (of pixels 0 to 1), how pictures are cropped.

    `fixed_size`: it takes no other side.
    """

    name: str
    library: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop: float
    fixed_size: bool


def find_architecture(name: str) -> Architecture:
    """Look a name up: torchvision's classification models, then timm's. `timm/<name>` asks timm alone.

    Raises PipelineError with the five nearest names.
    """
    plain = name.removeprefix("timm/")
    if name == plain and name in torchvision_names():
        return _torchvision_architecture(name)
    import timm

    if timm.is_model(plain):
        return _timm_architecture(name)
    known = dict.fromkeys([*torchvision_names(), *timm.list_models()])
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.0)
    raise PipelineError(f"params.yaml: backbone.name: {name!r} is no known model; the nearest are {', '.join(near)}")


def build(architecture: Architecture) -> "nn.Module":
    """The network with ImageNet's head and random weights, from torch's current random state."""
    if architecture.library == "torchvision":
        import torchvision

        options = {"init_weights": True, "transform_input": True} if architecture.name in ("googlenet", "inception_v3") else {}
        return cast("nn.Module", torchvision.models.get_model(architecture.name, weights=None, **options))
    import timm

    return timm.create_model(architecture.name.removeprefix("timm/"), pretrained=False)


def head_name(network: "nn.Module", architecture: Architecture) -> str:
    """The dotted name of the layer that turns features into ImageNet's classes. Raises PipelineError."""
    from torch import nn

    layers = network.named_modules()
    heads: list[str] = [name for name, layer in layers if isinstance(layer, nn.Linear) and layer.out_features == _IMAGENET_CLASSES]
    if not heads:
        raise PipelineError(f"backbone {architecture.name}: has no linear head of {_IMAGENET_CLASSES} classes; take another model")
    return heads[-1]


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_weights(name: str) -> "WeightsEnum":
    """torchvision's best published weights of a model: their URL and how their pictures are prepared."""
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT


def timm_published(name: str) -> Any:
    """timm's best published weights of a model: where they are and how their pictures are prepared."""
    import timm

    return timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)


def _torchvision_architecture(name: str) -> Architecture:
    transform = torchvision_weights(name).transforms()
    side = transform.crop_size[0]
    crop = side / transform.resize_size[0]
    return Architecture(
        name,
        "torchvision",
        side,
        tuple(transform.mean),
        tuple(transform.std),
        transform.interpolation.value,
        crop,
        name.startswith(("vit", "maxvit")),
    )


def _timm_architecture(name: str) -> Architecture:
    published = timm_published(name)
    return Architecture(
        name, "timm", published.input_size[-1], tuple(published.mean), tuple(published.std), published.interpolation,
        published.crop_pct, published.fixed_input_size,
    )  # fmt: skip
