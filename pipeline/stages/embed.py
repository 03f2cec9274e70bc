"""Embed the train and val pictures: run the frozen backbone once over each and keep its features."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from pipeline import stage
from pipeline.data.images import Preprocessing
from pipeline.data.loading import square_batches
from pipeline.data.manifest import Picture, read_manifest
from pipeline.errors import PipelineError
from pipeline.files import atomic_dir, cache_dir, read_json, sha256_of_file, sha256_of_json, write_json, write_table
from pipeline.models.classifier import load_backbone
from pipeline.models.export import check_parity, count_work, export_onnx
from pipeline.models.maps import with_map
from pipeline.models.session import add_facts, open_session, read_facts, write_onnx
from pipeline.params import Section
from pipeline.provenance import code_digest
from pipeline.training import runtime

if TYPE_CHECKING:
    from torch import nn

_STEP, _LEAST = 32, 64
_EXPORTERS = ("torch", "torchvision", "timm", "onnx", "onnxscript")
_REFUSALS = (RuntimeError, AssertionError, ValueError)  # as networks say that pictures are too small, or of another side than theirs
_CHECKED = 8  # pictures on which the export is compared with torch


class Params(Section):  # section `embed` of params.yaml
    threads: PositiveInt
    image_size: Literal["auto"] | PositiveInt
    batch_size: PositiveInt


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
    code = [code_digest(f"pipeline.models.{name}") for name in ("export", "maps")]
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
            shown = with_map(backbone, backbone, facts["feature_map"])
            graph = export_onnx(shown, image_size, ["features", "feature_map"][: 2 if facts["feature_map"] else 1])
            add_facts(graph, {"size": count_work(backbone, image_size)})
            write_onnx(graph, partial / path.name)
            check_parity(partial / path.name, shown, pixels, threads)
    return path


def embed(paths: list[Path], preprocessing: Preprocessing, params: Params, onnx_path: Path, folder: Path) -> np.ndarray[Any, Any]:
    """Features of pictures, float32 (pictures, D), in their order: by ONNX Runtime on a CPU, by torch on a GPU."""
    import torch

    batches = square_batches(paths, preprocessing, params.batch_size, os.cpu_count() or 1, "embed")
    device = runtime.choose_device()
    if device.type == "cpu":
        session = open_session(onnx_path, params.threads)
        return np.concatenate([session.run(["features"], {"pixels": pixels})[0] for pixels in batches])
    backbone = load_backbone(folder)[0].to(device)
    runtime.mean_fp32()  # the head is served on such features
    with torch.inference_mode():
        return np.concatenate([backbone(torch.from_numpy(pixels).to(device)).cpu().numpy() for pixels in batches])


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path) -> None:
    """Resolve the image size, export the backbone, embed the pictures, and write the folder `embeddings`."""
    facts = read_json(backbone / "backbone.json")
    training, validation = read_manifest(manifest, "train"), read_manifest(manifest, "val")
    image_size = resolve_image_size(params.image_size, facts, training, lambda side: takes_size(load_backbone(backbone)[0], side))
    architecture = facts["architecture"]
    preprocessing = Preprocessing(image_size, architecture["crop"], architecture["interpolation"])
    pictures = [*training, *validation]
    paths = [train / picture.path for picture in training] + [val / picture.path for picture in validation]
    sample = next(square_batches(paths[:_CHECKED], preprocessing, _CHECKED, params.threads, "check"))
    onnx_path = export_backbone(backbone, image_size, sample, params.threads)
    features = embed(paths, preprocessing, params, onnx_path, backbone)
    with atomic_dir(embeddings) as partial:
        np.save(partial / "features.npy", features)
        write_table(partial / "image_ids.csv", ["image_id"], [{"image_id": picture.image_id} for picture in pictures])
        for path in onnx_path.parent.iterdir():  # the graph, and its tensors where they lie apart
            shutil.copyfile(path, partial / path.name)
        tiny = useful_size(training) < architecture["image_size"]
        size = read_facts(open_session(onnx_path, params.threads))["size"]
        write_json(partial / "embedding.json", {"preprocessing": asdict(preprocessing), "tiny": tiny, "size": size})


if __name__ == "__main__":
    stage.main("embed", Params, run)
