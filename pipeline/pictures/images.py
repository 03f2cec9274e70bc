"""Bytes of a picture to RGB pixels: the one decoder of the project."""

import base64
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from tqdm import tqdm

# Pillow has a parser for some forty formats; untrusted bytes reach only these. It registers the first five by itself.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format)
IMAGEFOLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
PICTURE_SUFFIXES = (*IMAGEFOLDER_SUFFIXES, ".gif", ".jfif", ".jpe", ".mpo")
MAX_PIXELS = 80_000_000  # below the number from which Pillow warns
BACKGROUND = (255, 255, 255)
_DEEP_MODES = ("I", "F")  # more than 8 bits
_ROTATED = range(2, 9)  # EXIF orientations; 1 is upright, and some cameras write 0
_THUMBNAIL_SIDE = 96

# The exceptions of Pillow's readers on a damaged file.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, AssertionError, LookupError, EOFError, struct.error, zlib.error)
_IGNORED_WARNINGS = ("ignore", None, Warning, re.compile("PIL"), 0)  # as `warnings.filters` lists it

Array = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")


class BrokenPicture(ValueError):  # noqa: N818 - a state of the picture, which the user may accept
    """The bytes do not decode to the last pixel. The text is the reason."""


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded picture to the square input of a network.

    `image_size`: side in pixels; `crop`: the share of the shorter side that the centred square covers;
    `interpolation`: bilinear or bicubic; `crop_mode`, as timm calls it: center (a square of the picture), squash (the whole picture,
    cropped alike in both directions and made square), border (the whole picture, with
    the colour `border`, RGB, beside its longer side).
    """

    image_size: int
    crop: float
    interpolation: str
    crop_mode: str = "center"
    border: Sequence[int] | None = None


@dataclass(frozen=True)
class Traits:
    """A file before it was decoded: its format in Pillow's words, and what decoding changed, in plain words.

    `plain`: whether its pixels have 8 bits. Other readers clip deeper pixels, so such a file is written anew.
    """

    format: str
    plain: bool
    changes: tuple[str, ...]


def decode(source: bytes | Path, at_least: int | None = None) -> Image.Image:
    """Decode a picture to its last byte, as 8-bit RGB, upright. Raises BrokenPicture.

    EXIF orientation is applied; 16-bit and float pixels are scaled to 8 bits; transparent pixels become white; CMYK and
    palettes are converted; an animation is its first frame. `at_least`: a JPEG may be decoded at a half, a quarter or an
    eighth of its size, as long as its shorter side keeps that many pixels.
    """
    return decode_with_traits(source, at_least)[0]


def decode_with_traits(source: bytes | Path, at_least: int | None = None) -> tuple[Image.Image, Traits]:
    """As `decode`, with the traits of the file."""
    # Pillow raises on what it cannot read; its warnings are about pictures that it reads. The filter stays in place,
    # because `catch_warnings` is not safe among threads.
    if _IGNORED_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module="PIL")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenPicture(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # None keeps the mode
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image)), _traits(image)
    except UnidentifiedImageError:
        raise BrokenPicture("not a picture") from None
    except Image.DecompressionBombError:
        raise BrokenPicture(f"more than {MAX_PIXELS:,} pixels") from None
    except _DAMAGE as error:
        raise BrokenPicture(" ".join(str(error).split()) or "damaged") from None


def _traits(image: Image.Image) -> Traits:
    deep = image.mode.startswith(_DEEP_MODES)
    changes = {
        "rotated upright by its EXIF orientation": image.getexif().get(ExifTags.Base.Orientation) in _ROTATED,
        "scaled from 16 bits or more to 8": deep,
        "converted from CMYK to RGB": image.mode == "CMYK",
        "transparent pixels made white": _has_transparent_pixels(image),
        "reduced to its first frame": _has_more_frames(image),
    }
    return Traits(image.format or "", not deep, tuple(change for change, is_so in changes.items() if is_so))


def _has_transparent_pixels(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    if image.mode.startswith(_DEEP_MODES):
        return bool(np.any(np.asarray(image) == image.info["transparency"]))
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DAMAGE:
        return True  # a second frame begins, and is broken


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale to 0..255 by the smallest usual range that contains all values: 0 to 1, 255 or 65535, or up to the largest."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    largest = pixels.max(initial=0)
    top = 65535 if image.mode.startswith("I;16") else next((t for t in (1, 255, 65535) if largest <= t), largest)
    if image.mode != "F" and top == 1:
        top = 255
    levels = np.clip(np.rint(pixels * (255 / top)), 0, 255)
    # A level may stand for transparency. It is replaced here, since it is not the same level after scaling.
    levels[pixels == image.info.get("transparency", np.nan)] = BACKGROUND[0]
    return Image.fromarray(levels.astype(np.uint8))


def to_square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The centred square of a picture, resized: uint8 (image_size, image_size, 3), RGB.

    Equals torchvision's Resize of the shorter side to image_size / crop and CenterCrop to image_size, in one resampling. See
    `Preprocessing` for other modes than center.
    """
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    size, shorter, longer = preprocessing.image_size, min(image.size), max(image.size)
    if preprocessing.crop_mode == "border":
        scale = size / preprocessing.crop / longer
        whole = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
        square = Image.new("RGB", (size, size), tuple(preprocessing.border or (0, 0, 0)))
        square.paste(whole, ((size - whole.width) // 2, (size - whole.height) // 2))
        return np.asarray(square)
    whole_box = image.size if preprocessing.crop_mode == "squash" else (shorter, shorter)
    width, height = (side * preprocessing.crop for side in whole_box)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return np.asarray(image.resize((size, size), resample, box=(left, top, left + width, top + height)))


def read_square(source: bytes | Path, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode a picture and return its square, as `to_square` does. Raises BrokenPicture."""
    side = 2 * math.ceil(preprocessing.image_size / preprocessing.crop)  # twice: the JPEG decoder scales coarsely
    return to_square(decode(source, at_least=side), preprocessing)


def square_batches(paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int, threads: int, title: str) -> Iterator[Array]:
    """Squares, uint8 (batch, S, S, 3), in the order of the paths. The next batch is decoded in the background."""
    for squares in read_ahead(paths, lambda path: read_square(path, preprocessing), batch_size, threads, title):
        yield np.stack(squares)


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Result], batch_size: int, threads: int, title: str | None
) -> Iterator[list[Result]]:
    """The results of `read`, in batches, in the order of the items. The next batch is read in the background.

    `title` names the progress bar; None shows no bar.
    """
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(items), desc=title, unit="picture", disable=None if title else True) as bar:
        ahead = _submit(pool, read, chunks[0]) if chunks else []
        for number, chunk in enumerate(chunks):
            current, ahead = ahead, _submit(pool, read, chunks[number + 1]) if number + 1 < len(chunks) else []
            yield [future.result() for future in current]
            bar.update(len(chunk))


def _submit(pool: ThreadPoolExecutor, read: Callable[[Item], Result], items: Sequence[Item]) -> list[Future[Result]]:
    return [pool.submit(read, item) for item in items]


def thumbnail_url(content: bytes) -> str:
    """A picture reduced to at most 96 pixels per side, as the data URL of a JPEG."""
    image = decode(content, at_least=_THUMBNAIL_SIDE)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
