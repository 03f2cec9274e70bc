"""Bytes of a picture to RGB pixels: the one decoder of the project."""

import base64
import io
import math
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, Jpeg2KImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from pipeline.core.files import Slice

# Pillow has a parser for some forty formats; untrusted bytes reach only these. It registers the first five by itself.
_PLUGINS = (AvifImagePlugin.AvifImageFile, Jpeg2KImagePlugin.Jpeg2KImageFile, TiffImagePlugin.TiffImageFile, WebPImagePlugin.WebPImageFile)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", *(plugin.format for plugin in _PLUGINS))
IMAGEFOLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
JPEG_2000_SUFFIXES = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
_UNREAD_SUFFIXES = (  # HEIC, JPEG XL, and raw files of cameras
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f", ".heic", ".heif", ".jxl"),
)
PICTURE_SUFFIXES = (*IMAGEFOLDER_SUFFIXES, ".gif", ".jfif", ".jpe", ".mpo", ".avif", *JPEG_2000_SUFFIXES, *_UNREAD_SUFFIXES)
_RAW = "a camera's raw file"
_UNREAD = {  # pictures without a decoder here: how their files begin
    "a picture in the format HEIC": re.compile(rb".{4}ftyp(.{4})*?(hei[cmsx]|hev[cmsx])", re.DOTALL),
    "a picture in the format JPEG XL": re.compile(rb"\xff\x0a|\0{3}\x0cJXL \r\n\x87\n"),
    _RAW: re.compile(rb"II\*\0.{4}CR|II(RO|RS|U\0)|MMOR|.{4}ftypcrx |FUJIFILMCCD-RAW|II\x1a\0{3}HEAPCCDR|FOVb|\0MRM", re.DOTALL),
}
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
MAX_PIXELS = 80_000_000  # below the number from which Pillow warns
BACKGROUND = (255, 255, 255)
_DEEP_MODES = ("I", "F")  # more than 8 bits
_TURNS = {  # by EXIF orientation; 1 is upright, and some cameras write 0
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # tags of a TIFF
_METADATA_DROPPED = "stripped of metadata that cannot be read"
_THUMBNAIL_SIDE = 96
DAMAGE = (  # what Pillow's readers raise on a damaged file
    *(OSError, SyntaxError, ValueError, TypeError, ArithmeticError, AssertionError, LookupError, EOFError, RuntimeError),
    *(struct.error, zlib.error),
)
_PNG, _EXIF = b"\x89PNG\r\n\x1a\n", b"Exif\0\0"
# Segments that decide no pixel, except JFIF's and Adobe's, which name the colours from these lengths on.
_JPEG_METADATA = {bytes([marker]) for marker in (*range(0xE0, 0xF0), 0xFE)}
_JPEG_COLOURS = {b"\xe0": 16, b"\xee": 14}
# Description, camera, resolution, software, date, author, XMP, copyright, IPTC, Photoshop, EXIF, profile, GPS
_TIFF_METADATA = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34675, 34853}
_AVIF_METADATA = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(?:Exif|mime)", re.DOTALL)  # an item's entry, up to its type
_IGNORED_WARNINGS = ("ignore", None, Warning, re.compile("PIL"), 0)  # as `warnings.filters` lists it

Array = np.ndarray[Any, np.dtype[Any]]
Source = bytes | Path | Slice  # of a picture: its bytes, a file, or a part of a shard
Item = TypeVar("Item")
Result = TypeVar("Result")


class BrokenPicture(ValueError):  # noqa: N818 - a state of the picture, which the user may accept
    """The bytes do not decode to the last pixel. The text is the reason."""


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded picture to the square input of a network.

    `image_size`: side in pixels; `crop`: the share of the shorter side that the centred square covers;
    `interpolation`: bilinear or bicubic; `crop_mode`, as timm calls it: center (a square of the picture), squash (the whole picture,
    cropped alike in both directions and made square), border (the whole picture, with the colour `border`, RGB, beside its longer side).
    """

    image_size: int
    crop: float
    interpolation: str
    crop_mode: str = "center"
    border: Sequence[int] | None = None


@dataclass(frozen=True)
class Traits:
    """A file before it was decoded: its format in Pillow's words, and what decoding changed, in plain words.

    `plain`: whether other readers show the same picture: 8 bits, and metadata that can be read. Otherwise the file is written anew.
    """

    format: str
    plain: bool
    changes: tuple[str, ...]


def decode(source: Source, at_least: int | None = None) -> Image.Image:
    """Decode a picture to its last byte, as 8-bit RGB, upright. Raises BrokenPicture.

    Pixels decide: metadata that cannot be read are dropped. EXIF orientation is applied; deeper pixels are scaled to 8 bits; transparent
    ones become white; CMYK and palettes are converted; an animation is its first frame. `at_least`: a JPEG may be decoded at a half, a
    quarter or an eighth of its size, as long as its shorter side keeps that many pixels.
    """
    return decode_with_traits(source, at_least)[0]


def decode_with_traits(source: Source, at_least: int | None = None) -> tuple[Image.Image, Traits]:
    """As `decode`, with the traits of the file."""
    # Pillow warns about pictures that it reads. The filter stays in place, because `catch_warnings` is not safe among threads.
    if _IGNORED_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module="PIL")
    content = source.read_bytes() if isinstance(source, Slice) else source
    try:
        return _read(content, at_least)
    except BrokenPicture as fault:
        try:
            image, traits = _read(_without_metadata(content), at_least)
        except (BrokenPicture, *DAMAGE):
            raise fault from None
        return image, replace(traits, plain=False, changes=(*traits.changes, _METADATA_DROPPED))


def _read(source: bytes | Path, at_least: int | None) -> tuple[Image.Image, Traits]:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if _is_raw(image, source):
                raise BrokenPicture(_unread(_RAW))
            if image.width * image.height > MAX_PIXELS:
                raise BrokenPicture(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # None keeps the mode
            image.load()
            orientation = _orientation(image)  # only the first call fails if the EXIF data cannot be read
            return to_rgb(image), _traits(image, orientation)
    except UnidentifiedImageError:
        raise BrokenPicture(_unidentified(source)) from None
    except Image.DecompressionBombError:
        raise BrokenPicture(f"more than {MAX_PIXELS:,} pixels") from None
    except DAMAGE as error:
        raise BrokenPicture(" ".join(str(error).split()) or "damaged") from None


def _unidentified(source: bytes | Path) -> str:
    """The fault of a file in no format of `FORMATS`."""
    head = _head(source)
    name = next((name for name, begins in _UNREAD.items() if begins.match(head)), None)
    if name is None and _TIFF.match(head):
        return "a TIFF that cannot be read: damaged, a camera's raw file, or pixels of an unusual kind; convert it to JPEG or PNG"
    return _unread(name) if name else "not a picture"


def _unread(what: str) -> str:
    return f"{what}, which is not read; convert it to JPEG or PNG"


def _head(source: bytes | Path) -> bytes:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        return file.read(64)


def _is_raw(image: Image.Image, source: bytes | Path) -> bool:
    """Whether this is the thumbnail with which a camera's raw file begins: a TIFF that DNG or Canon marks, or with the picture below it."""
    tags = _tiff_tags(image)
    is_thumbnail = TiffImagePlugin.SUBIFD in tags and tags.get(_SUBFILE_TYPE, 0) & 1 == 1
    return bool(tags) and (_DNG_VERSION in tags or is_thumbnail or _UNREAD[_RAW].match(_head(source)) is not None)


def _orientation(image: Image.Image) -> int | None:
    """EXIF's number, 1 by default; None if the EXIF data cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return None


def _traits(image: Image.Image, orientation: int | None) -> Traits:
    deep = image.mode.startswith(_DEEP_MODES)
    changes = {
        "rotated upright by its EXIF orientation": orientation in _TURNS,
        "scaled from 16 bits or more to 8": deep,
        "clipped where darker than black or brighter than white": deep and _exceeds_white(image),
        "converted from CMYK to RGB": image.mode == "CMYK",
        "transparent pixels made white": _has_transparent_pixels(image),
        "reduced to its first frame": _has_more_frames(image),
        _METADATA_DROPPED: orientation is None,
    }
    plain = not deep and orientation is not None
    return Traits(image.format or "", plain, tuple(change for change, is_so in changes.items() if is_so))


def _has_transparent_pixels(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    if image.mode.startswith(_DEEP_MODES):
        return bool(np.any(np.asarray(image) == image.info["transparency"]))
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except DAMAGE:
        return True  # a second frame begins, and is broken


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as 8-bit RGB, upright, as `decode` returns it. Raises one of DAMAGE."""
    turn = _TURNS.get(_orientation(image) or 1)
    if image.mode.startswith(_DEEP_MODES):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(canvas, image)
    upright = image if image.mode == "RGB" else image.convert("RGB")
    return upright if turn is None else upright.transpose(turn)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale from 0 to white to 0..255, and clip what is outside."""
    pixels, white = _deep_pixels(image)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = np.nan_to_num(pixels.astype(np.float64))
    if _tiff_tags(image).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white; Pillow inverts only 8 bits
        values = white - values
    levels = np.rint(np.clip(values, 0, white) * (255 / white))
    # A level may stand for transparency. It is replaced here, since it is not the same level after scaling.
    levels[values == image.info.get("transparency", np.nan)] = BACKGROUND[0]
    return Image.fromarray(levels.astype(np.uint8))


def _exceeds_white(image: Image.Image) -> bool:
    pixels, white = _deep_pixels(image)
    with np.errstate(invalid="ignore"):
        return bool(np.any((pixels < 0) | (pixels > white)))


def _deep_pixels(image: Image.Image) -> tuple[Array, float]:
    """The values of the pixels, and the one that is white, which no pixel decides.

    White is the largest value of the declared depth, up to 16 bits. Deeper files declare none: 65535 for whole numbers, 1 for floats.
    """
    tags = _tiff_tags(image)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    signed = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 2
    pixels = np.asarray(image)
    if image.mode == "I" and bits == 32 and not signed:
        pixels = pixels.view(np.uint32)  # Pillow has no mode for them
    return pixels, 1.0 if image.mode == "F" else float(2 ** (min(bits, 16) - (signed and bits <= 16)) - 1)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _without_metadata(source: bytes | Path) -> bytes:
    """A PNG, JPEG, AVIF or TIFF without what is not its pixels, except its orientation. Raises BrokenPicture if that is all of it."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    bare = content
    if content.startswith(_PNG):
        bare = _bare_png(content)
    elif content.startswith(b"\xff\xd8\xff"):
        bare = _bare_jpeg(content)
    elif content[4:12] in (b"ftypavif", b"ftypavis"):
        bare = _AVIF_METADATA.sub(rb"\1skip", content)  # an item of an unknown type is ignored
    elif content.startswith((b"II*\0", b"MM\0*")):
        bare = _bare_tiff(content, "<" if content.startswith(b"II") else ">")
    if bare == content:
        raise BrokenPicture("contains no metadata")
    return bare


def _bare_png(content: bytes) -> bytes:
    kept, exif, at = [content[: len(_PNG)]], b"", len(_PNG)
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        if kind == b"eXIf":
            exif = content[at + 8 : at + 8 + length]
        elif kind[:1].isupper() or kind == b"tRNS":  # a capital: the picture cannot be shown without this chunk
            kept.append(content[at : at + 12 + length])
        at += 12 + length
    if exif := _orientation_alone(exif):
        chunk = b"eXIf" + exif
        kept.insert(2, struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    kept, exif, at = [content[:2]], b"", 2
    while content[at : at + 1] == b"\xff" and (marker := content[at + 1 : at + 2]) not in (b"", b"\xda"):
        if marker == b"\xff":  # filling
            at += 1
            continue
        length = 2 + int.from_bytes(content[at + 2 : at + 4])
        segment = content[at : at + length]
        if marker == b"\xe1" and segment[4:].startswith(_EXIF):
            exif = exif or segment[4:]
        elif marker not in _JPEG_METADATA or length >= _JPEG_COLOURS.get(marker, math.inf):
            kept.append(segment)
        at += length
    if exif := _orientation_alone(exif):
        kept.insert(1, b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif)
    return b"".join((*kept, content[at:]))


def _bare_tiff(content: bytes, order: str) -> bytes:
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    end = start + 2 + 12 * count
    entries = [content[at : at + 12] for at in range(start + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] not in _TIFF_METADATA]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + content[end : end + 4]  # the next directory comes last
    return content[:start] + directory + content[start + len(directory) :]


def _orientation_alone(exif: bytes) -> bytes:
    """EXIF data with the orientation of these, and nothing else; empty if they have none or cannot be read."""
    found, alone = Image.Exif(), Image.Exif()
    try:
        found.load(exif)
        alone[ExifTags.Base.Orientation] = int(found[ExifTags.Base.Orientation])
        return alone.tobytes()
    except DAMAGE:
        return b""


def to_square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The centred square of a picture, resized: uint8 (image_size, image_size, 3), RGB.

    Equals torchvision's Resize of the shorter side to image_size / crop and CenterCrop to image_size. See `Preprocessing` for other modes.
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


def read_square(source: Source, preprocessing: Preprocessing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode a picture and return its square, as `to_square` does. Raises BrokenPicture."""
    side = 2 * math.ceil(preprocessing.image_size / preprocessing.crop)  # twice: the JPEG decoder scales coarsely
    return to_square(decode(source, at_least=side), preprocessing)


def square_batches(sources: Sequence[Source], preprocessing: Preprocessing, batch_size: int, threads: int, title: str) -> Iterator[Array]:
    """Squares, uint8 (batch, S, S, 3), in the order of the sources. The next batch is decoded in the background."""
    for squares in read_ahead(sources, lambda source: read_square(source, preprocessing), batch_size, threads, title):
        yield np.stack(squares)


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Result], batch_size: int, threads: int, title: str | None
) -> Iterator[list[Result]]:
    """The results of `read`, in batches, in the items' order; the next batch is read meanwhile. `title`: of a progress bar, or None."""
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(threads) as pool, _progress_bar(len(items), title) as bar:
        ahead = [pool.submit(read, item) for chunk in chunks[:1] for item in chunk]
        for number, chunk in enumerate(chunks):
            current, ahead = ahead, [pool.submit(read, item) for following in chunks[number + 1 : number + 2] for item in following]
            yield [future.result() for future in current]
            if bar:
                bar.update(len(chunk))


def _progress_bar(total: int, title: str | None) -> AbstractContextManager[Any]:
    if not (title and sys.stderr.isatty()):
        return nullcontext()
    from tqdm import tqdm  # slow to import: a tenth of what predicting one picture takes

    return tqdm(total=total, desc=title, unit="picture")


def thumbnail_url(source: Source) -> str:
    """A picture reduced to at most 96 pixels per side, as the data URL of a JPEG."""
    image = decode(source, at_least=_THUMBNAIL_SIDE)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return data_url(image, quality=85)


def data_url(image: Image.Image, quality: int) -> str:
    """A picture (RGB) as the data URL of a JPEG."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
