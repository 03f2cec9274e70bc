"""The features of pictures: each picture is embedded once, and its features are kept by the sha256 of its bytes.

One process, several of a group, or the machines of a Ray cluster write features into a cache, from which they are then collected.
"""

import io
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.core import hardware, processes
from pipeline.core.arrays import create_array, release
from pipeline.core.errors import PipelineError
from pipeline.core.files import Slice, atomic_file, cache_dir, read_json, sha256_of, sha256_of_file, sha256_of_json
from pipeline.core.stage import code_digest
from pipeline.networks.onnx_file import PART, open_session, run_in_parts
from pipeline.pictures.images import Array, Preprocessing, read_ahead, square_batches

_FILE_PICTURES, _FILE_SECONDS = 4096, 60.0  # the features of so many pictures, or of so long, go into one file of the cache


@dataclass(frozen=True)
class Embedder:
    """How pictures are embedded. `onnx_path`: the exported backbone; `folder`: the one written by the stage `backbone`."""

    preprocessing: Preprocessing
    batch_size: int
    threads: int
    onnx_path: Path
    folder: Path

    @property
    def num_features(self) -> int:
        """The number of features of a picture."""
        return int(read_json(self.folder / "backbone.json")["num_features"])

    @cached_property
    def cache(self) -> "FeatureCache":
        """The features that were computed in this way, on such a machine."""
        return FeatureCache(cache_dir("features") / self.key(), self.num_features)

    def key(self) -> str:
        """The sha256 of all that decides the features of a picture's bytes."""
        graph = [sha256_of_file(path) for path in sorted(self.onnx_path.parent.iterdir())]  # with the tensors beside it, if it is large
        decoder, runtime, device = code_digest("pipeline.pictures.images"), version("onnxruntime"), hardware.device_type()
        facts = [graph, asdict(self.preprocessing), decoder, runtime, device, PART, self.batch_size, self.threads]
        return hardware.key_here(sha256_of_json(facts))

    def embed(self, sources: Sequence[Path | Slice], digests: Array, cache: "FeatureCache", workers: int) -> None:
        """Embed pictures, decoded in that many threads, and write their features into a cache. `digests`: of their bytes."""
        run, start = self._make_runner(), 0
        for pixels in square_batches(sources, self.preprocessing, self.batch_size, workers, "embed"):
            cache.add(digests[start : start + len(pixels)], run(pixels))
            start += len(pixels)
        cache.flush()

    def _make_runner(self) -> Callable[[Array], Array]:
        """The function from pixels (N, S, S, 3), at most a batch, to features (N, D): ONNX Runtime on a CPU, torch on a GPU.

        Libraries choose their kernels by the shape of a batch, and kernels differ in the last bits. So all that is run at once has one
        size, and the features of a picture do not depend on how many others are new.
        """
        if hardware.device_type() == "cpu":
            session = open_session(self.onnx_path, self.threads)
            return lambda pixels: run_in_parts(session, ["features"], _filled(pixels, PART), self.threads)[0][: len(pixels)]
        import torch

        from pipeline.networks.classifier import load_backbone

        device = hardware.choose_device()
        backbone = load_backbone(self.folder)[0].to(device)
        hardware.mean_fp32()  # the head is trained on these features and served in fp32

        @torch.inference_mode()
        def run(pixels: Array) -> Array:
            features: Array = backbone(torch.from_numpy(_filled(pixels, self.batch_size)).to(device)).cpu().numpy()
            return features[: len(pixels)]

        return run


def digests_of(sources: Sequence[Path | Slice]) -> Array:
    """The sha256 of each picture's bytes, S64 (pictures,). Of several processes each reads its share.

    The bytes identify a picture: its path and its split may change, and they are what is decoded.
    """
    own = processes.share(len(sources))
    chunks = read_ahead(sources[own], sha256_of_file, _FILE_PICTURES, hardware.usable_cpus(), None)
    hashed = np.concatenate([np.empty(0, "S64"), *(np.array(chunk, "S64") for chunk in chunks)])
    return processes.gather(hashed.view(np.uint8).reshape(-1, 64)).view("S64")[:, 0]


def embed_new(sources: Sequence[Path | Slice], digests: Array, embedder: Embedder) -> int:
    """Embed the pictures whose features are not in the cache, and return how many these are.

    Of several processes each embeds its share of them. The number is that of the leading process.
    """
    cache = embedder.cache
    rows, count = _new_rows(digests, cache) if processes.leads() else ([], 0)
    own = processes.own_share(rows)
    if own:
        embedder.embed([sources[row] for row in own], digests[own], cache, hardware.usable_cpus())
    processes.wait_for_all()
    return count


def embed_on_ray(sources: Sequence[Path | Slice], digests: Array, embedder: Embedder) -> None:
    """Embed the pictures whose features are not in the cache on a Ray cluster.

    All machines need the project's folder at the same path. A chunk that is lost with its machine is embedded by another one.
    Raises PipelineError as `connected` does, or if a machine would compute other features than this one.
    """
    from tqdm import tqdm

    from pipeline.core.cluster import connected

    cache = embedder.cache
    rows, _ = _new_rows(digests, cache)
    chunks = [rows[start : start + _FILE_PICTURES] for start in range(0, len(rows), _FILE_PICTURES)]
    if not chunks:
        return
    with connected(embedder.threads) as ray, tqdm(total=len(rows), desc="embed", unit="picture", disable=None) as bar:
        count = min(len(chunks), max(1, int(ray.cluster_resources()["CPU"]) // embedder.threads))
        writer = ray.remote(num_cpus=embedder.threads, max_restarts=-1, max_task_retries=-1)(FeatureWriter)
        pool = ray.util.ActorPool([writer.remote(embedder, cache.folder.absolute(), Path.cwd()) for _ in range(count)])
        work = [([sources[row] for row in chunk], digests[chunk]) for chunk in chunks]
        for embedded in pool.map_unordered(lambda actor, chunk: actor.write.remote(*chunk), work):
            bar.update(embedded)


class FeatureWriter:
    """A process of a cluster that embeds pictures into the cache."""

    def __init__(self, embedder: Embedder, cache: Path, project: Path) -> None:
        """`cache`: a folder of features; `project`: the folder in which the paths begin.

        Raises PipelineError if this machine would compute other features than those in the cache.
        """
        os.chdir(project)
        if cache.name != embedder.key():
            raise PipelineError(
                f"{platform.node()}: has another processor, GPU or package than the machine of `dvc repro`; use equal machines"
            )
        self.embedder, self.cache = embedder, FeatureCache(cache, embedder.num_features)

    def write(self, sources: Sequence[Path | Slice], digests: Array) -> int:
        """Embed pictures, write their features, and return their number."""
        self.embedder.embed(sources, digests, self.cache, self.embedder.threads)
        return len(sources)


def write_features(digests: Array, embedder: Embedder, path: Path) -> None:
    """Collect features from the cache, in the order of the digests: a new .npy file, float32 (pictures, D), never in memory as a whole.

    Raises PipelineError if the cache lacks some of them.
    """
    features = create_array(path, (len(digests), embedder.num_features))
    known, numbers = np.unique(digests, return_inverse=True)
    missing = np.ones(len(known), bool)
    for records in embedder.cache.read():
        _, of_known, of_records = np.intersect1d(known, records["sha256"], return_indices=True)
        place = np.full(len(known), -1)
        place[of_known] = of_records
        rows = np.flatnonzero(place[numbers] >= 0)
        features[rows] = records["features"][place[numbers[rows]]]
        missing[of_known] = False
        release(features)
    if missing.any():
        raise PipelineError(f".cache/features: a file was removed or damaged meanwhile ({missing.sum()} pictures); run `dvc repro` again")
    features.flush()


def _new_rows(digests: Array, cache: "FeatureCache") -> tuple[list[int], int]:
    """The first row of each digest that is not in the cache, in order, and the number of all pictures with such digests."""
    distinct, first_rows, counts = np.unique(digests, return_index=True, return_counts=True)
    is_new = ~np.isin(distinct, cache.digests())
    return np.sort(first_rows[is_new]).tolist(), int(counts[is_new].sum())


def _filled(pixels: Array, multiple: int) -> Array:
    """Pixels with black pictures at the end, so that their number is a multiple."""
    return np.pad(pixels, ((0, -len(pixels) % multiple), (0, 0), (0, 0), (0, 0)))


class FeatureCache:
    """A folder of features by the sha256 of a picture's bytes, in one file per some thousand pictures. Several processes may write to it.

    A file is an array of records, named by its own sha256. It appears whole, and a damaged one is known by its name: it is removed,
    and its pictures are embedded again.
    """

    def __init__(self, folder: Path, num_features: int) -> None:
        self.folder = folder
        self.record = np.dtype([("sha256", "S64"), ("features", "<f4", (num_features,))])
        self.waiting: list[Array] = []
        self.sound: set[str] = set()  # files whose content was compared with their names
        self.written_at = time.monotonic()

    def read(self) -> Iterator[Array]:
        """Return the records of each file: `sha256` of a picture, bytes, and its `features`, float32 (D)."""
        for path in sorted(self.folder.glob("*.npy")):
            if path.stem not in self.sound and sha256_of_file(path) != path.stem:
                path.unlink(missing_ok=True)
                continue
            self.sound.add(path.stem)
            yield np.load(path, mmap_mode="r")

    def digests(self) -> Array:
        """The digests of all pictures in the cache, S64."""
        return np.concatenate([np.empty(0, "S64"), *(records["sha256"] for records in self.read())])

    def add(self, digests: Array, features: Array) -> None:
        """Keep features of a batch. They are written with later ones, or once a minute has passed: a kill loses no more."""
        records = np.empty(len(digests), self.record)
        records["sha256"], records["features"] = digests, features
        self.waiting.append(records)
        if sum(map(len, self.waiting)) >= _FILE_PICTURES or time.monotonic() - self.written_at >= _FILE_SECONDS:
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
