"""A colour for each class, the same in every picture."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.data.loading import Array

Colour = tuple[int, int, int]

_TURN = 0.618034  # of the circle of hues from a class to the next: the golden section, so that neighbours differ
_TONES = ((0.85, 1.0), (0.55, 0.95), (1.0, 0.72))  # saturation and value, in turn


def colour_of(label: int) -> Colour:
    """The colour of the class with that number, red, green and blue from 0 to 255."""
    saturation, value = _TONES[label % len(_TONES)]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * _TURN % 1, saturation, value))
    return red, green, blue


def is_background(name: str) -> bool:
    """Whether a class is what is left over, which has no colour."""
    return name.lower() == "background"


def palette(class_names: Sequence[str]) -> Array:
    """The colours of the classes, uint8 (classes, 3); the background is black."""
    return np.array([(0, 0, 0) if is_background(name) else colour_of(label) for label, name in enumerate(class_names)], np.uint8)


def with_palette(mask: Array, class_names: Sequence[str]) -> Image.Image:
    """A picture whose pixels are the numbers of classes, uint8 (H, W), with the colours beside."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette(class_names).tobytes())
    return picture
