"""The data of a training run, and its batches: augmented pictures, or the activations of a frozen front."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

from pipeline.core.arrays import ArrayFile, create_array, release
from pipeline.core.files import Slice, atomic_file, cache_dir, read_json
from pipeline.core.hardware import Hardware, usable_cpus
from pipeline.core.processes import share
from pipeline.pictures.images import Array, Preprocessing, decode, read_ahead, square_batches
from pipeline.pictures.manifest import read_manifest, record_of
from pipeline.training.recipe import Recipe, class_weights, make_augmentation
from pipeline.training.temperature import halves

_DISK_SHARE = 0.5  # of the free space, for decoded training pictures
_AHEAD = 64  # pictures that are decoded while others are written
_MOST_WORKERS, _FEW_BATCHES = 8, 4
_SHARED_MEMORY, _PREFETCHED = Path("/dev/shm"), 3  # noqa: S108 - batches come through it: per worker two that wait and one in use

# Pixels uint8 (N, S, S, 3), or activations in their place, and class numbers int64 (N,).
ValBatches = Sequence[tuple[Tensor, Tensor]]
Batches = ValBatches | DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingData:
    """Train and val pictures with their class numbers, and the outs of earlier stages that a training run reads.

    `val_halves`: see `halves`. `tiny`: whether the pictures are smaller than the backbone's input. `backbone`, `baseline`: folders.
    `inputs`: the files that decide the trained weights, by name. `learned`: see `describe_model`.
    """

    train_paths: Sequence[Path | Slice]
    train_labels: Sequence[int]
    val_paths: Sequence[Path | Slice]
    val_labels: Sequence[int]
    val_halves: Array
    val_groups: Sequence[str]
    class_names: Sequence[str]
    preprocessing: Preprocessing
    tiny: bool
    backbone: Path
    baseline: Path
    inputs: Mapping[str, Path]
    learned: str


def read_training_data(train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path, baseline: Path) -> TrainingData:
    """Read the manifest and the embedding's description. No picture is decoded."""
    table, embedding = read_manifest(manifest), read_json(embeddings / "embedding.json")
    inputs = {
        "data": manifest,
        "architecture": backbone / "backbone.json",
        "embedding": embeddings / "embedding.json",
        "baseline": baseline / "model.safetensors",
    }
    return TrainingData(
        [picture.source(train) for picture in table.train],
        table.labels(table.train),
        [picture.source(val) for picture in table.val],
        table.labels(table.val),
        halves(table.val),
        [picture.group for picture in table.val],
        table.class_names,
        Preprocessing(**embedding["preprocessing"]),
        embedding["tiny"],
        backbone,
        baseline,
        inputs,
        record_of([*table.train, *table.val], read_json(backbone / "backbone.json")["learned"]),
    )


def decode_val(data: TrainingData, recipe: Recipe) -> Sequence[Array]:
    """The val pictures in batches: uint8 (batch, S, S, 3) each. They are decoded once, and are on the disk."""
    return ArrayFile(square_batches(data.val_paths, data.preprocessing, recipe.batch_size, recipe.threads, "decode"))


def picture_batches(data: TrainingData, val_pixels: Sequence[Array], recipe: Recipe, size: int) -> tuple[Batches, ValBatches]:
    """Batches of training pictures, augmented anew in each epoch to that side in pixels, and of the val pictures as they are."""
    flip = not data.tiny if recipe.flip == "auto" else recipe.flip
    augment = make_augmentation(size, data.preprocessing.interpolation, recipe.min_crop_area, flip, recipe.augment)
    pictures = TrainingPictures(data.train_paths, data.train_labels, size, augment, recipe.threads)
    workers = _workers(len(data.train_paths), recipe.batch_size, size)
    return _dataloader(cast("Dataset[Any]", pictures), data.train_labels, recipe, workers), ArrayBatches(val_pixels, data.val_labels)


def activation_batches(
    data: TrainingData, val_pixels: Sequence[Array], recipe: Recipe, front: Callable[[Tensor], Tensor], hardware: Hardware, path: Path
) -> tuple[Batches, ValBatches]:
    """Batches of the front's activations on the training pictures, without augmentation, and on the val pictures.

    The former are written to `path` (.npy) and read from there by a run that resumes.
    """

    def run_front(pixels: Array, precision: AbstractContextManager[Any]) -> Array:
        with torch.no_grad(), precision:
            return front(torch.from_numpy(pixels).to(hardware.device)).float().cpu().numpy()

    if not path.is_file():
        with atomic_file(path) as partial:
            rows, filled = None, 0
            for pixels in square_batches(data.train_paths, data.preprocessing, recipe.batch_size, recipe.threads, "front"):
                batch = run_front(pixels, hardware.autocast())
                if rows is None:
                    rows = create_array(partial, (len(data.train_paths), *batch.shape[1:]))
                rows[filled : filled + len(batch)] = batch
                filled += len(batch)
                release(rows)
            if rows is not None:
                rows.flush()
    examples = Activations(np.load(path, mmap_mode="r"), data.train_labels)
    val = ArrayFile(run_front(pixels, nullcontext()) for pixels in val_pixels)  # scored in fp32, as the stored model answers
    return _dataloader(cast("Dataset[Any]", examples), data.train_labels, recipe), ArrayBatches(val, data.val_labels)


class Activations:
    """A map-style dataset of activations, float32, and class numbers. It is asked as `TrainingPictures` is.

    `rows`: a memory map. What was read of it leaves memory again.
    """

    def __init__(self, rows: Array, labels: Sequence[int]) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int]:
        index, _ = drawn
        activations = torch.tensor(self.rows[index])
        release(self.rows)
        return activations, self.labels[index]


class ArrayBatches(Sequence[tuple[Tensor, Tensor]]):
    """Arrays as tensors, each with its part of the labels. All but the last have one length. An array is read when it is asked for."""

    def __init__(self, arrays: Sequence[Array], labels: Sequence[int]) -> None:
        self.arrays = arrays
        self.labels = torch.split(torch.tensor(labels), len(arrays[0])) if arrays else ()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override] # one at a time, and no slices
        return torch.from_numpy(self.arrays[index]), self.labels[index]


class TrainingPictures:
    """A map-style dataset of augmented training pictures: pixels uint8 (S, S, 3) and the class number, for an index and a seed.

    Pictures are decoded once, to a shorter side of at most `2 * image_size`, and kept on the disk. Those that do not fit into half of its
    free space are decoded each time.
    """

    def __init__(
        self,
        paths: Sequence[Path | Slice],
        labels: Sequence[int],
        image_size: int,
        augment: Callable[[Image.Image], Image.Image],
        threads: int,
    ) -> None:
        self.paths, self.labels, self.augment, self.side = paths, labels, augment, 2 * image_size
        self.kept = ArrayFile(self._first(threads))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = drawn
        image = Image.fromarray(self.kept[index]) if index < len(self.kept) else self._read(self.paths[index])
        with torch.random.fork_rng(devices=[]):  # so that the picture does not depend on which process augments it, and when
            torch.manual_seed(seed)
            return torch.from_numpy(np.array(self.augment(image))), self.labels[index]

    def _first(self, threads: int) -> Iterator[Array]:
        """The pictures that fit on the disk."""
        room = _DISK_SHARE * shutil.disk_usage(cache_dir("scratch")).free
        for images in read_ahead(self.paths, self._read, _AHEAD, threads, "decode"):
            for pixels in map(np.asarray, images):
                room -= pixels.nbytes
                if room < 0:
                    return
                yield pixels

    def _read(self, path: Path | Slice) -> Image.Image:
        image = decode(path, at_least=self.side)
        scale = self.side / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return image


def batch_sizes(batches: Batches) -> list[int]:
    """The number of pictures of each batch, those of all processes together. No training picture is read."""
    if not isinstance(batches, DataLoader):
        return [len(labels) for _, labels in batches]
    batch_sampler = cast(BatchSampler, batches.batch_sampler)
    size, pictures = batch_sampler.batch_size, len(cast("Sized", batch_sampler.sampler))
    return [min(size, pictures - number * size) for number in range(len(batches))]


class Draws(Sampler[tuple[int, int]]):
    """The examples in the order of another sampler, each with a seed of its own. All comes from one generator."""

    def __init__(self, order: Sampler[int], generator: torch.Generator) -> None:
        self.order, self.generator = order, generator

    def __len__(self) -> int:
        return len(cast("Sized", self.order))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(self.order)
        return zip(order, torch.randint(2**62, (len(order),), generator=self.generator).tolist(), strict=True)


class SharedBatches(BatchSampler):
    """This process's share of each batch that one process would see. Without a share it has one of the pictures, which does not count."""

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            yield batch[share(len(batch))] or batch[:1]


def _dataloader(examples: "Dataset[Any]", labels: Sequence[int], recipe: Recipe, workers: int = 0) -> DataLoader[Any]:
    """Batches of examples, shuffled anew in each epoch; with `balance: sampling` each class is drawn equally often."""
    generator = torch.Generator().manual_seed(recipe.seed)
    order: Sampler[int] = RandomSampler(labels, generator=generator)
    if recipe.balance == "sampling":
        weights = class_weights(labels, max(labels) + 1)[torch.tensor(labels)]
        order = WeightedRandomSampler(weights.tolist(), len(labels), generator=generator)
    is_one_left = len(labels) % recipe.batch_size == 1 and len(labels) > 1  # BatchNorm cannot train on a batch of one
    return DataLoader(
        examples, batch_sampler=SharedBatches(Draws(order, generator), recipe.batch_size, is_one_left),  # type: ignore[arg-type]
        pin_memory=torch.cuda.is_available(), num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None, worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # of no use; from another one it would draw more or less often, by the number of workers
    )  # fmt: skip


def _leave_signals_to_the_parent(_: int) -> None:
    """Outlive a signal to the whole group of processes: the parent ends in order, and this process ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _workers(pictures: int, batch_size: int, side: int) -> int:
    """How many processes augment pictures: one less than there are processors, none where they do not pay or cannot work."""
    if sys.platform != "linux" or pictures < _FEW_BATCHES * batch_size:  # elsewhere a new process imports everything again
        return 0
    batch_bytes = _PREFETCHED * batch_size * side * side * 3
    room = shutil.disk_usage(_SHARED_MEMORY).free // (2 * batch_bytes) if _SHARED_MEMORY.is_dir() else 0
    return min(max(1, usable_cpus() - 1), _MOST_WORKERS, room)
