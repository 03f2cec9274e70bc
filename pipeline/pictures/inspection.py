"""Decode every picture once: whether it is broken, its size, and its duplicates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from pipeline.core.files import Slice, sha256_of
from pipeline.core.hardware import usable_cpus
from pipeline.pictures.images import JPEG_2000_SUFFIXES, BrokenPicture, Traits, decode_with_traits, read_ahead
from pipeline.pictures.likeness import Likeness, likeness_of, near_pairs

_SHARPNESS_SIDE = 256  # pixels of the longer side at most, so that pictures of all sizes compare
_BATCH = 256  # files that are read ahead
_ONE_COLOUR = 4  # levels of 255 that a JPEG of a single colour may span
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
Pair = tuple[str, str]


@dataclass(frozen=True)
class PictureInfo:
    """The facts about a picture that decodes.

    `width`, `height`: pixels, upright; `pixels_sha256`: of the decoded pixels and their size, equal for the same picture
    in another file; `likeness`: what finds its near duplicates; `is_one_colour`: no channel varies by more than 4 levels of 255;
    `brightness`: mean level of grey, 0 to 255; `sharpness`: standard deviation of the Laplacian of the grey levels.
    """

    width: int
    height: int
    traits: Traits
    pixels_sha256: str
    likeness: Likeness
    is_one_colour: bool
    brightness: float
    sharpness: float


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
    info = PictureInfo(
        image.width,
        image.height,
        traits,
        sha256_of(f"{image.size}".encode() + image.tobytes()),
        likeness_of(image),
        all(high - low <= _ONE_COLOUR for low, high in image.getextrema()),  # type: ignore[misc]
        *_brightness_and_sharpness(image),
    )
    return Inspection(sha256_of(content), info)


def inspect_all(files: Mapping[str, Path | Slice]) -> dict[str, Inspection]:
    """Inspect files in parallel, on all cores. Each core has one file in memory at a time."""
    batches = read_ahead([*files.values()], lambda file: inspect(file.read_bytes()), _BATCH, usable_cpus(), "decode")
    return dict(zip(files, chain.from_iterable(batches), strict=True))


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
    """Pairs of pictures that look alike, as many as link all that do, in order.

    `similarity`: the least correlation of their thumbnails. Of equal pictures the first stands for all; a picture of a single
    colour has no near duplicate.
    """
    distinct = {infos[name].pixels_sha256: name for name in sorted(infos, reverse=True) if not infos[name].is_one_colour}
    names = sorted(distinct.values())
    groups, pairs = Groups(names), []
    for positions in near_pairs([infos[name].likeness for name in names], similarity):
        pair = names[min(positions)], names[max(positions)]
        if groups.of(pair[0]) != groups.of(pair[1]):
            groups.join(pair)
            pairs.append(pair)
    return sorted(pairs)


def _brightness_and_sharpness(image: Image.Image) -> tuple[float, float]:
    grey = image.convert("L")
    grey.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.float64)
    return float(levels.mean()), float(laplace(levels).std())
