"""The frozen backbone as an ONNX file, the image sizes it accepts, and the features of pictures, which are cached per picture."""

import io
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt
from tqdm import tqdm

from pipeline.core import hardware
from pipeline.core.cluster import connected
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, atomic_file, cache_dir, read_json, sha256_of, sha256_of_file, sha256_of_json
from pipeline.core.params import Section
from pipeline.core.stage import code_digest
from pipeline.networks.classifier import load_backbone, with_feature_map
from pipeline.networks.folding import folded_norms
from pipeline.networks.onnx_file import add_facts, check_parity, count_work, export_onnx, open_session, write_onnx
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import Array, Preprocessing, read_ahead, square_batches
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from torch import nn

SIZE_STEP, SMALLEST_SIZE = 32, 64  # of a side that is chosen, in pixels
_EXPORTERS = ("torch", "torchvision", "timm", "onnx", "onnxscript")
_REFUSALS = (RuntimeError, AssertionError, ValueError)  # raised by networks for pictures that are too small or not of their size
_SHARD_PICTURES, _SHARD_SECONDS = 4096, 60.0  # the features of so many pictures, or of so long, go into one file of the cache


class EmbedParams(Section):
    """Section `embed` of params.yaml."""

    threads: PositiveInt
    image_size: Literal["auto"] | PositiveInt
    batch_size: PositiveInt


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
            raise PipelineError(f"params.yaml: embed.image_size: the backbone refuses {image_size}: {reason}; set {own}") from None
        with atomic_dir(path.parent) as partial:
            network = with_feature_map(backbone, backbone, facts["feature_map"])
            graph = export_onnx(network, image_size, ["features", "feature_map"][: 2 if facts["feature_map"] else 1])
            add_facts(graph, {"size": count_work(backbone, image_size)})
            write_onnx(graph, partial / path.name)
            check_parity(partial / path.name, network, pixels, threads)
    return path


def embed(
    paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int, threads: int, onnx_path: Path, folder: Path
) -> tuple[Array, int]:
    """Return the features of pictures, float32 (pictures, D), in the order of their paths, and how many were not in the cache.

    `onnx_path`: the exported backbone; `folder`: the one written by the stage `backbone`.
    """
    workers = hardware.usable_cpus()
    # The bytes of a picture identify it: its path and its split may change, and they are what is decoded.
    chunks = read_ahead(paths, sha256_of_file, _SHARD_PICTURES, workers, None)
    digests = [digest.encode() for chunk in chunks for digest in chunk]
    features = np.empty((len(paths), read_json(folder / "backbone.json")["num_features"]), np.float32)
    cache = _FeatureCache(cache_dir("features") / _cache_key(onnx_path, preprocessing, batch_size, threads), features.shape[1])

    first_rows: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first_rows.setdefault(digest, row)
    new = dict(first_rows)
    for digest, values in cache.read():
        if digest in new:
            features[new.pop(digest)] = values

    rows, start = list(new.values()), 0
    run = _make_runner(onnx_path, folder, threads, batch_size)
    for pixels in square_batches([paths[row] for row in rows], preprocessing, batch_size, workers, "embed"):
        batch = rows[start : start + len(pixels)]
        features[batch] = run(pixels)
        cache.add([digests[row] for row in batch], features[batch])
        start += len(pixels)
    cache.flush()

    for row, digest in enumerate(digests):  # pictures of equal bytes were embedded once
        features[row] = features[first_rows[digest]]
    return features, sum(digest in new for digest in digests)


def embed_on_ray(paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int, threads: int, onnx_path: Path, folder: Path) -> None:
    """Embed on a Ray cluster what is not in the cache, where `embed` then finds the features of all these pictures.

    All machines need the project's folder at the same path. A chunk that is lost with its machine is embedded by another one.
    Raises PipelineError as `connected` does, or if a machine would compute other features than this one.
    """
    key = _cache_key(onnx_path, preprocessing, batch_size, threads)
    cache = _FeatureCache(cache_dir("features").absolute() / key, read_json(folder / "backbone.json")["num_features"])
    known = np.unique(np.array([digest for digest, _ in cache.read()], "S64"))
    chunks = [[path.absolute() for path in paths[start : start + _SHARD_PICTURES]] for start in range(0, len(paths), _SHARD_PICTURES)]
    with connected(threads) as ray, tqdm(total=len(paths), desc="embed", unit="picture", disable=None) as bar:
        count = min(len(chunks), max(1, int(ray.cluster_resources()["CPU"]) // threads))
        writer = ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=-1)(FeatureWriter)
        settings = (cache.folder, ray.put(known), preprocessing, batch_size, threads, onnx_path.absolute(), folder.absolute())
        pool = ray.util.ActorPool([writer.remote(*settings) for _ in range(count)])
        for embedded in pool.map_unordered(lambda actor, chunk: actor.write.remote(chunk), chunks):
            bar.update(embedded)


class FeatureWriter:
    """A process of a cluster that embeds pictures into the cache."""

    def __init__(
        self, cache: Path, known: Array, preprocessing: Preprocessing, batch_size: int, threads: int, onnx_path: Path, folder: Path
    ) -> None:
        """Open the backbone. `cache`: a folder of features; `known`: the digests of their pictures, bytes, sorted.

        Raises PipelineError if this machine would compute other features than those in the cache.
        """
        if cache.name != _cache_key(onnx_path, preprocessing, batch_size, threads):
            raise PipelineError(
                f"{platform.node()}: has another processor, GPU or package than the machine of `dvc repro`; use equal machines"
            )
        self.cache = _FeatureCache(cache, read_json(folder / "backbone.json")["num_features"])
        self.known, self.preprocessing, self.batch_size, self.threads = known, preprocessing, batch_size, threads
        self.run = _make_runner(onnx_path, folder, threads, batch_size)

    def write(self, paths: Sequence[Path]) -> int:
        """Embed the pictures that are not known, write their features, and return the number of paths."""
        digests = np.array([sha256_of_file(path) for path in paths], "S64")
        is_new = np.searchsorted(self.known, digests, "left") == np.searchsorted(self.known, digests, "right")
        rows, start = np.flatnonzero(is_new).tolist(), 0
        for pixels in square_batches([paths[row] for row in rows], self.preprocessing, self.batch_size, self.threads, "embed"):
            self.cache.add(digests[rows[start : start + len(pixels)]].tolist(), self.run(pixels))
            start += len(pixels)
        self.cache.flush()
        return len(paths)


def embed_eagerly(backbone: "nn.Module", batches: Iterable[Array], where: hardware.Hardware) -> Array:
    """Features by torch, without an export: float32 (pictures, D), of batches of pixels, uint8 (batch, S, S, 3)."""
    import torch

    where.place(backbone.eval())
    pixels = (torch.from_numpy(batch).to(where.device) for batch in batches)
    first = next(pixels)
    with folded_norms(backbone, first[:2]), torch.inference_mode():
        return np.concatenate([backbone(batch).cpu().numpy() for batch in chain([first], pixels)])


def _cache_key(onnx_path: Path, preprocessing: Preprocessing, batch_size: int, threads: int) -> str:
    """Return the sha256 of all that decides the features of a picture's bytes."""
    graph = [sha256_of_file(path) for path in sorted(onnx_path.parent.iterdir())]  # with the tensors beside it, if it is large
    decoder, runtime = code_digest("pipeline.pictures.images"), version("onnxruntime")
    device = hardware.choose_device().type
    return hardware.key_here(sha256_of_json([graph, asdict(preprocessing), decoder, runtime, device, batch_size, threads]))


def _make_runner(onnx_path: Path, folder: Path, threads: int, batch_size: int) -> Callable[[Array], Array]:
    """Return the function from pixels (N, S, S, 3), at most a batch, to features (N, D): ONNX Runtime on a CPU, torch on a GPU.

    Libraries choose their kernels by the shape of a batch, and kernels differ in the last bits. So every batch has the full size, and
    the features of a picture do not depend on how many others are new.
    """
    import torch

    device = hardware.choose_device()
    if device.type == "cpu":
        session = open_session(onnx_path, threads)
    else:
        backbone = load_backbone(folder)[0].to(device)
        hardware.mean_fp32()  # the head is trained on these features and served in fp32

    @torch.inference_mode()
    def run(pixels: Array) -> Array:
        full = np.zeros((batch_size, *pixels.shape[1:]), np.uint8)
        full[: len(pixels)] = pixels
        if device.type == "cpu":
            features: Array = session.run(["features"], {"pixels": full})[0]
        else:
            features = backbone(torch.from_numpy(full).to(device)).cpu().numpy()
        return features[: len(pixels)]

    return run


class _FeatureCache:
    """A folder of features by the sha256 of a picture's bytes, in one file per some thousand pictures.

    A file is an array of records, named by its own sha256. It appears whole, and a damaged one is known by its name: it is removed,
    and its pictures are embedded again.
    """

    def __init__(self, folder: Path, num_features: int) -> None:
        self.folder = folder
        self.record = np.dtype([("sha256", "S64"), ("features", "<f4", (num_features,))])
        self.waiting: list[Array] = []
        self.written_at = time.monotonic()

    def read(self) -> Iterator[tuple[bytes, Array]]:
        """Return all digests of pictures with their features, float32 (D)."""
        for path in sorted(self.folder.glob("*.npy")):
            if sha256_of_file(path) != path.stem:
                path.unlink(missing_ok=True)
                continue
            records = np.load(path, mmap_mode="r")
            yield from zip(records["sha256"].tolist(), records["features"], strict=True)

    def add(self, digests: list[bytes], features: Array) -> None:
        """Keep features of a batch. They are written with later ones, or once a minute has passed: a kill loses no more."""
        records = np.empty(len(digests), self.record)
        records["sha256"], records["features"] = digests, features
        self.waiting.append(records)
        if sum(map(len, self.waiting)) >= _SHARD_PICTURES or time.monotonic() - self.written_at >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self.waiting:
            file = io.BytesIO()
            np.save(file, np.concatenate(self.waiting))
            content = file.getvalue()
            with atomic_file(self.folder / f"{sha256_of(content)}.npy") as partial:
                partial.write_bytes(content)
        self.waiting, self.written_at = [], time.monotonic()
