"""The data of a training run, and its batches: augmented pictures, or the activations of a frozen front."""

from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from pipeline.core.files import atomic_file, read_json
from pipeline.core.hardware import Hardware
from pipeline.pictures.images import Array, Preprocessing, decode, square_batches
from pipeline.pictures.manifest import read_manifest, record_of
from pipeline.training.recipe import Recipe, class_weights, make_augmentation
from pipeline.training.temperature import halves

_MEMORY_BYTES = 2 << 30  # of decoded training pictures

# Pixels uint8 (N, S, S, 3), or activations in their place, and class numbers int64 (N,).
Batches = Sequence[tuple[Tensor, Tensor]] | DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingData:
    """Train and val pictures with their class numbers, and the outs of earlier stages that a training run reads.

    `val_halves`: see `halves`. `tiny`: whether the pictures are smaller than the backbone's input. `backbone`, `baseline`: folders.
    `inputs`: the files that decide the trained weights, by name. `learned`: see `describe_model`.
    """

    train_paths: Sequence[Path]
    train_labels: Sequence[int]
    val_paths: Sequence[Path]
    val_labels: Sequence[int]
    val_halves: Array
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
        [train / picture.path for picture in table.train],
        table.labels(table.train),
        [val / picture.path for picture in table.val],
        table.labels(table.val),
        halves(table.val),
        table.class_names,
        Preprocessing(**embedding["preprocessing"]),
        embedding["tiny"],
        backbone,
        baseline,
        inputs,
        record_of([*table.train, *table.val], read_json(backbone / "backbone.json")["learned"]),
    )


def decode_val(data: TrainingData, recipe: Recipe) -> list[Array]:
    """The val pictures in batches: uint8 (batch, S, S, 3) each."""
    return [*square_batches(data.val_paths, data.preprocessing, recipe.batch_size, recipe.threads, "decode")]


def picture_batches(data: TrainingData, val_pixels: Sequence[Array], recipe: Recipe) -> tuple[Batches, Batches]:
    """Batches of training pictures, augmented anew in each epoch, and of the val pictures as they are."""
    flip = not data.tiny if recipe.flip == "auto" else recipe.flip
    size, interpolation = data.preprocessing.image_size, data.preprocessing.interpolation
    augment = make_augmentation(size, interpolation, recipe.min_crop_area, flip, recipe.augment)
    pictures = TrainingPictures(data.train_paths, data.train_labels, size, augment, recipe.threads)
    return _dataloader(cast("Dataset[Any]", pictures), data.train_labels, recipe), _in_batches(val_pixels, data.val_labels)


def activation_batches(
    data: TrainingData, val_pixels: Sequence[Array], recipe: Recipe, front: Callable[[Tensor], Tensor], hardware: Hardware, path: Path
) -> tuple[Batches, Batches]:
    """Batches of the front's activations on the training pictures, without augmentation, and on the val pictures.

    The former are written to `path` (.npy) and read from there by a run that resumes.
    """

    def run_front(pixels: Array, precision: AbstractContextManager[Any]) -> Array:
        with torch.no_grad(), precision:
            return front(torch.from_numpy(pixels).to(hardware.device)).float().cpu().numpy()

    if not path.is_file():
        with atomic_file(path) as partial:
            rows, filled = None, 0  # a file in which the array is never in memory as a whole
            for pixels in square_batches(data.train_paths, data.preprocessing, recipe.batch_size, recipe.threads, "front"):
                batch = run_front(pixels, hardware.autocast())
                if rows is None:
                    rows = np.lib.format.open_memmap(partial, "w+", np.float32, (len(data.train_paths), *batch.shape[1:]))
                rows[filled : filled + len(batch)] = batch
                filled += len(batch)
            if rows is not None:
                rows.flush()
    examples = TensorDataset(torch.from_numpy(np.load(path, mmap_mode="c")), torch.tensor(data.train_labels))
    val = [run_front(pixels, nullcontext()) for pixels in val_pixels]  # scored in fp32, as the stored model answers
    return _dataloader(examples, data.train_labels, recipe), _in_batches(val, data.val_labels)


class TrainingPictures:
    """A map-style dataset of augmented training pictures: pixels uint8 (S, S, 3) and the class number.

    Pictures are decoded once, to a shorter side of at most `2 * image_size`, and kept while they fit into memory.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], image_size: int, augment: Callable[[Image.Image], Image.Image], threads: int
    ) -> None:
        self.paths, self.labels, self.augment, self.side = paths, labels, augment, 2 * image_size
        self.kept: dict[int, Image.Image] = {}
        with ThreadPoolExecutor(threads) as pool:
            used = 0
            for index, image in enumerate(pool.map(self._read, paths)):
                used += 3 * image.width * image.height
                if used > _MEMORY_BYTES:
                    break
                self.kept[index] = image

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.kept.get(index) or self._read(self.paths[index])
        return torch.from_numpy(np.array(self.augment(image))), self.labels[index]

    def _read(self, path: Path) -> Image.Image:
        image = decode(path, at_least=self.side)
        scale = self.side / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return image


def batch_sizes(batches: Batches) -> list[int]:
    """The number of pictures of each batch. No picture is read."""
    if not isinstance(batches, DataLoader):
        return [len(labels) for _, labels in batches]
    size, pictures = cast(int, batches.batch_size), len(cast("Sized", batches.sampler))
    return [min(size, pictures - number * size) for number in range(len(batches))]


def _dataloader(examples: "Dataset[Any]", labels: Sequence[int], recipe: Recipe) -> DataLoader[Any]:
    """Batches of examples, shuffled anew in each epoch; with `balance: sampling` each class is drawn equally often."""
    generator = torch.Generator().manual_seed(recipe.seed)
    size, sampler = recipe.batch_size, None
    if recipe.balance == "sampling":
        weights = class_weights(labels, max(labels) + 1)[torch.tensor(labels)]
        sampler = WeightedRandomSampler(weights.tolist(), len(labels), generator=generator)
    is_one_left = len(labels) % size == 1 and len(labels) > 1  # BatchNorm cannot train on a batch of one
    return DataLoader(examples, size, shuffle=sampler is None, sampler=sampler, generator=generator, drop_last=is_one_left)


def _in_batches(arrays: Sequence[Array], labels: Sequence[int]) -> Batches:
    """Arrays as tensors, each with its part of the labels."""
    parts = torch.split(torch.tensor(labels), [len(array) for array in arrays])
    return list(zip(map(torch.from_numpy, arrays), parts, strict=True))
