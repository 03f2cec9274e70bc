"""Decode every picture once: whether it is broken, its size, and its duplicates."""

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
from pipeline.core.hardware import usable_cpus
from pipeline.pictures.images import JPEG_2000_SUFFIXES, BrokenPicture, Traits, decode_with_traits

_BATCH, _BATCH_BYTES = 256, 256_000_000  # files in memory at once
_THUMBNAIL = 32  # side in pixels
_ONE_COLOUR = 4  # levels of 255 that a JPEG of a single colour may span
_NEAR_BITS = 6  # of 63: re-encoding a photograph or halving its size changed 2 at most
_ROWS = 128  # of the matrix of all pairs, in memory at once
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": JPEG_2000_SUFFIXES,
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
Thumbnail = np.ndarray[Any, np.dtype[np.uint8]]
Pair = tuple[str, str]


@dataclass(frozen=True)
class PictureInfo:
    """The facts about a picture that decodes.

    `width`, `height`: pixels, upright; `pixels_sha256`: of the decoded pixels and their size, equal for the same picture
    in another file; `perceptual_hash`: 64 bits, close for pictures that look alike; `thumbnail`: (32, 32, 3), uint8, RGB,
    the whole picture without its aspect ratio; `is_one_colour`: no channel varies by more than 4 levels of 255.
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
    """The sha256 of a file's bytes, with the facts about its picture, or the reason why it does not decode."""

    sha256: str
    info: PictureInfo | None = None
    fault: str = ""


class Groups:
    """A partition of names. Each group is called by the first of its names; at first every name is its own group."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parents = {name: name for name in names}

    def of(self, name: str) -> str:
        """The group of a name."""
        while self._parents[name] != name:
            # Union-find: each step halves the path to the root, so that later searches are short.
            self._parents[name] = name = self._parents[self._parents[name]]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Merge the groups of all these names."""
        roots = sorted({self.of(name) for name in names})
        self._parents.update(dict.fromkeys(roots, roots[0]))


def inspect(content: bytes) -> Inspection:
    """Decode a picture to its last byte and collect the facts about it."""
    if not content:
        return Inspection(sha256_of(content), fault="an empty file")
    try:
        image, traits = decode_with_traits(content)
    except BrokenPicture as error:
        return Inspection(sha256_of(content), fault=str(error))
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX if min(image.size) >= _THUMBNAIL else Image.Resampling.BILINEAR)
    info = PictureInfo(
        image.width,
        image.height,
        traits,
        sha256_of(f"{image.size}".encode() + image.tobytes()),
        perceptual_hash(image),
        np.asarray(thumbnail),
        all(high - low <= _ONE_COLOUR for low, high in image.getextrema()),  # type: ignore[misc]
    )
    return Inspection(sha256_of(content), info)


def inspect_all(archive: zipfile.ZipFile, names: list[str]) -> dict[str, Inspection]:
    """Inspect members of the archive in parallel, on all cores. At most 256 files or 256 MB are in memory at once."""
    inspected: dict[str, Inspection] = {}
    with ThreadPoolExecutor(usable_cpus()) as pool, tqdm(total=len(names), desc="decode", disable=None) as bar:
        for batch in _batches(archive, names):
            inspected.update(zip(batch, pool.map(inspect, [archive.read(name) for name in batch]), strict=True))
            bar.update(len(batch))
    return inspected


def perceptual_hash(image: Image.Image) -> int:
    """64 bits, the last of them 0: which of the 63 lowest frequencies of the brightness exceed their median.

    The DCT hash of Zauner, «Implementation and benchmarking of perceptual image hash functions» (2010).
    """
    brightness = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    # The first frequency is the mean brightness: without it, a brighter copy has the same hash.
    frequencies = dctn(brightness, norm="ortho")[:8, :8].ravel()[1:]
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def wrong_suffix(name: str, picture_format: str) -> bool:
    """Whether a file's suffix belongs to a format other than its own. A name without a suffix is not wrong."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix not in ("", *_SUFFIXES["JPEG" if picture_format == "MPO" else picture_format])


def exact_duplicates(infos: Mapping[str, PictureInfo]) -> list[list[str]]:
    """The names of pictures with equal pixels, two or more per list, each list sorted."""
    equal: dict[str, list[str]] = defaultdict(list)
    for name in sorted(infos):
        equal[infos[name].pixels_sha256].append(name)
    return [names for names in equal.values() if len(names) > 1]


def near_duplicates(infos: Mapping[str, PictureInfo], similarity: float) -> list[Pair]:
    """Pairs of names whose pictures look alike without being equal: as few pairs as link all that do.

    Their perceptual hashes differ in at most 6 bits, and their thumbnails correlate by at least `similarity` (Pearson's r
    over all colours). Of equal pictures the first represents all; a picture of a single colour has no near duplicate.
    """
    # The hash finds candidates among all pairs in little time, but ignores colour and fine structure; the correlation decides.
    distinct = {infos[name].pixels_sha256: name for name in sorted(infos, reverse=True) if not infos[name].is_one_colour}
    names = sorted(distinct.values())
    groups, pairs = Groups(names), []
    for first, second in _near_hashes([infos[name].perceptual_hash for name in names]):
        pair = names[first], names[second]
        if groups.of(pair[0]) != groups.of(pair[1]) and _correlation(*(infos[name].thumbnail for name in pair)) >= similarity:
            groups.join(pair)
            pairs.append(pair)
    return pairs


def _batches(archive: zipfile.ZipFile, names: list[str]) -> Iterator[list[str]]:
    """The names in their order, split so that the files of a batch fit into memory."""
    batch, size = list[str](), 0
    for name in names:
        batch.append(name)
        size += archive.getinfo(name).file_size
        if size > _BATCH_BYTES or len(batch) == _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _near_hashes(hashes: list[int]) -> Iterator[tuple[int, int]]:
    """The positions of all pairs of hashes that differ in at most 6 bits, in order."""
    column = np.array(hashes, dtype=np.uint64)
    for start in tqdm(range(0, len(hashes), _ROWS), "compare", disable=None, leave=False):
        # Some rows of the matrix at once: the whole one would take 80 GB for 100,000 pictures.
        differing: Any = np.bitwise_count(column[start : start + _ROWS, np.newaxis] ^ column[np.newaxis, start:])
        for first, is_near in enumerate(differing <= _NEAR_BITS, start):
            for second in np.flatnonzero(is_near[first - start + 1 :]).tolist():
                yield first, first + 1 + second


def _correlation(first: Thumbnail, second: Thumbnail) -> float:
    one, other = (thumbnail.ravel() - thumbnail.mean() for thumbnail in (first, second))
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))
