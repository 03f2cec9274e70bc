"""Foreign pictures, which need no network, and how well a model tells them from the test pictures."""

import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.core.files import sha256_of
from pipeline.evaluation.intervals import Array, Interval, design_effect, proportion_interval
from pipeline.pictures.manifest import Picture, recorded

PICTURES = 20  # of each set: an evaluation of some hundred pictures must not take much longer by them
_SIDE = 128  # of the pictures that are generated, in pixels
_EDGE = 1e-9  # of an area
_CROP = (0.2, 0.6)  # the side of a crop, as a share of the photograph's shorter side


def foreign_sets(learned: str, count: int = PICTURES) -> Iterator[tuple[str, list[bytes]]]:
    """Each set's name and its pictures as PNG, so many, always the same.

    `count`: a multiple of ten; `learned`: see `record_of`; a set of which the model learned a picture is left out.
    """
    for name, draw in _SETS.items():
        pictures = [_png(pixels) for pixels in draw(np.random.default_rng(0), count)]
        if not any(_is_recorded(picture, learned) for picture in pictures):
            yield name, pictures


def _png(pixels: Array) -> bytes:
    """The same bytes as the source `digits` writes, by which its pictures are known again."""
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        return file.getvalue()


def _is_recorded(picture: bytes, learned: str) -> bool:
    return bool(recorded([Picture("", "", sha256_of(picture), "", "", "", 0, 0)], learned))


def _scikit_learn(name: str) -> Path:
    """A data file of scikit-learn. Importing its loaders takes a second, as long as the model takes for all these pictures."""
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None  # noqa: S101 - it is installed
    return Path(spec.origin).with_name("datasets") / name


def _digits(_: np.random.Generator, count: int) -> Iterator[Array]:
    """Handwritten digits, 8 x 8 pixels, equally many of each, encoded as the source `digits` does."""
    with gzip.open(_scikit_learn("data/digits.csv.gz"), "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",")
    for label in range(10):
        for row in table[table[:, -1] == label][: count // 10]:
            yield (row[:-1].reshape(8, 8) * (255 / 16)).round().astype("uint8")


def _photographs(generator: np.random.Generator, count: int) -> Iterator[Array]:
    """Square parts of scikit-learn's two sample photographs, a temple and a flower."""
    photographs = [np.asarray(Image.open(_scikit_learn(f"images/{name}.jpg"))) for name in ("china", "flower")]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = int(generator.uniform(*_CROP) * min(photograph.shape[:2]))
        top, left = (int(generator.integers(0, length - side + 1)) for length in photograph.shape[:2])
        yield photograph[top : top + side, left : left + side]


def _textures(generator: np.random.Generator, count: int) -> Iterator[Array]:
    """Noise, coarse or fine, and stripes, in random colours."""
    for number in range(count):
        if number % 2:
            tiles = int(2 ** generator.uniform(2, 7))
            noise = Image.fromarray(generator.integers(0, 256, (tiles, tiles, 3), np.uint8))
            yield np.asarray(noise.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
        else:
            along, across = generator.normal(size=2)
            y, x = np.mgrid[:_SIDE, :_SIDE] * (2 * np.pi / generator.uniform(4, 40))
            wave = (1 + np.sin(along * y + across * x))[..., None] / 2
            first, second = generator.integers(0, 256, (2, 3))
            yield (wave * first + (1 - wave) * second).astype(np.uint8)


def _shapes(generator: np.random.Generator, count: int) -> Iterator[Array]:
    """Discs and polygons in plain colours."""
    for _ in range(count):
        image = Image.new("RGB", (_SIDE, _SIDE), _colour(generator))
        pen = ImageDraw.Draw(image)
        for _ in range(int(generator.integers(1, 6))):
            corners = generator.integers(0, _SIDE, (int(generator.integers(2, 7)), 2))
            if len(corners) == 2:
                pen.ellipse([*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()], _colour(generator))
            else:
                pen.polygon([tuple(corner) for corner in corners.tolist()], _colour(generator))
        yield np.asarray(image)


def _colour(generator: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = generator.integers(0, 256, 3).tolist()
    return red, green, blue


_SETS: dict[str, Callable[[np.random.Generator, int], Iterator[Array]]] = {
    "digits": _digits,
    "photographs": _photographs,
    "textures": _textures,
    "shapes": _shapes,
}


def score_unfamiliarity(
    known: Array, groups: Array, foreign: Mapping[str, Array], stated: Mapping[str, Any], confidence: float
) -> dict[str, Any]:
    """The figures of an output `unfamiliarity`: `method`, stated `false_alarm_rate`, the rate on test, and by set of foreign pictures the
    share detected and the area under the ROC curve, each with its interval.

    `known`: float (pictures,), of the test pictures; `groups`: see `intervals`; `foreign`: of each set; `stated`: the model's facts.
    """
    alarms, count = known > 1, len(known)
    effective = count / design_effect(alarms, np.full(count, alarms.mean()), np.full(count, 1 / count), groups, confidence)
    sets = {}
    for name, values in foreign.items():
        area, detected = area_between(known, values), values > 1
        sets[name] = {
            "pictures": len(values),
            "auroc": _figure(area, area_interval(area, effective, len(values), confidence)),
            "detected": _figure(float(detected.mean()), proportion_interval(detected, np.arange(len(values)), confidence)),
        }
    rate = _figure(float(alarms.mean()), proportion_interval(alarms, groups, confidence))
    return {**stated, "on_test": rate, "sets": sets}


def _figure(value: float, interval: Interval) -> dict[str, float]:
    return {name: round(number, 6) for name, number in zip(("value", "low", "high"), (value, *interval), strict=True)}


def area_between(known: Sequence[float] | Array, foreign: Sequence[float] | Array) -> float:
    """The area under the ROC curve: how probably a foreign picture is less familiar than a known one. Equal ones count half."""
    ordered = np.sort(known)
    below, up_to = (np.searchsorted(ordered, foreign, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))


def area_interval(area: float, known: float, foreign: float, confidence: float) -> Interval:
    """The score interval of such an area (Newcombe, 2006, method 5), which has a width also where the area is 1.

    `known`, `foreign`: numbers of pictures, which need not be whole.
    """
    from scipy.special import ndtri

    z, other = ndtri((1 + confidence) / 2), (known + foreign) / 2 - 1

    def beyond(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + other * (1 - theta) / (2 - theta) + other * theta / (1 + theta)) / (known * foreign)
        return float((theta - area) ** 2 - z**2 * variance)

    inner = min(max(area, _EDGE), 1 - _EDGE)  # at 0 and 1 the variance is 0, which solves the equation but is no end
    return _end(beyond, inner, 0), _end(beyond, inner, 1)


def _end(beyond: Callable[[float], float], inside: float, outside: float) -> float:
    """The end of an interval on the way from a value inside it, by bisection. Importing scipy.optimize takes a tenth of a second."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if beyond(middle) > 0 else (middle, outside)
    return inside
