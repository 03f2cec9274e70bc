"""The page at `/`: its files, and `POST /explain`, the activation map of one picture."""

import base64
import io
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.evaluation.galleries import class_activation
from pipeline.pictures.images import Array, Preprocessing, to_square

FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # blob: a picture of the user, data: its activation map
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by the browser, which asks each time whether it changed
}
NO_MAP = "This model has no activation map: its head is not linear on a feature map."
_SIDE = 224  # of a map, in pixels
# matplotlib's inferno at each sixteenth, as the report's maps have it; between two the colours are mixed. A server imports no matplotlib.
_INFERNO = bytes.fromhex(
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
)


@dataclass(frozen=True)
class PageFile:
    """A file of the page: its bytes, its type and its ETag."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_file(name: str) -> PageFile:
    """Return a file of the page, read once. `name`: a key of `FILES`."""
    content = (Path(__file__).parent / "page" / name).read_bytes()
    return PageFile(content, FILES[name], f'"{sha256(content).hexdigest()[:32]}"')


def seen_part(size: tuple[int, int], preprocessing: Preprocessing) -> dict[str, float]:
    """Return the part of a picture that the network sees, left, top, width and height as shares of the picture's sides.

    `size`: width and height of the upright picture. With crop_mode border the part may exceed the picture: left or top is negative.
    """
    modes = {"squash": size, "center": (min(size),) * 2, "border": (max(size),) * 2}
    width, height = (preprocessing.crop * side / whole for side, whole in zip(modes[preprocessing.crop_mode], size, strict=True))
    return {"left": (1 - width) / 2, "top": (1 - height) / 2, "width": width, "height": height}


def draw_map(heat: Array) -> str:
    """Return an activation map, float (h, w) from 0 to 1, as the data URL of a PNG: 224 x 224 pixels, from black to yellow."""
    small = Image.fromarray(np.rint(255 * heat).astype(np.uint8))
    levels = small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    levels.putpalette(_palette())
    with io.BytesIO() as file:
        levels.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@cache
def _palette() -> bytes:
    """The 256 colours of a map, three bytes each."""
    anchors = np.frombuffer(_INFERNO, np.uint8).reshape(-1, 3)
    places = np.linspace(0, 255, len(anchors)).round()
    return np.stack([np.interp(np.arange(256), places, channel) for channel in anchors.T], axis=1).round().astype(np.uint8).tobytes()
