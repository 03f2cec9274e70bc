"""Segmenting pictures: for each pixel its class, by torchvision's FCN, DeepLabV3 and LRASPP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.data.loading import Array
from pipeline.errors import PipelineError
from pipeline.models import zoo
from pipeline.stock.networks import Wanted, check_model, fill, find_weights
from pipeline.stock.sizes import working_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

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


def load_segmenter(wanted: Wanted, device: "torch.device") -> Segmenter:
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
