"""The frozen backbone as an ONNX file, the image size it runs at, and the features of pictures."""

import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.core import hardware
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, read_json, sha256_of_file, sha256_of_json
from pipeline.core.params import Section
from pipeline.core.stage import code_digest
from pipeline.networks.classifier import load_backbone, with_feature_map
from pipeline.networks.onnx_file import add_facts, check_parity, count_work, export_onnx, open_session, write_onnx
from pipeline.pictures.images import Preprocessing, square_batches
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from torch import nn

_STEP, _LEAST = 32, 64


class EmbedParams(Section):
    """Section `embed` of params.yaml."""

    threads: PositiveInt
    image_size: Literal["auto"] | PositiveInt
    batch_size: PositiveInt


_EXPORTERS = ("torch", "torchvision", "timm", "onnx", "onnxscript")
_REFUSALS = (RuntimeError, AssertionError, ValueError)  # as networks say that pictures are too small, or of another side than theirs


def resolve_image_size(wanted: int | str, backbone: dict[str, Any], pictures: list[Picture], takes: Callable[[int], bool]) -> int:
    """The side in pixels at which pictures enter the network. `takes`: whether it takes a side that is less than its own.

    `auto`: what is useful, and at most the backbone's own size; a network of fixed input size takes its own, and so does one that
    refuses what is useful.
    """
    if isinstance(wanted, int):
        return wanted
    own, useful = int(backbone["architecture"]["image_size"]), useful_size(pictures)
    return useful if not backbone["architecture"]["fixed_size"] and useful < own and takes(useful) else own


def useful_size(pictures: list[Picture]) -> int:
    """Twice the median of the pictures' longer sides, rounded up to a multiple of 32, at least 64: more shows no more."""
    longer_side = median(max(picture.width, picture.height) for picture in pictures)
    return max(_LEAST, _STEP * math.ceil(2 * longer_side / _STEP))


def takes_size(backbone: "nn.Module", side: int) -> bool:
    """Whether a backbone takes pictures of that side: it is tried with a blank one."""
    import torch

    try:
        with torch.no_grad():
            backbone(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    except _REFUSALS:
        return False
    return True


def export_backbone(folder: Path, image_size: int, pixels: np.ndarray[Any, Any], threads: int) -> Path:
    """The backbone as ONNX at that size, compared with torch on real pixels; kept for the next time."""
    import torch

    weights, facts = sha256_of_file(folder / "weights.safetensors"), read_json(folder / "backbone.json")
    code = [code_digest(f"pipeline.networks.{name}") for name in ("onnx_file", "classifier")]
    key = sha256_of_json([weights, facts, image_size, code, [version(name) for name in _EXPORTERS]])
    path = cache_dir("onnx") / key / "backbone.onnx"
    if not path.is_file():
        backbone, _ = load_backbone(folder)
        try:
            backbone(torch.from_numpy(pixels[:1]))
        except _REFUSALS as error:
            own = facts["architecture"]["image_size"]
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PipelineError(f"params.yaml: embed.image_size: the backbone refuses {image_size}: {reason}; say {own}") from None
        with atomic_dir(path.parent) as partial:
            shown = with_feature_map(backbone, backbone, facts["feature_map"])
            graph = export_onnx(shown, image_size, ["features", "feature_map"][: 2 if facts["feature_map"] else 1])
            add_facts(graph, {"size": count_work(backbone, image_size)})
            write_onnx(graph, partial / path.name)
            check_parity(partial / path.name, shown, pixels, threads)
    return path


def embed(
    paths: list[Path], preprocessing: Preprocessing, batch_size: int, threads: int, onnx_path: Path, folder: Path
) -> np.ndarray[Any, Any]:
    """Features of pictures, float32 (pictures, D), in their order: by ONNX Runtime on a CPU, by torch on a GPU."""
    import torch

    batches = square_batches(paths, preprocessing, batch_size, os.cpu_count() or 1, "embed")
    device = hardware.choose_device()
    if device.type == "cpu":
        session = open_session(onnx_path, threads)
        return np.concatenate([session.run(["features"], {"pixels": pixels})[0] for pixels in batches])
    backbone = load_backbone(folder)[0].to(device)
    hardware.mean_fp32()  # the head is served on such features
    with torch.inference_mode():
        return np.concatenate([backbone(torch.from_numpy(pixels).to(device)).cpu().numpy() for pixels in batches])
