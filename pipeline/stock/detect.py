"""Finding the things in pictures: boxes, names and masks, by torchvision's R-CNN, RetinaNet, SSD and FCOS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from pipeline.data.loading import Array
from pipeline.errors import PipelineError
from pipeline.models import zoo
from pipeline.stock.networks import Wanted, check_model, fill, find_weights
from pipeline.stock.sizes import shrunk, widened

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_LONGEST = 2000  # pixels of a side
_EXACT_NORMS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


@dataclass(frozen=True)
class Found:
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

    def detect(self, image: Image.Image, threshold: float) -> list[Found]:
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

    def _found(self, thing: dict[str, Array], size: tuple[int, int], seen: tuple[int, int]) -> Found:
        """One row of what the network gives, for a picture of width and height `size` that it saw as `seen`."""
        corners = zip(thing["boxes"].tolist(), size * 2, seen * 2, strict=True)
        x0, y0, x1, y1 = (round(min(at * whole / part, whole), 2) for at, whole, part in corners)
        mask = thing["masks"][0, : seen[1], : seen[0]] > 0.5 if "masks" in thing else None
        label = int(thing["labels"])
        return Found(self.class_names[label], label, round(float(thing["scores"]), 6), (x0, y0, x1, y1), mask)


def load_detector(wanted: Wanted, device: "torch.device") -> Detector:
    """The detection network that is wanted. Raises PipelineError."""
    check_model("detect", wanted.model)
    published = zoo.torchvision_weights(wanted.model)
    file = find_weights(wanted, published.url)
    names = file.class_names or [name.strip("_") for name in published.meta["categories"]]  # __background__
    network = fill(build(wanted.model, len(names)), file, wanted.model)
    if wanted.image_size:
        _set_image_size(network, wanted.image_size, wanted.model)
    if file.kind == "published" and wanted.model in _EXACT_NORMS:
        _set_exact_norms(network)
    return Detector(network.to(device), published.transforms(), names, device)


def build(model: str, num_classes: int) -> "nn.Module":
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
