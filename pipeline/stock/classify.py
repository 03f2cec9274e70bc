"""Naming pictures: a classification network with its publisher's own preparation of pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.data.images import decode
from pipeline.data.loading import Array
from pipeline.models import zoo
from pipeline.models.published import published_source
from pipeline.stock.class_names import published_names
from pipeline.stock.networks import Wanted, check_model, fill, find_weights
from pipeline.stock.sizes import middle

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn


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


def load_classifier(wanted: Wanted, device: "torch.device") -> ImageClassifier:
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
