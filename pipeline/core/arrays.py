"""Arrays that are larger than memory: in a file without a name, or as the memory map of a .npy file."""

import mmap
import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from weakref import finalize

import numpy as np

from pipeline.core.files import cache_dir

Array = np.ndarray[Any, np.dtype[Any]]


class ArrayFile(Sequence[Array]):
    """Arrays of one dtype and one number of dimensions on the disk, each read anew when it is asked for.

    So they take no memory beyond the system's cache of files, and forked processes share them. The file is in `.cache/scratch`, has no
    name, and vanishes with the last process that has it open, however that ends. Raises OSError if the disk is full.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        folder = cache_dir("scratch")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it is open as long as this object exists
        finalize(self, self._file.close)
        self._dtype, self._dimensions = np.dtype(np.uint8), 1
        self._shapes, self._starts = array("q"), array("q")  # as objects they would be copied to each process that looks at them
        for each in arrays:
            self._dtype, self._dimensions = each.dtype, each.ndim
            self._shapes.extend(each.shape)
            self._starts.append(self._file.tell())
            content = memoryview(each.tobytes())
            while content:  # without a buffer, which would try to write again when the file is closed
                content = content[self._file.write(content) :]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Array:  # type: ignore[override] # one at a time, and no slices
        number = range(len(self))[index]
        found = np.empty(self._shapes[number * self._dimensions : (number + 1) * self._dimensions], self._dtype)
        os.preadv(self._file.fileno(), [found.data], self._starts[number])
        return found


def create_array(path: Path, shape: Sequence[int]) -> "np.memmap[Any, np.dtype[Any]]":
    """A new .npy file of float32 as a writable memory map.

    Raises OSError if the disk is full: its space is taken now, since a write to a map would end the process.
    """
    rows = np.lib.format.open_memmap(path, "w+", np.float32, tuple(shape))
    if sys.platform == "linux":
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return rows


def release(rows: Array) -> None:
    """Give the pages of a memory map back to the system. They are read again when they are used again; what was written is kept."""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
