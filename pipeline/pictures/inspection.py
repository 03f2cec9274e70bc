"""Decode every picture once: whether it is broken, its size, and its duplicates."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipeline.core.files import Slice, sha256_of
from pipeline.core.hardware import usable_cpus
from pipeline.pictures.images import JPEG_2000_SUFFIXES, BrokenPicture, Traits, decode_with_traits, read_ahead
from pipeline.pictures.likeness import likeness_of, near_pairs, room_for

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


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """The facts about a picture that decodes.

    `width`, `height`: pixels, upright; `pixels_sha256`: of the decoded pixels and their size, equal for the same picture
    in another file; `likeness`: a `LIKENESS`, by which near duplicates are found; `is_one_colour`: no channel varies by more than 4 levels;
    `brightness`: mean level of grey, 0 to 255; `sharpness`: standard deviation of the Laplacian of the grey levels.
    """

    width: int
    height: int
    traits: Traits
    pixels_sha256: str
    likeness: np.record
    is_one_colour: bool
    brightness: float
    sharpness: float


@dataclass(frozen=True, slots=True)
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
        _shared(traits),
        sha256_of(f"{image.size}".encode() + image.tobytes()),
        likeness_of(image),
        all(high - low <= _ONE_COLOUR for low, high in image.getextrema()),  # type: ignore[misc]
        *brightness_and_sharpness(image),
    )
    return Inspection(sha256_of(content), info)


def inspect_all(files: Mapping[str, Path | Slice]) -> dict[str, Inspection]:
    """Inspect files in parallel, on all cores. Each core has one file in memory at a time; likenesses are on disk."""
    rows, inspected = room_for(len(files)), dict[str, Inspection]()
    batches = read_ahead([*files.values()], lambda file: inspect(file.read_bytes()), _BATCH, usable_cpus(), "decode")
    for row, (name, found) in enumerate(zip(files, chain.from_iterable(batches), strict=True)):
        if found.info:
            rows[row] = found.info.likeness
        inspected[name] = replace(found, info=found.info and replace(found.info, likeness=rows[row]))
    return inspected


def wrong_suffix(name: str, picture_format: str) -> bool:
    """Whether a file's suffix belongs to a format other than its own. A name without a suffix is not wrong."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix not in ("", *_suffixes(picture_format))


def usual_suffix(picture_format: str) -> str:
    """The suffix of most files of a format, which is named in Pillow's words."""
    return _suffixes(picture_format)[0]


def _suffixes(picture_format: str) -> tuple[str, ...]:
    return _SUFFIXES["JPEG" if picture_format == "MPO" else picture_format]


def exact_duplicates(infos: Mapping[str, PictureInfo]) -> list[list[str]]:
    """The names of pictures with equal pixels, two or more per list, each list sorted."""
    counts, equal = Counter(info.pixels_sha256 for info in infos.values()), defaultdict[str, list[str]](list)
    for name in sorted(infos):
        if counts[infos[name].pixels_sha256] > 1:
            equal[infos[name].pixels_sha256].append(name)
    return [*equal.values()]


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


@cache
def _shared(traits: Traits) -> Traits:
    """One object for all pictures of the same traits."""
    return traits


def brightness_and_sharpness(image: Image.Image) -> tuple[float, float]:
    """The mean level of grey, 0 to 255, and the standard deviation of the Laplacian of the grey levels, of a decoded picture.

    Rounded to thousandths: what is measured now equals what a table has of the same picture.
    """
    grey = image.convert("L")
    grey.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.float64)
    padded = np.pad(levels, 1, "edge")
    laplacian = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2] - 4 * levels
    return round(float(levels.mean()), 3), round(float(laplacian.std()), 3)
