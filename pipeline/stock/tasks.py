"""Classify, segment and detect with pretrained networks as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.networks.weights import published_source
from pipeline.pictures.images import Array, decode
from pipeline.stock.networks import NetworkRequest, check_model, fill, find_weights, published_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CROPPED, _RESIZED, _PADDED = 8, 4, 16  # times as long as wide: from there on a picture is changed


def middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than eight times as long as wide."""
    longest = _CROPPED * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def working_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Width and height such that the shorter side is `image_size` and the longer one at most four times that.

    They are rounded down, as torchvision does.
    """
    shorter, longer = sorted(size)
    new_shorter, new_longer = image_size, int(image_size * longer / shorter)
    if new_longer > _RESIZED * image_size:
        new_longer = _RESIZED * image_size
        new_shorter = max(1, int(new_longer * shorter / longer))
    return (new_shorter, new_longer) if size[0] <= size[1] else (new_longer, new_shorter)


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """A picture whose longer side is at most so many pixels."""
    scale = longest / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3) if scale < 1 else image


def widened(image: Image.Image) -> Image.Image:
    """A picture at most sixteen times as long as wide; what is lacking is added below or to the right, in black."""
    least = -(-max(image.size) // _PADDED)
    return image.crop((0, 0, max(image.width, least), max(image.height, least)))


@dataclass(frozen=True)
class ImageClassifier:
    """What names pictures; it has the face of a stored model, see `Answerer`."""

    network: "nn.Module"
    transform: Callable[["Image.Image"], "Tensor"]
    class_names: list[str]
    device: "torch.device"

    def read(self, source: bytes | Path) -> Array:
        """A picture as its publisher prepares it: float32 (3, S, S), normalised. Raises BrokenPicture.

        Of a picture more than eight times as long as wide the middle is taken.
        """
        return self.transform(middle(decode(source))).numpy()

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pictures, float32 (pictures, 3, S, S)."""
        import torch

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(pixels).to(self.device))
            return np.asarray(logits.float().softmax(dim=1).cpu())


def load_classifier(wanted: NetworkRequest, device: "torch.device") -> ImageClassifier:
    """The classification network that is wanted. Raises PipelineError."""
    check_model("classify", wanted.model)
    architecture = zoo.find_architecture(wanted.model)
    published = None if wanted.weights else published_names(architecture)  # before anything is fetched that has none
    source = published_source(architecture)
    file = find_weights(wanted, source[0] if source else None)
    names = file.class_names or published or published_names(architecture)
    network = fill(zoo.build(architecture, len(names)), file, wanted.model)
    return ImageClassifier(network.to(device), _published_transform(architecture), names, device)


def _published_transform(architecture: zoo.Architecture) -> Any:
    """How the publisher prepares a picture: resized, its centre cut out, normalised."""
    if architecture.library == "torchvision":
        return zoo.torchvision_weights(architecture.name).transforms()
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    published = cast(Any, resolve_data_config)(pretrained_cfg=zoo.timm_published(architecture.name).to_dict())
    return create_transform(**published, is_training=False)


_MOST_CLASSES = 256  # that a palette PNG can hold


@dataclass(frozen=True)
class Segmenter:
    """What segments pictures; `normalise` makes a tensor of one that has been resized. `class_names` in the order of the numbers."""

    network: "nn.Module"
    normalise: Callable[[Image.Image], "Tensor"]
    image_size: int
    class_names: list[str]
    device: "torch.device"

    def segment(self, image: Image.Image) -> Array:
        """The number of the class of each pixel: uint8 (H, W) of the picture.

        The picture is resized so that its shorter side is `image_size`, its longer one at most four times that; the
        scores of the classes are resized to the picture, bilinearly, and the highest wins, the first of equals.
        """
        import torch

        resized = image.resize(working_size(image.size, self.image_size), Image.Resampling.BILINEAR)
        with torch.inference_mode():
            scores = self.network(self.normalise(resized)[None].to(self.device))["out"]
            return np.asarray(_highest(scores, (image.height, image.width)).cpu())


def load_segmenter(wanted: NetworkRequest, device: "torch.device") -> Segmenter:
    """The segmentation network that is wanted. Raises PipelineError."""
    import torchvision

    check_model("segment", wanted.model)
    published = zoo.torchvision_weights(wanted.model)
    file = find_weights(wanted, published.url)
    names = file.class_names or [name.strip("_") for name in published.meta["categories"]]  # __background__
    if len(names) > _MOST_CLASSES:
        raise PipelineError(f"{file.name}: has {len(names)} classes; a mask can hold {_MOST_CLASSES}")
    network = torchvision.models.get_model(wanted.model, weights=None, weights_backbone=None, num_classes=len(names))
    normalise = published.transforms(resize_size=None)
    image_size = wanted.image_size or published.transforms().resize_size[0]
    return Segmenter(fill(network, file, wanted.model).to(device), normalise, image_size, names, device)


def _highest(scores: "Tensor", size: tuple[int, int]) -> "Tensor":
    """The class with the highest score at each place, uint8 (H, W), of scores (1, classes, h, w) that are resized to `size`.

    Class after class, since the scores of all classes at the size of a large picture would not fit into memory.
    """
    import torch
    from torch.nn.functional import interpolate

    best, winner = torch.full(size, -torch.inf, device=scores.device), torch.zeros(size, dtype=torch.uint8, device=scores.device)
    for number in range(scores.shape[1]):
        score = interpolate(scores[:, number : number + 1], size=size, mode="bilinear", align_corners=False)[0, 0]
        higher = score > best
        best[higher], winner[higher] = score[higher], number
    return winner


_LONGEST = 2000  # pixels of a side
_EXACT_NORMS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


@dataclass(frozen=True)
class Detection:
    """A thing in a picture: the name and the number of its class, how sure, its box (x0, y0, x1, y1) in pixels of the picture.

    `mask`: where in the picture it is, bool (h, w), perhaps at a smaller size; None where the network gives none.
    """

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: Array | None = None


@dataclass(frozen=True)
class Detector:
    """What finds things; `class_names` in the order of their numbers."""

    network: "nn.Module"
    to_tensor: Callable[[Image.Image], "Tensor"]
    class_names: list[str]
    device: "torch.device"

    def detect(self, image: Image.Image, threshold: float) -> list[Detection]:
        """What is in a picture with at least that score, the surest first; the network itself leaves out what it is very unsure of.

        A picture whose longer side is above 2000 pixels, or the network's own size, is made smaller first: a mask is
        as large as its picture.
        """
        import torch

        limit = max(_LONGEST, cast(Any, self.network).transform.max_size)
        seen = shrunk(image, limit)
        with torch.inference_mode():
            found = self.network([self.to_tensor(widened(seen)).to(self.device)])[0]
            order = found["scores"].argsort(descending=True, stable=True)
            order = order[found["scores"][order] >= threshold]
            things = {key: values[order].cpu().numpy() for key, values in found.items()}
        return [self._found({key: values[row] for key, values in things.items()}, image.size, seen.size) for row in range(len(order))]

    def _found(self, thing: dict[str, Array], size: tuple[int, int], seen: tuple[int, int]) -> Detection:
        """One row of what the network gives, for a picture of width and height `size` that it saw as `seen`."""
        corners = zip(thing["boxes"].tolist(), size * 2, seen * 2, strict=True)
        x0, y0, x1, y1 = (round(min(at * whole / part, whole), 2) for at, whole, part in corners)
        mask = thing["masks"][0, : seen[1], : seen[0]] > 0.5 if "masks" in thing else None
        label = int(thing["labels"])
        return Detection(self.class_names[label], label, round(float(thing["scores"]), 6), (x0, y0, x1, y1), mask)


def load_detector(wanted: NetworkRequest, device: "torch.device") -> Detector:
    """The detection network that is wanted. Raises PipelineError."""
    check_model("detect", wanted.model)
    published = zoo.torchvision_weights(wanted.model)
    file = find_weights(wanted, published.url)
    names = file.class_names or [name.strip("_") for name in published.meta["categories"]]  # __background__
    network = fill(build_detector(wanted.model, len(names)), file, wanted.model)
    if wanted.image_size:
        _set_image_size(network, wanted.image_size, wanted.model)
    if file.kind == "published" and wanted.model in _EXACT_NORMS:
        _set_exact_norms(network)
    return Detector(network.to(device), published.transforms(), names, device)


def build_detector(model: str, num_classes: int) -> "nn.Module":
    """torchvision's detector with random weights; `num_classes` with the background."""
    import torchvision

    network: nn.Module = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)
    return network


def _set_image_size(network: Any, image_size: int, model: str) -> None:
    """Let pictures be resized to that shorter side, the longest in proportion. Raises PipelineError where it takes one size alone."""
    transform = network.transform
    if transform.fixed_size:
        width, height = transform.fixed_size
        raise PipelineError(f"--image-size {image_size}: {model} takes pictures of {width} x {height} pixels alone; leave it away")
    transform.max_size = round(transform.max_size * image_size / transform.min_size[0])
    transform.min_size = (image_size,)


def _set_exact_norms(network: "nn.Module") -> None:
    """Let BatchNorm divide by the root of the variance alone: so these published weights were trained."""
    from torch import nn

    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
