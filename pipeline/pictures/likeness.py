"""Find pictures that look alike: what is kept of each one, and the search for pairs in n log n steps.

A near duplicate is the same photograph re-encoded, resized, brighter or darker, in grey, mirrored, marked near its border,
cropped by up to 5 % per side, or turned by up to 2°. `bench/duplicates.py` measures how many of them are found.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.core.files import cache_dir

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = np.ndarray[Any, np.dtype[Any]]

_CENTRE = 0.7  # of each side: logos, captions and the corners of a turned copy are outside
_VIEWS = ((1.0, 0.0), (0.95, 0.0), (0.9, 0.0), (1.0, 2.0), (1.0, -2.0))  # shown share and turn in degrees; the first is the picture
_TINY, _TINY_SIMILARITY = 32, 0.99  # a side in pixels below which pictures have to be more alike, as they are: a mirrored 5 is no 5
_DETAIL, _HASHED = 64, 32  # sides in pixels of the picture and of a view, from which hashes are calculated
_THUMBNAIL, _COMPARED = 24, 16  # the same for correlations
_COLOURS = 4  # fields per side in which colours are compared
_FAINT, _SAME_COLOURS = 3.0, 0.7  # levels below which a picture is grey; the least cosine of the colours of two that are not
_NEAR_BITS = 6  # of 64: of changed copies of photographs, 1 % differed in more; of different photographs, none in fewer than 10
_ORDERS, _NEIGHBOURS = 16, 8  # orders in which the hashes are sorted; neighbours in each direction that are compared
_BLOCK = 512  # pairs whose correlations are calculated at once, in the cache of a core
_FAILURES = 64  # candidates per picture that may fail; then its hash is too common to tell anything
# The 64 lowest frequencies but the mean brightness: without it, a brighter copy has the same hash.
_FREQUENCIES = sorted(((row, column) for row in range(11) for column in range(11) if row + column), key=lambda at: (sum(at), at))[:64]
_ROWS, _COLUMNS = np.array(_FREQUENCIES).T


# What is kept of a picture to find its near duplicates, 721 bytes. `hashes`: of the views of the picture's centre, then of their mirror
# images: whether each of the 64 lowest frequencies of the brightness is positive; `grey`: the brightness of the whole picture without its
# aspect ratio; `colours`: red - green and yellow - blue in the centre; `is_tiny`: whether a side has fewer than 32 pixels.
LIKENESS = np.dtype(
    (
        np.record,
        [
            ("hashes", np.uint64, 2 * len(_VIEWS)),
            ("grey", np.uint8, (_THUMBNAIL, _THUMBNAIL)),
            ("colours", np.float16, (_COLOURS, _COLOURS, 2)),
            ("is_tiny", np.bool_),
        ],
    )
)


def likeness_of(image: Image.Image) -> np.record:
    """Describe an RGB picture: a `LIKENESS`."""
    detail = np.asarray(_reduced(image, _DETAIL).convert("L"), dtype=float)
    thumbnail = _reduced(image, _THUMBNAIL)
    colours = _colours(np.asarray(thumbnail, dtype=float))
    rows = np.zeros(1, LIKENESS)
    rows["hashes"], rows["grey"], rows["colours"] = _hashes(detail), np.asarray(thumbnail.convert("L")), colours
    rows["is_tiny"] = min(image.size) < _TINY
    described: np.record = rows[0]
    return described


def room_for(count: int) -> Array:
    """An array of that many `LIKENESS` in a file without a name. The system keeps it in memory as far as there is room."""
    folder = cache_dir("")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk raises here; on a write to the array it would kill the process
            os.posix_fallocate(file.fileno(), 0, max(1, count) * LIKENESS.itemsize)
        return np.memmap(file, LIKENESS, "w+", shape=max(1, count))[:count]


def near_pairs(likenesses: Sequence[np.record], similarity: float) -> list[tuple[int, int]]:
    """Pairs of positions of pictures that look alike, enough to link all that do.

    Two pictures look alike if a hash of one differs from the first hash of the other in at most 6 bits, their thumbnails then
    correlate by at least `similarity`, and their colours agree or one of them is grey. Each picture is compared with its neighbours
    in 16 orders of the hashes: copies are neighbours in some order.
    """
    if len(likenesses) == 0:
        return []
    rows = room_for(len(likenesses))
    for position, likeness in enumerate(likenesses):
        rows[position] = likeness
    hashes, is_tiny = np.array(rows["hashes"]), np.array(rows["is_tiny"])
    greys, colours = rows["grey"].reshape(len(rows), -1), rows["colours"]
    groups, failures = np.arange(len(hashes)), np.zeros(len(hashes), int)
    links: list[tuple[int, int]] = []
    for view, first, second in _candidates(hashes):
        is_open = (groups[first] != groups[second]) & (failures[first] < _FAILURES)
        if view:
            is_open &= ~(is_tiny[first] | is_tiny[second])
        one, other = first[is_open], second[is_open]
        needed = np.where(is_tiny[one] | is_tiny[other], max(similarity, _TINY_SIMILARITY), similarity)
        is_near = (_correlations(greys[one], greys[other], view) >= needed) & _agree(colours[one], colours[other], view)
        failures[one[~is_near]] += 1  # a step contains each first picture once
        links.extend(zip(one[is_near].tolist(), other[is_near].tolist(), strict=True))
        groups = _merged(groups, one[is_near], other[is_near])
    return links


def _reduced(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BOX if min(image.size) >= side else Image.Resampling.BILINEAR)


def _hashes(brightness: Array) -> Array:
    """Perceptual hashes after Zauner, «Implementation and benchmarking of perceptual image hash functions» (2010)."""
    from scipy.fft import dctn
    from scipy.ndimage import map_coordinates

    views = np.stack([map_coordinates(brightness, _points(view, _DETAIL, _HASHED), order=1) for view in range(len(_VIEWS))])
    frequencies = dctn(views, axes=(1, 2), norm="ortho")[:, _ROWS, _COLUMNS]
    both = np.concatenate([frequencies, frequencies * (-1.0) ** _COLUMNS])  # a mirror image changes the sign of odd columns
    bits = np.packbits(both > 1e-3, axis=1)  # above what rounding makes of 0
    return np.frombuffer(bits.tobytes(), np.uint64)


def _points(view: int, side: int, samples: int) -> Array:
    """The rows and columns of a view's samples in a picture: (2, samples, samples)."""
    share, degrees = _VIEWS[view % len(_VIEWS)]
    steps = ((np.arange(samples) + 0.5) / samples - 0.5) * _CENTRE * share
    down, across = np.meshgrid(steps, -steps if view >= len(_VIEWS) else steps, indexing="ij")
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (np.stack([sine * across + cosine * down, cosine * across - sine * down]) + 0.5) * side - 0.5


@cache
def _sampler(view: int) -> "csr_array[Any]":
    """The matrix from a thumbnail (576) to the samples of a view (256)."""
    from scipy.ndimage import map_coordinates
    from scipy.sparse import csr_array

    pixels = np.eye(_THUMBNAIL**2).reshape(-1, _THUMBNAIL, _THUMBNAIL)
    samples = [map_coordinates(pixel, _points(view, _THUMBNAIL, _COMPARED), order=1).ravel() for pixel in pixels]
    return csr_array(np.stack(samples, axis=1))


def _colours(thumbnail: Array) -> Array:
    margin, field = (_THUMBNAIL - _COMPARED) // 2, _COMPARED // _COLOURS
    red, green, blue = np.moveaxis(thumbnail[margin:-margin, margin:-margin], 2, 0)
    differences = np.stack([red - green, (red + green) / 2 - blue], axis=2)
    return np.asarray(differences.reshape(_COLOURS, field, _COLOURS, field, 2).mean(axis=(1, 3)), np.float16)


def _candidates(hashes: Array) -> Iterator[tuple[int, Array, Array]]:
    """Steps: a view, positions of pictures, each once, and of others whose first hash is near that view of the former."""
    places = np.arange(len(hashes))
    reach = min(_NEIGHBOURS, len(hashes))
    for order in tqdm(range(_ORDERS), "compare", disable=None, leave=False):
        bits = np.uint64(order * 64 // _ORDERS)
        rotated = hashes if order == 0 else (hashes << bits) | (hashes >> (np.uint64(64) - bits))
        ranked = np.argsort(rotated[:, 0], kind="stable")
        keys = rotated[ranked, 0]
        for view in range(hashes.shape[1]):
            ranks = np.empty_like(places)
            ranks[ranked] = places
            nearest = np.searchsorted(keys, rotated[:, view]) if view else ranks
            for offset in range(-reach if view else 1, reach + 1):
                at = nearest + offset
                inside = np.flatnonzero((at >= 0) & (at < len(places)))
                near = inside[np.bitwise_count(rotated[inside, view] ^ keys[at[inside]]) <= _NEAR_BITS]
                second = ranked[at[near]]
                if (is_other := near != second).any():
                    yield view, near[is_other], second[is_other]


def _correlations(greys: Array, others: Array, view: int) -> Array:
    """Pearson's correlations of a view of some thumbnails with the first view of others, row by row; 0 without contrast."""
    found = np.empty(len(greys))
    for start in range(0, len(greys), _BLOCK):
        block = slice(start, start + _BLOCK)
        one, other = _sampler(view) @ greys[block].T.astype(float), _sampler(0) @ others[block].T.astype(float)
        one -= one.mean(axis=0)
        other -= other.mean(axis=0)
        found[block] = (one * other).sum(axis=0) / np.maximum(np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0), 1e-9)
    return found


def _agree(colours: Array, others: Array, view: int) -> Array:
    """Whether colours agree, row by row. A grey picture agrees with any, since it may be a grey copy."""
    seen = colours[:, :, ::-1] if view >= len(_VIEWS) else colours
    one, other = (fields.reshape(len(fields), 2 * _COLOURS**2).astype(float) for fields in (seen, others))
    sizes = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    is_grey = np.minimum(*sizes) < _FAINT * one.shape[1] ** 0.5
    return np.asarray(is_grey | ((one * other).sum(axis=1) >= _SAME_COLOURS * sizes[0] * sizes[1]))


def _merged(groups: Array, first: Array, second: Array) -> Array:
    """The numbers of the groups after the pairs were linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (groups[first], groups[second])), shape=(len(groups), len(groups)))
    return np.asarray(connected_components(links, directed=False)[1][groups]) if len(first) else groups
