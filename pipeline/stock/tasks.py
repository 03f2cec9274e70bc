"""Classify, segment and detect with pretrained networks as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.networks.weights import published_source
from pipeline.pictures.images import Array, decode
from pipeline.stock.networks import NetworkRequest, WeightsFile, check_model, fill, find_weights, published_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The longest ratio of length to width: a longer picture is cropped (classify), resized out of proportion (segment) or padded (detect).
_CROPPED, _RESIZED, _PADDED = 8, 4, 16
_MOST_CLASSES = 256  # of a palette PNG
_LONGEST = 2000  # pixels of the longer side of a picture in which things are detected
_EXACT_NORMS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


def middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than eight times as long as wide; any other picture as it is."""
    longest = _CROPPED * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def working_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Width and height with `image_size` as the shorter side and at most four times that as the longer one.

    They are rounded down, as torchvision does.
    """
    shorter, longer = sorted(size)
    new_shorter, new_longer = image_size, int(image_size * longer / shorter)
    if new_longer > _RESIZED * image_size:
        new_longer = _RESIZED * image_size
        new_shorter = max(1, int(new_longer * shorter / longer))
    return (new_shorter, new_longer) if size[0] <= size[1] else (new_longer, new_shorter)


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """A picture whose longer side is at most `longest` pixels."""
    scale = longest / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3) if scale < 1 else image


def widened(image: Image.Image) -> Image.Image:
    """A picture at most sixteen times as long as wide, padded in black below or to the right."""
    least = -(-max(image.size) // _PADDED)
    return image.crop((0, 0, max(image.width, least), max(image.height, least)))


@dataclass(frozen=True)
class ImageClassifier:
    """A classifier with the methods of a stored model, see `PredictorLike`."""

    network: "nn.Module"
    transform: Callable[["Image.Image"], "Tensor"]
    class_names: list[str]
    device: "torch.device"
    tells_unfamiliar: ClassVar[bool] = False

    def answer(self, pixels: Array) -> tuple[Array, None]:
        """Probabilities as `predict_pixels` returns them, and None: the network does not tell which pictures are unfamiliar."""
        return self.predict_pixels(pixels), None

    def read(self, source: bytes | Path) -> Array:
        """A picture prepared as its publisher does: float32 (3, S, S), normalised. Raises BrokenPicture.

        A picture more than eight times as long as wide is cropped to its middle.
        """
        return self.transform(middle(decode(source))).numpy()

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pictures, float32 (pictures, 3, S, S)."""
        import torch

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(pixels).to(self.device))
            return np.asarray(logits.float().softmax(dim=1).cpu())


def load_classifier(wanted: NetworkRequest, device: "torch.device") -> ImageClassifier:
    """The requested classifier. Raises PipelineError."""
    check_model("classify", wanted.model)
    architecture = zoo.find_architecture(wanted.model)
    published = None if wanted.weights else published_names(architecture)  # refuses weights without classes before it fetches them
    source = published_source(architecture)
    file = find_weights(wanted, source[0] if source else None)
    names = file.class_names or published or published_names(architecture)
    network = fill(zoo.build(architecture, len(names)), file, wanted.model)
    return ImageClassifier(network.to(device), _published_transform(architecture), names, device)


def _published_transform(architecture: zoo.Architecture) -> Any:
    """The publisher's preparation: resize, crop the centre, normalise."""
    if architecture.library == "torchvision":
        return zoo.torchvision_weights(architecture.name).transforms()
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    published = cast(Any, resolve_data_config)(pretrained_cfg=zoo.timm_published(architecture.name).to_dict())
    return create_transform(**published, is_training=False)


def _weights_and_names(wanted: NetworkRequest, published: Any) -> tuple[WeightsFile, list[str]]:
    """The weights of torchvision's segmenter or detector and the names of its classes."""
    file = find_weights(wanted, published.url)
    return file, file.class_names or [name.strip("_") for name in published.meta["categories"]]  # __background__


def _build(model: str, num_classes: int) -> "nn.Module":
    """torchvision's segmenter or detector with random weights; `num_classes` includes the background."""
    import torchvision

    network: nn.Module = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)
    return network


@dataclass(frozen=True)
class Segmenter:
    """A segmenter. `normalise` makes a tensor of a resized picture; `class_names` are in the order of the labels."""

    network: "nn.Module"
    normalise: Callable[[Image.Image], "Tensor"]
    image_size: int
    class_names: list[str]
    device: "torch.device"

    def segment(self, image: Image.Image) -> Array:
        """The label of each pixel, uint8 (H, W).

        The picture is resized to `image_size` on its shorter side, at most four times that on the longer one. The scores
        are resized to the picture, bilinearly, and the highest score wins; among equal scores, the lower label.
        """
        import torch

        resized = image.resize(working_size(image.size, self.image_size), Image.Resampling.BILINEAR)
        with torch.inference_mode():
            scores = self.network(self.normalise(resized)[None].to(self.device))["out"]
            return np.asarray(_highest(scores, (image.height, image.width)).cpu())


def load_segmenter(wanted: NetworkRequest, device: "torch.device") -> Segmenter:
    """The requested segmenter. Raises PipelineError."""
    check_model("segment", wanted.model)
    published = zoo.torchvision_weights(wanted.model)
    file, names = _weights_and_names(wanted, published)
    if len(names) > _MOST_CLASSES:
        raise PipelineError(f"{file.name}: has {len(names)} classes; a mask can have at most {_MOST_CLASSES}")
    network = fill(_build(wanted.model, len(names)), file, wanted.model)
    image_size = wanted.image_size or published.transforms().resize_size[0]
    return Segmenter(network.to(device), published.transforms(resize_size=None), image_size, names, device)


def _highest(scores: "Tensor", size: tuple[int, int]) -> "Tensor":
    """The label with the highest score per pixel, uint8 (H, W), from scores (1, classes, h, w) resized to `size`.

    One class at a time: the scores of all classes at the size of a large picture would not fit into memory.
    """
    import torch
    from torch.nn.functional import interpolate

    best, winner = torch.full(size, -torch.inf, device=scores.device), torch.zeros(size, dtype=torch.uint8, device=scores.device)
    for label in range(scores.shape[1]):
        score = interpolate(scores[:, label : label + 1], size=size, mode="bilinear", align_corners=False)[0, 0]
        higher = score > best
        best[higher], winner[higher] = score[higher], label
    return winner


@dataclass(frozen=True)
class Detection:
    """A thing in a picture: the name and label of its class, its score, its box (x0, y0, x1, y1) in pixels of the picture.

    `mask`: its pixels, bool (h, w) over the whole picture, possibly at a smaller size; None if the network has no masks.
    """

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: Array | None = None


@dataclass(frozen=True)
class Detector:
    """A detector; `class_names` are in the order of the labels."""

    network: "nn.Module"
    to_tensor: Callable[[Image.Image], "Tensor"]
    class_names: list[str]
    device: "torch.device"

    def detect(self, image: Image.Image, threshold: float) -> list[Detection]:
        """The things in a picture whose score is at least `threshold`, highest score first.

        The network itself drops very low scores. A picture longer than 2000 pixels, or than the network's own size if that
        is larger, is shrunk first: each mask has the size of the picture.
        """
        import torch

        limit = max(_LONGEST, cast(Any, self.network).transform.max_size)
        seen = shrunk(image, limit)
        with torch.inference_mode():
            answer = self.network([self.to_tensor(widened(seen)).to(self.device)])[0]
            order = answer["scores"].argsort(descending=True, stable=True)
            order = order[answer["scores"][order] >= threshold]
            things = {key: values[order].cpu().numpy() for key, values in answer.items()}
        return [self._detection({key: values[row] for key, values in things.items()}, image.size, seen.size) for row in range(len(order))]

    def _detection(self, thing: dict[str, Array], size: tuple[int, int], seen: tuple[int, int]) -> Detection:
        """One row of the network's answer for a picture of width and height `size` that was shrunk to `seen`."""
        corners = zip(thing["boxes"].tolist(), size * 2, seen * 2, strict=True)
        x0, y0, x1, y1 = (round(min(at * whole / part, whole), 2) for at, whole, part in corners)
        mask = thing["masks"][0, : seen[1], : seen[0]] > 0.5 if "masks" in thing else None
        label = int(thing["labels"])
        return Detection(self.class_names[label], label, round(float(thing["scores"]), 6), (x0, y0, x1, y1), mask)


def load_detector(wanted: NetworkRequest, device: "torch.device") -> Detector:
    """The requested detector. Raises PipelineError."""
    check_model("detect", wanted.model)
    published = zoo.torchvision_weights(wanted.model)
    file, names = _weights_and_names(wanted, published)
    network = fill(_build(wanted.model, len(names)), file, wanted.model)
    if wanted.image_size:
        _set_image_size(network, wanted.image_size, wanted.model)
    if file.kind == "published" and wanted.model in _EXACT_NORMS:
        _set_exact_norms(network)
    return Detector(network.to(device), published.transforms(), names, device)


def _set_image_size(network: Any, image_size: int, model: str) -> None:
    """Set the shorter side, and the longest in proportion. Raises PipelineError if the network has one fixed size."""
    transform = network.transform
    if transform.fixed_size:
        width, height = transform.fixed_size
        raise PipelineError(f"--image-size {image_size}: {model} takes pictures of {width} x {height} pixels only; omit it")
    transform.max_size = round(transform.max_size * image_size / transform.min_size[0])
    transform.min_size = (image_size,)


def _set_exact_norms(network: "nn.Module") -> None:
    """Let BatchNorm divide by the root of the variance, without epsilon: these published weights were trained so."""
    from torch import nn

    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
