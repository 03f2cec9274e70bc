"""Pictures in batches: as the network sees them, or varied for training."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.data.images import Preprocessing, decode, read_square

if TYPE_CHECKING:
    from torch import Tensor

_MEMORY_BYTES = 2 << 30

Array = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")
Found = TypeVar("Found")


def square_batches(paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int, threads: int, title: str) -> Iterator[Array]:
    """Prepared pixels, uint8 (batch, S, S, 3), in the order of the paths; the next batch is decoded meanwhile."""
    for squares in read_ahead(paths, lambda path: read_square(path, preprocessing), batch_size, threads, title):
        yield np.stack(squares)


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Found], batch_size: int, threads: int, title: str | None
) -> Iterator[list[Found]]:
    """What `read` finds for each item, in batches, in the order of the items; the next batch is read meanwhile.

    Without a title no progress is shown.
    """
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(items), desc=title, unit="picture", disable=None if title else True) as bar:
        ahead = _submit(pool, read, chunks[0]) if chunks else []
        for number, chunk in enumerate(chunks):
            current, ahead = ahead, _submit(pool, read, chunks[number + 1]) if number + 1 < len(chunks) else []
            yield [future.result() for future in current]
            bar.update(len(chunk))


def _submit(pool: ThreadPoolExecutor, read: Callable[[Item], Found], items: Sequence[Item]) -> list[Future[Found]]:
    return [pool.submit(read, item) for item in items]


class TrainingPictures:
    """A map-style dataset of varied training pictures: pixels uint8 (S, S, 3) and the number of the class.

    Pictures are decoded once, to a shorter side of `2 * image_size` at the most, and kept while they fit into memory.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], image_size: int, vary: Callable[[Image.Image], Image.Image], threads: int
    ) -> None:
        self.paths, self.labels, self.vary, self.side = paths, labels, vary, 2 * image_size
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

    def __getitem__(self, index: int) -> tuple["Tensor", int]:
        import torch

        image = self.kept.get(index) or self._read(self.paths[index])
        return torch.from_numpy(np.array(self.vary(image))), self.labels[index]

    def _read(self, path: Path) -> Image.Image:
        image = decode(path, at_least=self.side)
        scale = self.side / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return image
