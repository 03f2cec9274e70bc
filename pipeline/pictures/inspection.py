"""Decode every picture once: is it broken, how large is it, and which pictures are duplicates."""

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from tqdm import tqdm

from pipeline.core.files import sha256_of
from pipeline.pictures.images import BrokenPicture, Traits, decode_with_traits

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
class PictureInfo:
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
class Inspection:
    """The sum of a file's bytes, and the picture in it or what is wrong with it."""

    sha256: str
    look: PictureInfo | None = None
    fault: str = ""


def inspect(content: bytes) -> Inspection:
    """Decode a picture to its last byte and look at it."""
    if not content:
        return Inspection(sha256_of(content), fault="an empty file")
    try:
        image, traits = decode_with_traits(content)
    except BrokenPicture as error:
        return Inspection(sha256_of(content), fault=str(error))
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX if min(image.size) >= _THUMBNAIL else Image.Resampling.BILINEAR)
    look = PictureInfo(
        image.width,
        image.height,
        traits,
        sha256_of(f"{image.size}".encode() + image.tobytes()),
        perceptual_hash(image),
        np.asarray(thumbnail),
        all(high - low <= _ONE_COLOUR for low, high in image.getextrema()),  # type: ignore[misc]
    )
    return Inspection(sha256_of(content), look)


def inspect_all(archive: zipfile.ZipFile, names: list[str]) -> dict[str, Inspection]:
    """Inspect members of the archive, some at once on all cores."""
    inspected: dict[str, Inspection] = {}
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


_NEAR_BITS = 6  # of 63: re-encoding a photograph or halving its size changed 2 at the most
_ROWS = 128  # of all pairs, held at once
Pair = tuple[str, str]


class Groups:
    """Names in groups, each called by the first of its names; at the start every name is a group of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._above = {name: name for name in names}

    def of(self, name: str) -> str:
        """The group of a name."""
        while self._above[name] != name:
            self._above[name] = name = self._above[self._above[name]]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Make one group of the groups of all these names."""
        roots = sorted({self.of(name) for name in names})
        self._above.update(dict.fromkeys(roots, roots[0]))


def exact_duplicates(looks: Mapping[str, PictureInfo]) -> list[list[str]]:
    """Two and more names whose decoded pixels are equal, in the order of their names."""
    equal: dict[str, list[str]] = defaultdict(list)
    for name in sorted(looks):
        equal[looks[name].pixels_sha256].append(name)
    return [names for names in equal.values() if len(names) > 1]


def near_duplicates(looks: Mapping[str, PictureInfo], similarity: float) -> list[Pair]:
    """Pairs of names whose pictures are not equal but look alike: as many pairs as it takes to link all that do.

    Their perceptual hashes differ in 6 bits at the most, and their thumbnails correlate (Pearson's r over all colours)
    with `similarity` or more. Of equal pictures the first stands for all; a picture of one colour is like no other.
    """
    distinct = {looks[name].pixels_sha256: name for name in sorted(looks, reverse=True) if not looks[name].is_one_colour}
    names = sorted(distinct.values())
    groups, pairs = Groups(names), []
    for first, second in _near_hashes([looks[name].perceptual_hash for name in names]):
        pair = names[first], names[second]
        if groups.of(pair[0]) != groups.of(pair[1]) and _correlation(*(looks[name].thumbnail for name in pair)) >= similarity:
            groups.join(pair)
            pairs.append(pair)
    return pairs


def _near_hashes(hashes: list[int]) -> Iterator[tuple[int, int]]:
    column = np.array(hashes, dtype=np.uint64)
    for start in tqdm(range(0, len(hashes), _ROWS), "compare", disable=None, leave=False):
        differing: Any = np.bitwise_count(column[start : start + _ROWS, np.newaxis] ^ column[np.newaxis, start:])
        for first, is_near in enumerate(differing <= _NEAR_BITS, start):
            for second in np.flatnonzero(is_near[first - start + 1 :]).tolist():
                yield first, first + 1 + second


def _correlation(first: Thumbnail, second: Thumbnail) -> float:
    one, other = (thumbnail.ravel() - thumbnail.mean() for thumbnail in (first, second))
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))
