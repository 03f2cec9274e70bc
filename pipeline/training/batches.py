"""What the loop is fed with: pictures that vary, or what the frozen front of a network made of them once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from pipeline.data.images import Preprocessing
from pipeline.data.loading import Array, TrainingPictures, square_batches
from pipeline.files import atomic_file
from pipeline.training.finetune import Batches, Hardware
from pipeline.training.settings import Settings
from pipeline.training.variation import class_weights, make_variation


@dataclass(frozen=True)
class Material:
    """What is learned from: paths of the training pictures, decoded val pictures (uint8 (batch, S, S, 3) each), class numbers.

    `flip`: whether a picture's mirror image is one of the same kind.
    """

    paths: Sequence[Path]
    labels: Sequence[int]
    val_pixels: Sequence[Array]
    val_labels: Sequence[int]
    preprocessing: Preprocessing
    flip: bool


@dataclass(frozen=True)
class Kitchen:
    """What makes batches of the material, by the recipe's settings."""

    settings: Settings

    def from_pictures(self, material: Material) -> tuple[Batches, Batches]:
        """The training pictures, varied anew each time, and the val pictures as they are."""
        size, settings = material.preprocessing.image_size, self.settings
        variation = make_variation(size, material.preprocessing.interpolation, settings.min_crop_area, material.flip, settings.augment)
        pictures = TrainingPictures(material.paths, material.labels, size, variation, settings.threads)
        return self._deal(cast("Dataset[Any]", pictures), material.labels), _in_parts(material.val_pixels, material.val_labels)

    def from_activations(
        self, material: Material, front: Callable[[Tensor], Tensor], hardware: Hardware, path: Path
    ) -> tuple[Batches, Batches]:
        """What a front makes of the training pictures and of the val pictures, as they are; the former are kept in `path` (.npy)."""

        def make(pixels: Array) -> Array:
            with torch.no_grad(), hardware.autocast():
                return front(torch.from_numpy(pixels).to(hardware.device)).float().cpu().numpy()

        if not path.is_file():
            batches = square_batches(material.paths, material.preprocessing, self.settings.batch_size, self.settings.threads, "front")
            _keep(path, map(make, batches), len(material.paths))
        train = torch.from_numpy(np.load(path, mmap_mode="c"))
        examples = TensorDataset(train, torch.tensor(material.labels))
        return self._deal(examples, material.labels), _in_parts([make(pixels) for pixels in material.val_pixels], material.val_labels)

    def _deal(self, examples: "Dataset[Any]", labels: Sequence[int]) -> Batches:
        """Examples in batches, shuffled anew each epoch; balanced, they are drawn so that each class comes equally often.

        A last batch of one is left out: BatchNorm cannot learn from it.
        """
        generator = torch.Generator().manual_seed(self.settings.seed)
        size, sampler = self.settings.batch_size, None
        if self.settings.balance == "sampling":
            weights = class_weights(labels, max(labels) + 1)[torch.tensor(labels)]
            sampler = WeightedRandomSampler(weights.tolist(), len(labels), generator=generator)
        is_one_left = len(labels) % size == 1 and len(labels) > 1
        return DataLoader(examples, size, shuffle=sampler is None, sampler=sampler, generator=generator, drop_last=is_one_left)


def _keep(path: Path, batches: "map[Array]", count: int) -> None:
    """Write the rows of some batches as one array, `count` of them."""
    with atomic_file(path) as partial:
        first = next(batches)
        kept = np.lib.format.open_memmap(partial, "w+", np.float32, (count, *first.shape[1:]))
        kept[: len(first)] = first
        filled = len(first)
        for batch in batches:
            kept[filled : filled + len(batch)] = batch
            filled += len(batch)
        kept.flush()


def _in_parts(arrays: Sequence[Array], labels: Sequence[int]) -> Batches:
    """Arrays as they are, with their part of the labels."""
    parts = torch.split(torch.tensor(labels), [len(array) for array in arrays])
    return list(zip(map(torch.from_numpy, arrays), parts, strict=True))
