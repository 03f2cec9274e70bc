"""Where a model looked: class activation maps, laid over the pictures."""

from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]

_OPACITY = 0.55


def class_activation(feature_map: Array, weight: Array, index: int) -> Array:
    """How much each place speaks for a class (CAM: Zhou et al., 2016): float (h, w), 0 to 1, 0 where it speaks against it.

    `feature_map`: float (C, h, w); `weight`: float (classes, C), the head's; `index`: of the class. Its row counts as far as
    it differs from the others' mean: what all rows share moves no probability.
    """
    return scaled(np.tensordot(weight[index] - weight.mean(axis=0), feature_map, axes=1))


def scaled(heat: Array) -> Array:
    """A map with its negative part cut off, its highest place 1."""
    positive = np.maximum(heat, 0)
    return np.asarray(positive / max(float(positive.max()), 1e-12))


def overlay(picture: Image.Image, heat: Array) -> Image.Image:
    """A picture (RGB, of any size) in grey, with the map (0 to 1) laid over it in colours from dark to yellow."""
    from matplotlib import colormaps

    fine = Image.fromarray((255 * heat).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    colours = colormaps["inferno"](np.asarray(fine))
    glow = Image.fromarray((255 * colours[..., :3]).astype(np.uint8))
    return Image.blend(picture.convert("L").convert("RGB"), glow, _OPACITY)
