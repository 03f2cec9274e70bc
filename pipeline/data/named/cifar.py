"""CIFAR's binary version: records of a label or two and 3 x 32 x 32 bytes, red, green, blue; a text file names the classes."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.data.members import Members
from pipeline.data.named.arrays import picture_members
from pipeline.data.named.published import Published

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

_PIXEL_BYTES = 3 * 32 * 32


def cifar10_members(published: Published) -> Members:
    """The pictures of CIFAR-10 in its splits. Raises PipelineError."""
    folder = "cifar-10-batches-bin/"
    splits = {"train": [f"{folder}data_batch_{number}.bin" for number in range(1, 6)], "test": [f"{folder}test_batch.bin"]}
    return _members(published, splits, published.class_names(f"{folder}batches.meta.txt"), 1)


def cifar100_members(published: Published) -> Members:
    """The pictures of CIFAR-100 in its splits, by their fine classes. Raises PipelineError."""
    folder = "cifar-100-binary/"
    splits = {"train": [f"{folder}train.bin"], "test": [f"{folder}test.bin"]}
    return _members(published, splits, published.class_names(f"{folder}fine_label_names.txt"), 2)


def _members(published: Published, splits: dict[str, list[str]], class_names: Sequence[str], label_bytes: int) -> Members:
    members: Members = {}
    for split, names in splits.items():
        batches = [_read_batch(published, name, label_bytes, len(class_names)) for name in names]
        pictures = chain.from_iterable(pictures for pictures, _ in batches)
        labels = chain.from_iterable(labels.tolist() for _, labels in batches)
        members |= picture_members(published, split, pictures, labels, class_names)
    return members


def _read_batch(published: Published, name: str, label_bytes: int, num_classes: int) -> "tuple[NDArray[uint8], NDArray[uint8]]":
    """The pictures of a file, (N, 32, 32, 3), and their labels, (N,). Of a coarse and a fine label the fine one stands last."""
    import numpy as np

    content = published.member(name)()
    size = label_bytes + _PIXEL_BYTES
    if not content or len(content) % size:
        raise published.fault(name, f"holds {len(content)} bytes, which is no whole number of records of {size}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1]
    if labels.max() >= num_classes:
        raise published.fault(name, f"holds the label {labels.max()}, and there are {num_classes} classes")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
