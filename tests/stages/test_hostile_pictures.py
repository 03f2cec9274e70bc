"""Damaged and hostile pictures in the stage `split`: each is named, and the good ones are dealt."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.core import files
from pipeline.core.files import read_table
from pipeline.stages.split import Params, run
from tests.archives import make_shards


def noise(number=30, width=20, height=16):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image, kind, **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def png(*chunks, width=4, height=4, depth=8, colour_type=2, raw=bytes(4 * 13)):
    """A PNG put together by hand, with further chunks before its pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def inflated(megabytes):
    """That many megabytes of zeros in a thousandth of their size."""
    return zlib.compress(bytes(megabytes * 1_000_000))


def tiff(*tags, at=8, following=0):
    """A TIFF whose directory holds (tag, type, count, value) and names the place of a following one."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", at) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + bytes(48)


# width, height, bits of a level, no compression, black is zero, place and bytes of the one strip, levels of a pixel, rows of a strip
GREY_TAGS = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122), (277, 3, 1, 1),
             (278, 4, 1, 4), (279, 4, 1, 16)]  # fmt: skip


def bmp(width, height, header=40):
    return (
        b"BM"
        + struct.pack("<IHHI", 122, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", header, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(48)
    )


def gif(*blocks, width=4, height=4):
    """A GIF of two colours."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255]) + b"".join(blocks) + b";"


def gif_frame(width, height):
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\3\x84\x51\0\0"


def jpeg_with_exif(exif, **options):
    content = encoded(noise(), "JPEG", **options)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + content[2:]


def zipped():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "hello")
        return file.getvalue()


def half(content):
    return content[: len(content) // 2]


def webp_animation():
    return encoded(noise(), "WEBP", save_all=True, append_images=[noise(1), noise(2)])


def ycck():
    """A JPEG of CMYK whose Adobe marker says that the first three inks are YCbCr."""
    content = bytearray(encoded(noise().convert("CMYK"), "JPEG"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def grey_tiff(changed):
    """A TIFF of 4 x 4 pixels, some tags of which have other values."""
    return tiff(*((tag, kind, 1, changed.get(tag, value)) for tag, kind, _, value in GREY_TAGS))


GOOD = {
    f"{label}/{number}.png": encoded(noise(number + 10 * (label == "dogs")), "PNG") for label in ("cats", "dogs") for number in range(4)
}


@pytest.fixture
def split_with(tmp_path, monkeypatch):
    """Put a picture among the good ones: what was left out and why, what was found of it, and who was dealt out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(files, "_sync", lambda _: None)

    def split(name, content):
        raw = make_shards(tmp_path / "raw", {**GOOD, name: content})
        outs = [tmp_path / out for out in ("splits", "manifest.csv", "quarantine.csv", "audit.json")]
        params = Params(seed=0, val=0.25, test=0.25, folders="auto", group=None, similarity=0.99, folders_up_to=1000, leak="repair")
        run(params, raw, *outs)
        left_out = {row["image_id"]: row["reason"] for row in read_table(outs[2])}
        found = [(each["kind"], each["detail"]) for each in json.loads(outs[3].read_text())["findings"] if name in each["image_ids"]]
        return left_out, found, {row["image_id"] for row in read_table(outs[1])}

    return split


TOO_MANY = "more than 80,000,000 pixels"
UNREAD_TIFF = "a TIFF that cannot be read: damaged, a camera's raw file, or pixels of an unusual kind; convert it to JPEG or PNG"
BROKEN = {
    "an empty file": (".png", lambda: b"", "an empty file"),
    "text": (".jpg", lambda: b"hello", "not a picture"),
    "a web page": (".png", lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not a picture"),
    "a zip": (".jpg", zipped, "not a picture"),
    "an SVG": (".png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "an EPS": (".jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "not a picture"),
    "a PDF": (".tif", lambda: b"%PDF-1.7\n%%EOF", "not a picture"),
    "a PSD": (".png", lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3), "not a picture"),
    "a TGA": (".bmp", lambda: encoded(noise(), "TGA"), "not a picture"),
    "zeros": (".png", lambda: bytes(10_000), "not a picture"),
    "10 bytes of a JPEG": (".jpg", lambda: encoded(noise(), "JPEG")[:10], "Truncated File Read"),
    "20 bytes of a JPEG": (".jpg", lambda: encoded(noise(), "JPEG")[:20], "not a picture"),
    "start and end of a JPEG": (".jpg", lambda: b"\xff\xd8\xff\xd9", "not a picture"),
    "the header of a JPEG": (".jpg", lambda: encoded(noise(), "JPEG").partition(b"\xff\xda")[0], "cannot load this image"),
    "half a JPEG": (".jpg", lambda: half(encoded(noise(30, 60, 60), "JPEG")), "image file is truncated (126 bytes not processed)"),
    "a JPEG without its last byte": (".jpg", lambda: encoded(noise(), "JPEG")[:-1], "image file is truncated (75 bytes not processed)"),
    "10 bytes of a PNG": (".png", lambda: encoded(noise(), "PNG")[:10], "not a picture"),
    "half a PNG": (".png", lambda: half(encoded(noise(), "PNG")), "image file is truncated"),
    "half a GIF": (".gif", lambda: half(encoded(noise(30, 60, 60), "GIF")), "image file is truncated (232 bytes not processed)"),
    "10 bytes of a BMP": (".bmp", lambda: encoded(noise(), "BMP")[:10], "not a picture"),
    "half a BMP": (".bmp", lambda: half(encoded(noise(), "BMP")), "image file is truncated (33 bytes not processed)"),
    "a BMP without its last byte": (".bmp", lambda: encoded(noise(), "BMP")[:-1], "image file is truncated (59 bytes not processed)"),
    "10 bytes of a TIFF": (".tif", lambda: encoded(noise(), "TIFF")[:10], UNREAD_TIFF),
    "half a TIFF": (".tif", lambda: half(encoded(noise(), "TIFF")), "image file is truncated (50 bytes not processed)"),
    "10 bytes of a WebP": (".webp", lambda: encoded(noise(), "WEBP")[:10], "not a picture"),
    "half a WebP": (".webp", lambda: half(encoded(noise(), "WEBP")), "could not create decoder object"),
    "a WebP without its last byte": (".webp", lambda: encoded(noise(), "WEBP")[:-1], "could not create decoder object"),
    "half an animated WebP": (".webp", lambda: half(webp_animation()), "could not create decoder object"),
    "half a PPM": (".ppm", lambda: half(encoded(noise(), "PPM")), "image file is truncated (53 bytes not processed)"),
    "a PPM of no white": (".ppm", lambda: b"P6 1 1 99999\n" + bytes(9), "maxval must be greater than 0 and less than 65536"),
    "a PPM of words": (".ppm", lambda: b"P3 1 1 255 x y z", "invalid literal for int() with base 10: b'x'"),
    "a PNG of 900 megapixels": (".png", lambda: png(width=30_000, height=30_000, depth=1, colour_type=0), TOO_MANY),
    "a PNG of 85 megapixels": (".png", lambda: png(width=10_000, height=8_500), "10000 x 8500 pixels are more than 80,000,000"),
    "a PNG of 170 megapixels": (".png", lambda: png(width=17_000, height=10_000), "17000 x 10000 pixels are more than 80,000,000"),
    "a PNG without a header": (".png", lambda: png()[:8] + png()[33:], "not a picture"),
    "a PNG of no width": (".png", lambda: png(width=0), "not a picture"),
    "a PNG with an unknown filter": (".png", lambda: png(raw=b"\x09" * 52), "unrecognized data stream contents when reading image file"),
    "a PNG of too few rows": (".png", lambda: png(raw=bytes(20)), "image file is truncated (0 bytes not processed)"),
    "a PNG without its palette": (".png", lambda: png(colour_type=3), "damaged"),
    "a GIF of 0 x 0": (".gif", lambda: gif(gif_frame(0, 0), width=0, height=0), "not a picture"),
    "a GIF whose frame is 0 x 0": (".gif", lambda: gif(gif_frame(0, 0)), "tile cannot extend outside image"),
    "a GIF without a frame": (".gif", gif, "not a picture"),
    "a GIF of 4,295 megapixels": (".gif", lambda: gif(gif_frame(4, 4), width=65_535, height=65_535), TOO_MANY),
    "a GIF whose frame is larger than it": (".gif", lambda: gif(gif_frame(60_000, 60_000)), TOO_MANY),
    "a TIFF without a strip": (".tif", lambda: tiff(*(tag for tag in GREY_TAGS if tag[0] not in (273, 279))), UNREAD_TIFF),
    "a TIFF whose strip is not there": (".tif", lambda: grey_tiff({273: 5000}), "image file is truncated (0 bytes not processed)"),
    "a TIFF of strips without rows": (".tif", lambda: grey_tiff({278: 0}), "tile cannot extend outside image"),
    "a TIFF whose directory is not there": (".tif", lambda: tiff(at=5000), UNREAD_TIFF),
    "a TIFF of 900 megapixels": (".tif", lambda: grey_tiff({256: 30_000, 257: 30_000}), TOO_MANY),
    "a TIFF packed in an unknown way": (".tif", lambda: grey_tiff({259: 9999}), UNREAD_TIFF),
    "a BMP of negative width": (".bmp", lambda: bmp(-4, 4), TOO_MANY),
    "a BMP of 900 megapixels": (".bmp", lambda: bmp(30_000, 30_000), TOO_MANY),
    "a BMP of no width": (".bmp", lambda: bmp(0, 4), "not a picture"),
    "a BMP with a header of 2 GB": (".bmp", lambda: bmp(4, 4, header=2**31 - 1), "Truncated File Read"),
    "a BMP without a header": (".bmp", lambda: bmp(4, 4, header=0), "Unsupported BMP header type (0)"),
}  # fmt: skip
ONE_COLOUR, FIRST_FRAME = ("one_colour", "shows a single colour"), ("converted", "reduced to its first frame")
STRIPPED = ("converted", "stripped of metadata that cannot be read")
KEPT = {
    "a CMYK JPEG": (".jpg", lambda: encoded(noise().convert("CMYK"), "JPEG"), [("converted", "converted from CMYK to RGB")]),
    "a YCCK JPEG": (".jpg", ycck, [("converted", "converted from CMYK to RGB")]),
    "a 16-bit PNG": (
        ".png", lambda: encoded(Image.fromarray(np.random.default_rng(0).integers(0, 65535, (9, 9), dtype=np.uint16)), "PNG"),
        [("converted", "scaled from 16 bits or more to 8")],
    ),
    "a palette with a transparent colour": (
        ".png", lambda: encoded(noise().quantize(), "PNG", transparency=b"\0"), [("converted", "transparent pixels made white")],
    ),
    "a JPEG with garbage for EXIF": (".jpg", lambda: jpeg_with_exif(b"\xde\xad\xbe\xef" * 8), []),
    "a JPEG with nothing for EXIF": (".jpg", lambda: jpeg_with_exif(b""), []),
    "a JPEG whose EXIF is cut": (".jpg", lambda: jpeg_with_exif(b"II*\0\x08\0\0\0\xff\xff\x12\1\3\0\1\0\0\0\6\0"), []),
    "a JPEG whose EXIF leads back to itself": (
        ".jpg", lambda: jpeg_with_exif(b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"), [],
    ),
    "a JPEG with garbage behind it": (".jpg", lambda: encoded(noise(), "JPEG") + b"x" * 999, []),
    "a JPEG with a zip behind it": (".jpg", lambda: encoded(noise(), "JPEG") + zipped(), []),
    "a PNG without its last bytes, which hold no pixels": (".png", lambda: encoded(noise(), "PNG")[:-12], []),
    "a PNG whose colour profile inflates": (".png", lambda: png((b"iCCP", b"a\0\0" + inflated(10))), [ONE_COLOUR, STRIPPED]),
    "a PNG whose text inflates": (".png", lambda: png((b"zTXt", b"a\0\0" + inflated(10))), [ONE_COLOUR, STRIPPED]),
    "a PNG whose international text inflates": (".png", lambda: png((b"iTXt", b"a\0\1\0\0\0" + inflated(10))), [ONE_COLOUR, STRIPPED]),
    "a PNG of many texts": (".png", lambda: png(*[(b"zTXt", b"a\0\0" + inflated(1))] * 68), [ONE_COLOUR, STRIPPED]),
    "a GIF with a broken second frame": (
        ".gif", lambda: encoded(noise(), "GIF")[:-1] + b"," + struct.pack("<HHHHB", 0, 0, 20, 16, 0) + b"\x0c\xff;",
        [FIRST_FRAME],
    ),
    "a GIF whose second frame is cut in its palette": (
        ".gif", lambda: encoded(noise(), "GIF")[:-1] + b"," + struct.pack("<HHHHB", 0, 0, 20, 16, 0x87) + bytes(100),
        [FIRST_FRAME],
    ),
    "half a phone's JPEG of two pictures": (
        ".jpg", lambda: half(encoded(noise(), "MPO", save_all=True, append_images=[noise(31)]) + bytes(200)),
        [FIRST_FRAME],
    ),
    "a TIFF whose directory leads back to itself": (".tif", lambda: tiff(*GREY_TAGS, following=8), [ONE_COLOUR]),
    "a TIFF whose second directory is no such thing": (
        ".tif", lambda: tiff(*GREY_TAGS, following=9),
        [ONE_COLOUR, FIRST_FRAME],
    ),
    "a BMP from top to bottom": (".bmp", lambda: bmp(4, -4), [ONE_COLOUR]),
    "a PNG of more pixels than it needs": (".png", lambda: png(raw=bytes(10_000_000)), [ONE_COLOUR]),
    "a float that is no number": (
        ".pfm", lambda: b"Pf 2 1 -1.0\n" + struct.pack("<ff", float("nan"), 1.0), [("converted", "scaled from 16 bits or more to 8")],
    ),
    "a picture with another's suffix": (".png", lambda: encoded(noise(), "JPEG"), [("wrong_suffix", "is JPEG, despite its suffix")]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_decode_is_left_out_with_the_reason_and_the_others_are_dealt_out(name, split_with):
    suffix, make, reason = BROKEN[name]
    name = f"cats/{name}{suffix}"
    assert split_with(name, make()) == ({name: reason}, [("broken", reason)], set(GOOD))


@pytest.mark.parametrize("name", KEPT)
def test_what_decodes_is_kept_and_named(name, split_with):
    suffix, make, found = KEPT[name]
    name = f"cats/{name}{suffix}"
    assert split_with(name, make()) == ({}, found, {*GOOD, name})
