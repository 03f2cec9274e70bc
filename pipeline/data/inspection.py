"""A look at every picture: whether it decodes, how large it is, and what tells whether it is there twice."""

import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from tqdm import tqdm

from pipeline.data.images import BrokenPicture, Traits, decode_with_traits
from pipeline.files import sha256_of

_BATCH, _BATCH_BYTES = 256, 256_000_000
_THUMBNAIL = 32
_ONE_COLOUR = 4  # levels of 255 by which a JPEG's single colour may vary
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}

Thumbnail = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Look:
    """What a picture that decodes is like.

    `width`, `height`: pixels, upright; `pixels_sha256`: of the decoded pixels and their size, the same for the same
    picture in another file; `perceptual_hash`: 64 bits, near for pictures that look alike; `thumbnail`: RGB, 0 to 255,
    (32, 32, 3), the whole picture squeezed; `is_one_colour`: nothing can be seen on it.
    """

    width: int
    height: int
    traits: Traits
    pixels_sha256: str
    perceptual_hash: int
    thumbnail: Thumbnail
    is_one_colour: bool


@dataclass(frozen=True)
class Inspected:
    """The sum of a file's bytes, and the picture in it or what is wrong with it."""

    sha256: str
    look: Look | None = None
    fault: str = ""


def inspect(content: bytes) -> Inspected:
    """Decode a picture to its last byte and look at it."""
    if not content:
        return Inspected(sha256_of(content), fault="an empty file")
    try:
        image, traits = decode_with_traits(content)
    except BrokenPicture as error:
        return Inspected(sha256_of(content), fault=str(error))
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX if min(image.size) >= _THUMBNAIL else Image.Resampling.BILINEAR)
    look = Look(
        image.width,
        image.height,
        traits,
        sha256_of(f"{image.size}".encode() + image.tobytes()),
        perceptual_hash(image),
        np.asarray(thumbnail),
        all(high - low <= _ONE_COLOUR for low, high in image.getextrema()),  # type: ignore[misc]
    )
    return Inspected(sha256_of(content), look)


def inspect_all(archive: zipfile.ZipFile, names: list[str]) -> dict[str, Inspected]:
    """Inspect members of the archive, some at once on all cores."""
    inspected: dict[str, Inspected] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(names), desc="decode", disable=None) as bar:
        for batch in _batches(archive, names):
            inspected.update(zip(batch, pool.map(inspect, [archive.read(name) for name in batch]), strict=True))
            bar.update(len(batch))
    return inspected


def _batches(archive: zipfile.ZipFile, names: list[str]) -> Iterator[list[str]]:
    """The names in their order, so many at once as memory should hold the files of."""
    batch, size = list[str](), 0
    for name in names:
        batch.append(name)
        size += archive.getinfo(name).file_size
        if size > _BATCH_BYTES or len(batch) == _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def perceptual_hash(image: Image.Image) -> int:
    """64 bits (the last is 0): which of the lowest 63 frequencies of its brightness exceed their median.

    The DCT hash of Zauner, «Implementation and benchmarking of perceptual image hash functions» (2010).
    """
    brightness = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = dctn(brightness, norm="ortho")[:8, :8].ravel()[1:]
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def wrong_suffix(name: str, picture_format: str) -> bool:
    """Whether a file's name ends as if it were of another format than it is."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix not in ("", *_SUFFIXES["JPEG" if picture_format == "MPO" else picture_format])
