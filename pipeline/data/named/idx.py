"""IDX, the format of MNIST: two zero bytes, the type, the number of dimensions, their sizes (4 bytes each, big-endian), the values."""

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.data.members import Members
from pipeline.data.named.arrays import picture_members
from pipeline.data.named.published import Published

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

_PREFIXES = {"train": "train", "test": "t10k"}  # of the files of a split
_UINT8 = 8


def idx_members(published: Published, class_names: Sequence[str]) -> Members:
    """The pictures of MNIST, or of what is published in its format, in its splits. Raises PipelineError."""
    members: Members = {}
    for split, prefix in _PREFIXES.items():
        pictures = read_idx(published, f"{prefix}-images-idx3-ubyte", 3)
        name = f"{prefix}-labels-idx1-ubyte"
        labels = read_idx(published, name, 1)
        if len(labels) != len(pictures):
            raise published.fault(name, f"holds {len(labels)} labels for {len(pictures)} pictures")
        if labels.max() >= len(class_names):
            raise published.fault(name, f"holds the label {labels.max()}, and there are {len(class_names)} classes")
        members |= picture_members(published, split, pictures, labels.tolist(), class_names)
    return members


def read_idx(published: Published, name: str, dimensions: int) -> "NDArray[uint8]":
    """The array in a file, of that many dimensions, none of them empty. Raises PipelineError."""
    import numpy as np

    content = published.member(name)()
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, _UINT8, dimensions]):
        raise published.fault(name, f"does not begin like an IDX file of bytes, {dimensions}-dimensional")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if math.prod(shape) != len(content) - start or not all(shape):
        sizes = " x ".join(map(str, shape))
        raise published.fault(name, f"claims {sizes} values and holds {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
