"""The frozen backbone as an ONNX file, and the image sizes that it accepts."""

import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.core import hardware
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, read_json, sha256_of_file, sha256_of_json
from pipeline.core.sections import Section
from pipeline.core.stage import code_digest
from pipeline.networks.onnx_file import add_facts, check_parity, count_work, export_onnx, write_onnx
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import Array, Preprocessing
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from torch import nn

SIZE_STEP, SMALLEST_SIZE = 32, 64  # of a side that is chosen, in pixels
_EXPORTERS = ("torch", "torchvision", "timm", "onnx", "onnxscript")
_REFUSALS = (RuntimeError, AssertionError, ValueError)  # raised by networks for pictures that are too small or not of their size


class EmbedParams(Section):
    """Section `embed` of params.yaml."""

    threads: PositiveInt
    image_size: Literal["auto"] | PositiveInt
    batch_size: PositiveInt
    cluster: Literal["ray"] | None


def preprocessing_of(architecture: Architecture, image_size: int) -> Preprocessing:
    """How pictures enter a network at that size."""
    border = [round(255 * value) for value in architecture.mean] if architecture.crop_mode == "border" else None
    return Preprocessing(image_size, architecture.crop, architecture.interpolation, architecture.crop_mode, border)


def useful_size(pictures: Sequence[Picture]) -> int:
    """Return twice the median of the pictures' longer sides, as a multiple of 32 and at least 64: a larger size adds no detail."""
    longer_side = median(max(picture.width, picture.height) for picture in pictures)
    return max(SMALLEST_SIZE, SIZE_STEP * math.ceil(2 * longer_side / SIZE_STEP))


def are_tiny(pictures: Sequence[Picture], own: int) -> bool:
    """Whether the useful size of pictures is below the network's own."""
    return useful_size(pictures) < own


def takes_size(backbone: "nn.Module", side: int) -> bool:
    """Whether a backbone accepts pictures of that side, tried with a blank one."""
    import torch

    try:
        with torch.no_grad():
            backbone(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    except _REFUSALS:
        return False
    return True


def export_backbone(folder: Path, image_size: int, pixels: np.ndarray[Any, Any], threads: int) -> Path:
    """Return the path of the backbone as ONNX at that size, compared with torch on real pixels. It is cached by all that decides it.

    Raises PipelineError if the backbone refuses the size or cannot be exported.
    """
    weights, facts = sha256_of_file(folder / "weights.safetensors"), read_json(folder / "backbone.json")
    code = [code_digest(f"pipeline.networks.{name}") for name in ("onnx_file", "classifier")]
    key = sha256_of_json([weights, facts, image_size, code, [version(name) for name in _EXPORTERS]])
    path = cache_dir("onnx") / key / "backbone.onnx"
    if not path.is_file():
        import torch

        from pipeline.networks.classifier import load_backbone, with_feature_map

        backbone, _ = load_backbone(folder)
        try:
            backbone(torch.from_numpy(pixels[:1]))
        except _REFUSALS as error:
            own = facts["architecture"]["image_size"]
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PipelineError(f"params.yaml: embed.image_size: the backbone refuses {image_size}: {reason}; set {own}") from None
        with atomic_dir(path.parent) as partial:
            network = with_feature_map(backbone, backbone, facts["feature_map"])
            graph = export_onnx(network, image_size, ["features", "feature_map"][: 2 if facts["feature_map"] else 1])
            add_facts(graph, {"size": count_work(backbone, image_size)})
            write_onnx(graph, partial / path.name)
            check_parity(partial / path.name, network, pixels, threads)
    return path


def embed_eagerly(backbone: "nn.Module", batches: Iterable[Array], where: hardware.Hardware) -> Array:
    """Features by torch, without an export: float32 (pictures, D), of batches of pixels, uint8 (batch, S, S, 3)."""
    import torch

    from pipeline.networks.folding import folded_norms

    where.place(backbone.eval())
    pixels = (torch.from_numpy(batch).to(where.device) for batch in batches)
    first = next(pixels)
    with folded_norms(backbone, first[:2]), torch.inference_mode():
        return np.concatenate([backbone(batch).cpu().numpy() for batch in chain([first], pixels)])
