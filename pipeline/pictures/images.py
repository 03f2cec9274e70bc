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
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from tqdm import tqdm

if TYPE_CHECKING:
    pass

_PLUGINS = (
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)


FORMATS = tuple(plugin.format for plugin in _PLUGINS)
IMAGEFOLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
PICTURE_SUFFIXES = (*IMAGEFOLDER_SUFFIXES, ".gif", ".jfif", ".jpe", ".mpo")
MAX_PIXELS = 80_000_000  # below the point where Pillow itself begins to warn
BACKGROUND = (255, 255, 255)
_DEEP_MODES = ("I", "F")
_TURNED = range(2, 9)  # EXIF orientations; 1 is upright, and some cameras write 0


# Pillow's readers let all of these out of a damaged file.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, AssertionError, LookupError, EOFError, struct.error, zlib.error)
_DOUBTS = ("ignore", None, Warning, re.compile("PIL"), 0)  # a filter of warnings


class BrokenPicture(ValueError):  # noqa: N818 - it says what the picture is
    """The bytes are no picture that decodes to its last byte; the text says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded picture becomes the square that a network sees.

    `image_size`: side in pixels; `crop`: the share of the shorter side that the square covers, centred;
    `interpolation`: bilinear or bicubic.
    """

    image_size: int
    crop: float
    interpolation: str


@dataclass(frozen=True)
class Traits:
    """What a file was before it was decoded: Pillow's name of its format, and in words what decoding had to change.

    `plain`: its pixels have 8 bits, so that the file may be kept as it is: readers of 8 bits clip deeper ones.
    """

    format: str
    plain: bool
    changes: tuple[str, ...]


def decode(source: bytes | Path, at_least: int | None = None) -> Image.Image:
    """The picture as 8-bit RGB, upright, decoded to its last byte. Raises BrokenPicture.

    EXIF orientation is applied; 16-bit and float pixels are scaled to 8 bits; transparent pixels lie on white;
    CMYK and palettes are converted; the first frame of an animation counts. `at_least`: a JPEG may be decoded
    at a half, a quarter or an eighth of its size, as long as its shorter side keeps that many pixels.
    """
    return decode_with_traits(source, at_least)[0]


def decode_with_traits(source: bytes | Path, at_least: int | None = None) -> tuple[Image.Image, Traits]:
    """The same, and what the file was like."""
    if _DOUBTS not in warnings.filters:  # no catch_warnings: it is not safe among threads
        warnings.filterwarnings("ignore", module="PIL")  # of what it cannot read it raises, of the rest it only warns
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenPicture(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # None keeps the mode
            image.load()
            upright = _to_rgb(ImageOps.exif_transpose(image))
            return upright, _traits(image)
    except UnidentifiedImageError:
        raise BrokenPicture("not a picture") from None
    except Image.DecompressionBombError:
        raise BrokenPicture(f"more than {MAX_PIXELS:,} pixels") from None
    except _DAMAGE as error:
        raise BrokenPicture(" ".join(str(error).split()) or "damaged") from None


def _traits(image: Image.Image) -> Traits:
    deep = image.mode.startswith(_DEEP_MODES)
    changes = {
        "turned upright as its EXIF says": image.getexif().get(ExifTags.Base.Orientation) in _TURNED,
        "scaled from 16 bits or more to 8": deep,
        "converted from CMYK to RGB": image.mode == "CMYK",
        "its transparent pixels laid on white": _has_transparent_pixels(image),
        "the first of its frames taken": _has_more_frames(image),
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
        return True  # a second one begins, and is broken


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale by the range that the numbers announce: 0 to 1, 255 or 65535, else up to their largest."""
    with np.errstate(invalid="ignore"):  # a NaN may be of the kind that signals
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    largest = pixels.max(initial=0)
    top = 65535 if image.mode.startswith("I;16") else next((t for t in (1, 255, 65535) if largest <= t), largest)
    if image.mode != "F" and top == 1:
        top = 255
    levels = np.clip(np.rint(pixels * (255 / top)), 0, 255)
    levels[pixels == image.info.get("transparency", np.nan)] = BACKGROUND[0]
    return Image.fromarray(levels.astype(np.uint8))


def to_square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The centred square of a picture, resized: uint8, (image_size, image_size, 3), 0 to 255, RGB.

    The same as torchvision's Resize of the shorter side to image_size / crop and CenterCrop to image_size, in one
    resampling.
    """
    side = min(image.size) * preprocessing.crop
    left, top = (image.width - side) / 2, (image.height - side) / 2
    size = (preprocessing.image_size, preprocessing.image_size)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    return np.asarray(image.resize(size, resample, box=(left, top, left + side, top + side)))


def read_square(source: bytes | Path, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode a picture and take its square, see `to_square`. Raises BrokenPicture."""
    wanted = 2 * math.ceil(preprocessing.image_size / preprocessing.crop)
    return to_square(decode(source, at_least=wanted), preprocessing)


Array = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")
Found = TypeVar("Found")


def square_batches(paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int, threads: int, title: str) -> Iterator[Array]:
    """Prepared pixels, uint8 (batch, S, S, 3), in the order of the paths; the next batch is decoded meanwhile."""
    for squares in read_ahead(paths, lambda path: read_square(path, preprocessing), batch_size, threads, title):
        yield np.stack(squares)


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Found], batch_size: int, threads: int, title: str | None
) -> Iterator[list[Found]]:
    """What `read` finds for each item, in batches, in the order of the items; the next batch is read meanwhile.

    Without a title no progress is shown.
    """
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(items), desc=title, unit="picture", disable=None if title else True) as bar:
        ahead = _submit(pool, read, chunks[0]) if chunks else []
        for number, chunk in enumerate(chunks):
            current, ahead = ahead, _submit(pool, read, chunks[number + 1]) if number + 1 < len(chunks) else []
            yield [future.result() for future in current]
            bar.update(len(chunk))


def _submit(pool: ThreadPoolExecutor, read: Callable[[Item], Found], items: Sequence[Item]) -> list[Future[Found]]:
    return [pool.submit(read, item) for item in items]


_THUMBNAIL_SIDE = 96


def thumbnail_url(content: bytes) -> str:
    """A picture at 96 pixels at the most, as the data URL of a JPEG."""
    image = decode(content, at_least=_THUMBNAIL_SIDE)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
