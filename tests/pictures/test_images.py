"""The decoder: every rule against pixels worked by hand."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from pipeline.pictures.images import BrokenPicture, Preprocessing, Traits, decode, decode_with_traits, read_square, to_square

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image, kind, **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def pixels(source, **options):
    """Rows of RGB triples."""
    return [[tuple(pixel) for pixel in row] for row in np.asarray(decode(source, **options)).tolist()]


def grey_row(source):
    return [pixel[0] for pixel in pixels(source)[0]]


def row_of(*colours, mode="RGB"):
    image = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)
    return image


def grey_16(*values):
    return Image.fromarray(np.array([values], dtype=np.uint16))


def grey_tiff(width, bits, sample_format, raw, black=1):
    """A TIFF of one row, put together by hand. `black`: 1 if 0 is black, 0 if 0 is white."""
    tags = [
        (256, width),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, black),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(raw)),
        (339, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    raw += bytes(len(raw) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + entries + bytes(4)


def whole_numbers(kind, *values):
    """A grey TIFF whose row has these values, as numpy's `kind` (floats too)."""
    row = np.array(values).astype(kind)
    return grey_tiff(len(row), row.itemsize * 8, {"u": 1, "i": 2, "f": 3}[row.dtype.kind], row.tobytes())


def png(width, height, depth, colour_type, raw, *chunks):
    """A PNG file put together by hand; `raw`: its scan lines with their filter bytes."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def noise(width, height):
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def waves(width, height):
    """A smooth picture: neighbours differ by 5 grey levels at the most."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127.5 + 120 * np.sin(x / 30 + 1), 127.5 + 120 * np.cos(y / 25), 127.5 + 120 * np.sin((x + y) / 40)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def fault_of(source):
    with pytest.raises(BrokenPicture) as caught:
        decode(source)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_an_rgb_picture_keeps_its_pixels(kind):
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"mct": 0}}.get(kind, {})
    assert pixels(encoded(row_of(RED, (1, 2, 3)), kind, **options)) == [[RED, (1, 2, 3)]]


def test_a_jpeg_of_one_colour_keeps_it_to_a_level_or_two():
    found = np.asarray(decode(encoded(Image.new("RGB", (8, 8), (200, 100, 50)), "JPEG", quality=100)), dtype=int)
    assert np.abs(found - (200, 100, 50)).max() <= 2


def test_an_avif_of_one_colour_keeps_it_to_a_level_or_two():
    found = np.asarray(decode(encoded(Image.new("RGB", (8, 8), (200, 100, 50)), "AVIF", quality=100)), dtype=int)
    assert np.abs(found - (200, 100, 50)).max() <= 2


def test_a_path_is_read_like_its_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(row_of(RED, BLUE), "PNG"))
    assert pixels(tmp_path / "a.png") == [[RED, BLUE]]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[RED, GREEN], [BLUE, WHITE]]),
        (2, [[GREEN, RED], [WHITE, BLUE]]),  # mirrored left to right
        (3, [[WHITE, BLUE], [GREEN, RED]]),  # half a turn
        (4, [[BLUE, WHITE], [RED, GREEN]]),  # mirrored top to bottom
        (5, [[RED, BLUE], [GREEN, WHITE]]),  # rows and columns swapped
        (6, [[BLUE, RED], [WHITE, GREEN]]),  # a quarter turn clockwise makes it upright
        (7, [[WHITE, GREEN], [BLUE, RED]]),  # swapped across the other diagonal
        (8, [[GREEN, WHITE], [RED, BLUE]]),  # a quarter turn counter-clockwise
    ],
)
def test_a_picture_is_turned_upright_by_its_exif_orientation(orientation, expected):
    image = Image.fromarray(np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(encoded(image, "PNG", exif=exif)) == expected


def test_a_jpeg_is_turned_upright_by_its_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.new("RGB", (16, 8)), "JPEG", exif=exif)).size == (8, 16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    # 255 / 65535 = 1 / 257
    assert grey_row(encoded(grey_16(0, 257, 32896, 65535), kind)) == [0, 1, 128, 255]


def test_dark_16_bit_grey_stays_dark():
    assert grey_row(encoded(grey_16(0, 255, 514), "PNG")) == [0, 1, 2]


def test_16_bit_grey_is_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 3
    assert grey_row(encoded(grey_16(0, 257, 65535), "PNG", exif=exif)) == [255, 1, 0]


def test_16_bit_colours_keep_their_high_byte():
    assert pixels(png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 0x8000, 0x00FF))) == [[(255, 128, 0)]]


def test_a_deep_pgm_is_scaled_from_its_own_largest_value():
    # Its header says that 1023 is white: 512 * 255 / 1023 = 127.6
    assert grey_row(b"P5 3 1 1023\n" + struct.pack(">HHH", 0, 512, 1023)) == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),  # 127.5 rounds to the even 128
        ([0.0, 0.25, 0.5], [0, 64, 128]),
        ([-1.0, 1.0, 7.5], [0, 255, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([float("-inf"), float("inf"), 0.5], [0, 255, 128]),
    ],
)
def test_float_pixels_are_scaled_from_0_to_1_and_clipped(values, expected):
    assert grey_row(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")) == expected


@pytest.mark.parametrize("kind", [np.int32, np.uint32])
def test_32_bit_whole_numbers_are_scaled_from_0_to_65535_and_clipped(kind):
    assert grey_row(whole_numbers(kind, 0, 128, 129, 32896, 70_000, 2**31 - 1)) == [0, 0, 1, 128, 255, 255]


def test_the_largest_unsigned_numbers_of_32_bits_are_white():
    assert grey_row(whole_numbers(np.uint32, 0, 2**31, 2**32 - 1)) == [0, 255, 255]


def test_signed_16_bits_are_scaled_from_0_to_32767():
    assert grey_row(whole_numbers(np.int16, -32768, 0, 16383, 16448, 32767)) == [0, 0, 127, 128, 255]


def test_12_bits_are_scaled_from_0_to_4095():
    # 16 * 255 / 4095 = 1.0; two values in three bytes
    content = grey_tiff(2, 12, 1, struct.pack(">I", 0x010FFF << 8)[:3])
    assert grey_row(content) == [1, 255]


@pytest.mark.parametrize(
    ("bits", "sample_format", "raw"),
    [(8, 1, bytes([0, 128, 255])), (16, 1, struct.pack("<HHH", 0, 32896, 65535)), (32, 3, struct.pack("<fff", 0, 128 / 255, 1))],
)
def test_a_tiff_whose_0_is_white_is_inverted_at_every_depth(bits, sample_format, raw):
    assert grey_row(grey_tiff(3, bits, sample_format, raw, black=0)) == [255, 127, 0]


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.uint32, np.float32])
@pytest.mark.parametrize("brightest", [0.002, 0.01, 0.2])  # of white
def test_a_scene_exposed_four_times_longer_comes_out_brighter(kind, brightest):
    white = {np.float32: 1, np.int16: 32767}.get(kind, 65535)
    scene = np.random.default_rng(3).random(400) * brightest * white
    short, long = (np.mean(grey_row(whole_numbers(kind, *(scene * exposure)))) for exposure in (1, 4))
    assert long > 2 * short


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),  # 255 * (1 - 128 / 255) = 127
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth of the red, four fifths of the white
        ("LA", (0, 0), WHITE),
        ("LA", (0, 128), (127, 127, 127)),
        ("LA", (7, 255), (7, 7, 7)),
    ],
)
def test_transparent_pixels_lie_on_white(mode, colour, expected):
    assert pixels(encoded(Image.new(mode, (1, 1), colour), "PNG")) == [[expected]]


@pytest.mark.parametrize(("mode", "hidden", "shown"), [("RGB", (1, 2, 3), (9, 9, 9)), ("L", 7, 9)])
def test_a_colour_that_stands_for_transparency_lies_on_white(mode, hidden, shown):
    assert pixels(encoded(row_of(hidden, shown, mode=mode), "PNG", transparency=hidden)) == [[WHITE, (9, 9, 9)]]


def test_a_palette_becomes_its_colours():
    content = png(3, 1, 8, 3, b"\0\2\0\1", (b"PLTE", bytes([*RED, *GREEN, *BLUE])))
    assert pixels(content) == [[BLUE, RED, GREEN]]


def test_a_transparent_entry_of_a_palette_lies_on_white():
    content = png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes([*RED, *GREEN])), (b"tRNS", b"\0"))
    assert pixels(content) == [[WHITE, GREEN]]


def test_black_and_white_becomes_0_and_255():
    assert pixels(png(2, 1, 1, 0, b"\0\x40")) == [[BLACK, WHITE]]


@pytest.mark.parametrize(("inks", "expected"), [((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK), ((0, 0, 0, 0), WHITE)])
def test_a_cmyk_jpeg_becomes_its_colours(inks, expected):
    found = np.asarray(decode(encoded(Image.new("CMYK", (8, 8), inks), "JPEG", quality=100)), dtype=int)
    assert np.abs(found - expected).max() <= 2


def test_the_first_frame_of_a_gif_counts():
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE)]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [[RED, RED], [RED, RED]]


def test_the_first_frame_of_a_webp_counts():
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(content) == [[RED, RED], [RED, RED]]


def test_the_first_picture_of_a_phones_jpeg_with_two_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (WHITE, BLACK)]
    assert pixels(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])) == [[WHITE] * 8] * 8


def test_a_truncated_jpeg_is_refused():
    content = encoded(noise(32, 32), "JPEG")
    assert fault_of(content[:-1]) == f"image file is truncated ({_left_over(content[:-1])} bytes not processed)"


def _left_over(content):
    """What the decoder of JPEG had not used of the file, as it says itself."""
    with Image.open(io.BytesIO(content)) as image, pytest.raises(OSError, match="truncated") as caught:
        image.load()
    return int(str(caught.value).partition("(")[2].partition(" ")[0])


def test_a_truncated_gif_is_refused():
    assert fault_of(encoded(Image.new("L", (40, 40)), "GIF")[:-30]).startswith("image file is truncated")


def test_a_png_without_its_pixels_is_refused():
    assert fault_of(encoded(noise(40, 40), "PNG")[:1000]).startswith("image file is truncated")


def test_a_png_with_a_wrong_sum_is_refused():
    content = bytearray(encoded(Image.new("RGB", (4, 4)), "PNG"))
    content[content.index(b"IHDR") + 4 + 13] ^= 1
    assert fault_of(bytes(content)) == "not a picture"


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(content):
    assert fault_of(content) == "not a picture"


def test_a_format_that_is_not_listed_is_no_picture():
    assert fault_of(encoded(Image.new("RGB", (2, 2)), "TGA")) == "not a picture"


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_a_modern_picture_that_ends_early_is_refused(kind):
    with pytest.raises(BrokenPicture):
        decode(encoded(noise(32, 32), kind)[:-1])


@pytest.mark.parametrize("box", [b"iloc", b"av1C", b"pitm", b"ispe"])
def test_an_avif_without_a_box_that_it_needs_is_refused(box):
    with pytest.raises(BrokenPicture):
        decode(encoded(noise(32, 32), "AVIF").replace(box, b"skip"))


def test_an_avif_whose_pixels_are_zeros_is_refused():
    head, mark, pixels_of_it = encoded(noise(32, 32), "AVIF").partition(b"mdat")
    assert fault_of(head + mark + bytes(len(pixels_of_it))) == "Failed to decode frame 0: Decoding of color planes failed"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafheix", "HEIC"),
        (b"\0\0\0\x14ftyphevc\0\0\0\0msf1", "HEIC"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_a_picture_in_a_format_that_is_not_read_is_called_by_its_format(content, name):
    assert fault_of(content + bytes(80)) == f"a picture in the format {name}, which is not read; convert it to JPEG or PNG"


def thumbnail_tiff(tags):
    """A good TIFF of 4 by 4 pixels with more tags, as the thumbnail in a raw file."""
    with io.BytesIO() as file:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, kind, value in tags:
            info.tagtype[tag] = kind
            info[tag] = value
        Image.new("RGB", (4, 4)).save(file, "TIFF", tiffinfo=info)
        return file.getvalue()


def canon(content):
    """A TIFF whose directory starts behind Canon's mark."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [struct.unpack_from("<HHII", content, at) for at in range(start + 2, start + 2 + 12 * count, 12)]
    shifted = b"".join(struct.pack("<HHII", tag, kind, n, value + 8 * (tag == 273)) for tag, kind, n, value in entries)
    return b"II*\0" + struct.pack("<I", start + 8) + b"CR\2\0" + bytes(4) + content[8:start] + struct.pack("<H", count) + shifted + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        thumbnail_tiff([(50706, TiffTags.BYTE, b"\1\4\0\0")]),  # DNG
        thumbnail_tiff([(254, TiffTags.LONG, 1), (330, TiffTags.LONG, (8, 8))]),  # NEF, ARW: the picture is below its thumbnail
        canon(grey_tiff(4, 8, 1, b"abcd")),
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        b"FUJIFILMCCD-RAW 0201FF159502X-T3",
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
        b"FOVb\0\0\3\0",
    ],
)
def test_a_raw_file_of_a_camera_is_called_one_even_if_its_thumbnail_decodes(content):
    assert fault_of(content + bytes(80)) == "a camera's raw file, which is not read; convert it to JPEG or PNG"


@pytest.mark.parametrize("tags", [[], [(254, TiffTags.LONG, 0), (330, TiffTags.LONG, (8, 8))], [(254, TiffTags.LONG, 1)]])
def test_a_tiff_with_smaller_copies_or_without_a_larger_picture_is_read(tags):
    assert decode(thumbnail_tiff(tags)).size == (4, 4)


@pytest.mark.parametrize("content", [grey_tiff(1, 64, 3, struct.pack("<d", 0.5)), b"II*\0\x10\0\0\0", b"MM\0+\0\x08\0\0"])
def test_a_tiff_of_an_unusual_kind_is_called_one(content):
    assert fault_of(content) == (
        "a TIFF that cannot be read: damaged, a camera's raw file, or pixels of an unusual kind; convert it to JPEG or PNG"
    )


def test_a_video_is_no_picture():
    assert fault_of(b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(80)) == "not a picture"


def test_a_missing_file_is_broken(tmp_path):
    with pytest.raises(BrokenPicture, match="No such file"):
        decode(tmp_path / "a.jpg")


def long_text(megabytes, **options):
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(megabytes << 20)), **options)
    return {"pnginfo": info}


def jpeg_with(marker, body, **options):
    content = encoded(noise(24, 16), "JPEG", **options)
    return content[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body + content[2:]


def exif_with(*entries, rest=b""):
    """EXIF data of entries (tag, type, value): little-endian, one value each, `rest` behind them."""
    packed = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + rest


PNG_WITH_ODD_METADATA = {
    "a long text": encoded(noise(24, 16), "PNG", **long_text(3)),
    "a long text after the pixels": encoded(noise(24, 16), "PNG", **long_text(5, after_idat=True)),
    "a long profile": encoded(noise(24, 16), "PNG", icc_profile=bytes(3 << 20)),
    "EXIF in no order": encoded(noise(24, 16), "PNG", exif=b"Exif\0\0neither II nor MM"),
    "a text with a wrong sum": encoded(noise(24, 16), "PNG", dpi=(72, 72)).replace(b"pHYs\0", b"pHYs\1"),
}


def tiff_with(tag, kind, count, value):
    """A TIFF with one entry, by hand, in place of its description."""
    content = encoded(noise(24, 16), "TIFF", description="text")
    at = content.index(struct.pack("<HH", 270, 2))
    return content[:at] + struct.pack("<HHII", tag, kind, count, value) + content[at + 12 :]


JPEG_WITH_ODD_METADATA = {
    "a short profile": jpeg_with(0xE2, b"ICC_PROFILE\0\1"),
    "a short JFIF": jpeg_with(0xE0, b"JFIF\0"),
    "a short Adobe": jpeg_with(0xEE, b"Adobe"),
}


@pytest.mark.parametrize(
    ("content", "kind"),
    [(content, "PNG") for content in PNG_WITH_ODD_METADATA.values()] + [(content, "JPEG") for content in JPEG_WITH_ODD_METADATA.values()],
    ids=[*PNG_WITH_ODD_METADATA, *JPEG_WITH_ODD_METADATA],
)
def test_metadata_that_cannot_be_read_are_dropped_and_named(content, kind):
    assert pixels(content) == pixels(encoded(noise(24, 16), kind))
    assert (traits_of(content).plain, traits_of(content).changes) == (False, ("stripped of metadata that cannot be read",))


@pytest.mark.parametrize("tag", [282, 283])
def test_a_tiff_without_the_resolution_that_it_names_is_read(tag):
    content = tiff_with(tag, 5, 1, 1 << 30)
    assert pixels(content) == pixels(encoded(noise(24, 16), "PNG"))
    assert traits_of(content).changes == ("stripped of metadata that cannot be read",)


@pytest.mark.parametrize("kind", ["AVIF", "WEBP"])
def test_exif_data_that_cannot_be_read_are_dropped_and_named(kind):
    good = encoded(noise(24, 16), kind, exif=exif_with())
    odd = good.replace(b"II*\0\x08", b"XX*\0\x08")
    assert pixels(odd) == pixels(good)
    assert traits_of(odd).changes == ("stripped of metadata that cannot be read",)


@pytest.mark.parametrize("rational", [(-1, 0), (0, 0), (7, -3)])
def test_a_picture_is_turned_upright_beside_an_odd_rational(rational):
    exif = exif_with((0x112, 3, 8), (0x11B, 10, 38), rest=struct.pack("<ii", *rational))
    found = traits_of(jpeg_with(0xE1, exif)), decode(jpeg_with(0xE1, exif)).size
    assert found == (Traits("JPEG", True, ("rotated upright by its EXIF orientation",)), (16, 24))


TURNED = exif_with((0x112, 3, 6))


@pytest.mark.parametrize(
    ("content", "kind"),
    [(encoded(noise(24, 16), "PNG", exif=TURNED, **long_text(2)), "PNG"), (jpeg_with(0xE2, b"ICC_PROFILE\0\1", exif=TURNED), "JPEG")],
    ids=["PNG", "JPEG"],
)
def test_the_orientation_stays_where_other_metadata_are_dropped(content, kind):
    assert pixels(content) == pixels(encoded(noise(24, 16), kind, exif=TURNED))


def test_the_transparent_colour_stays_where_metadata_are_dropped():
    assert pixels(encoded(row_of(RED, BLUE), "PNG", transparency=RED, **long_text(2))) == [[WHITE, BLUE]]


def test_a_truncated_picture_with_odd_metadata_is_refused():
    assert fault_of(PNG_WITH_ODD_METADATA["a long profile"][:-40])


def test_a_huge_picture_is_refused_before_it_is_decoded():
    assert fault_of(png(10_000, 8_500, 8, 2, b"")) == "10000 x 8500 pixels are more than 80,000,000"


def traits_of(content):
    return decode_with_traits(content)[1]


def changes_of(image, kind, **options):
    return traits_of(encoded(image, kind, **options)).changes


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (2, 2)), "PNG", True),
        (Image.new("L", (2, 2)), "JPEG", True),
        (Image.new("P", (2, 2)), "PNG", True),
        (Image.new("CMYK", (2, 2)), "TIFF", True),
        (grey_16(0, 65535), "PNG", False),
        (grey_16(0, 65535), "TIFF", False),
        (Image.new("F", (2, 2)), "TIFF", False),
        (Image.new("I", (2, 2)), "TIFF", False),
        (Image.new("RGB", (2, 2)), "AVIF", True),
    ],
)
def test_a_picture_is_plain_unless_it_has_more_than_8_bits(image, kind, expected):
    assert traits_of(encoded(image, kind)).plain is expected


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_format_is_called_as_pillow_calls_it(kind):
    options = {"append_images": [noise(8, 8)], "save_all": True} if kind == "MPO" else {}
    assert traits_of(encoded(noise(8, 8), kind, **options)).format == kind


def test_with_its_traits_a_picture_has_the_same_pixels():
    assert np.array_equal(np.asarray(decode_with_traits(encoded(noise(8, 6), "PNG"))[0]), np.asarray(noise(8, 6)))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA"])
def test_a_picture_that_shows_its_pixels_as_they_are_is_not_changed(mode):
    assert changes_of(noise(4, 4).convert(mode), "PNG") == ()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turn_is_named(orientation):
    assert changes_of(noise(8, 8), "JPEG", exif=exif_of(orientation)) == ("rotated upright by its EXIF orientation",)


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_orientation_that_turns_nothing_is_not_named(orientation):
    assert changes_of(noise(8, 8), "JPEG", exif=exif_of(orientation)) == ()


@pytest.mark.parametrize("image", [grey_16(0, 1), Image.new("I", (2, 2)), Image.new("F", (2, 2))], ids=lambda image: image.mode)
def test_deep_pixels_are_named(image):
    assert changes_of(image, "TIFF") == ("scaled from 16 bits or more to 8",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (whole_numbers(np.float32, 0, 1), False),
        (whole_numbers(np.float32, 0, 1.5), True),
        (whole_numbers(np.float32, -0.5, 1), True),
        (whole_numbers(np.int32, 0, 65535), False),
        (whole_numbers(np.int32, 0, 65536), True),
        (whole_numbers(np.int16, -1, 5), True),
        (whole_numbers(np.uint16, 0, 65535), False),
    ],
)
def test_clipped_pixels_are_named(content, expected):
    assert ("clipped where darker than black or brighter than white" in traits_of(content).changes) is expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_named(kind):
    assert changes_of(Image.new("CMYK", (8, 8)), kind) == ("converted from CMYK to RGB",)


@pytest.mark.parametrize("colour", [(1, 2, 3, 0), (1, 2, 3, 254)])
def test_transparent_pixels_are_named(colour):
    assert changes_of(Image.new("RGBA", (2, 2), colour), "PNG") == ("transparent pixels made white",)


def test_a_colour_that_stands_for_transparency_is_named_where_it_occurs():
    assert changes_of(row_of((1, 2, 3), (9, 9, 9)), "PNG", transparency=(1, 2, 3)) == ("transparent pixels made white",)


def test_a_colour_that_stands_for_transparency_is_not_named_where_it_does_not_occur():
    assert changes_of(row_of((1, 2, 3), (9, 9, 9)), "PNG", transparency=(4, 5, 6)) == ()


def deep_with_hidden(hidden, *values):
    """A 16-bit grey PNG in which one level stands for transparency."""
    return png(len(values), 1, 16, 0, b"\0" + struct.pack(f">{len(values)}H", *values), (b"tRNS", struct.pack(">H", hidden)))


def test_a_16_bit_level_that_stands_for_transparency_lies_on_white():
    assert grey_row(deep_with_hidden(300, 0, 300, 301, 65535)) == [0, 255, 1, 255]


@pytest.mark.parametrize(("hidden", "expected"), [(0, True), (300, True), (301, False)])
def test_a_16_bit_level_that_stands_for_transparency_is_named_where_it_occurs(hidden, expected):
    assert ("transparent pixels made white" in traits_of(deep_with_hidden(hidden, 0, 300)).changes) is expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_further_frames_are_named(kind):
    options = {"save_all": True, "append_images": [noise(8, 8).transpose(Image.Transpose.ROTATE_90)]}
    assert changes_of(noise(8, 8), kind, **options) == ("reduced to its first frame",)


def test_a_gif_whose_second_frame_is_cut_shows_its_first():
    first = encoded(noise(24, 20).quantize(), "GIF")
    content = encoded(noise(24, 20).quantize(), "GIF", save_all=True, append_images=[noise(20, 24).resize((24, 20)).quantize()])
    cut = content[: len(first) + 30]  # in the palette of the second frame
    assert (pixels(cut), traits_of(cut).changes) == (pixels(first), ("reduced to its first frame",))


def test_all_changes_are_named():
    content = encoded(Image.new("CMYK", (8, 8)), "JPEG", exif=exif_of(3))
    assert traits_of(content).changes == ("rotated upright by its EXIF orientation", "converted from CMYK to RGB")


def tiff_with_a_tag_beyond_its_end():
    """Pillow warns of it, and shows the picture."""
    content = encoded(noise(8, 8), "TIFF", description="x" * 20)
    at = content.index(struct.pack("<HHI", 270, 2, 21))
    return content[: at + 4] + struct.pack("<I", 1 << 20) + content[at + 8 :]


def test_what_pillow_warns_of_is_an_error_here():
    with pytest.raises(UserWarning, match="Tag data larger than file"), Image.open(io.BytesIO(tiff_with_a_tag_beyond_its_end())) as image:
        image.load()


def test_what_pillow_warns_of_is_decoded():
    assert pixels(tiff_with_a_tag_beyond_its_end()) == pixels(encoded(noise(8, 8), "PNG"))


def test_other_warnings_stay_errors():
    decode(encoded(noise(8, 8), "PNG"))
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_a_number_that_signals_that_it_is_none_is_black():
    content = encoded(Image.fromarray(np.array([[0.25, 1.0]], dtype=np.float32)), "TIFF")
    assert grey_row(content.replace(struct.pack("<f", 0.25), b"\1\0\x80\x7f")) == [0, 255]


def test_a_jpeg_may_be_decoded_smaller():
    assert decode(encoded(waves(256, 128), "JPEG"), at_least=32).size == (64, 32)


def test_a_jpeg_keeps_the_pixels_that_are_asked_for():
    assert decode(encoded(waves(256, 128), "JPEG"), at_least=33).size == (128, 64)


def test_a_picture_of_the_right_size_is_its_own_square():
    image = noise(12, 12)
    assert np.array_equal(to_square(image, Preprocessing(12, 1.0, "bilinear")), np.asarray(image))


def test_a_square_is_cut_from_the_middle():
    image = row_of(RED, GREEN, GREEN, BLUE).resize((4, 2), Image.Resampling.NEAREST)
    assert to_square(image, Preprocessing(2, 1.0, "bilinear")).tolist() == [[list(GREEN)] * 2] * 2


def test_a_crop_of_a_half_leaves_the_middle_half():
    image = Image.new("RGB", (8, 8), RED)
    image.paste(BLUE, (2, 2, 6, 6))
    assert to_square(image, Preprocessing(4, 0.5, "bicubic")).tolist() == [[list(BLUE)] * 4] * 4


@pytest.mark.parametrize("size", [(90, 60), (50, 80), (64, 64)])
@pytest.mark.parametrize(("crop_mode", "crop"), [("squash", 1.0), ("squash", 0.875), ("border", 1.0), ("border", 0.875)])
def test_the_whole_picture_enters_as_timm_has_it(size, crop_mode, crop):
    # A smooth picture: timm resizes first and cuts then, which moves a pixel by half of one at most.
    across, down = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    image = Image.fromarray(np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8))
    transform = create_transform((3, 32, 32), crop_pct=crop, crop_mode=crop_mode, interpolation="bicubic", mean=(0.5,) * 3)
    wanted = np.asarray(transforms.Compose(transform.transforms[:2])(image), dtype=int)
    found = to_square(image, Preprocessing(32, crop, "bicubic", crop_mode, [128] * 3 if crop_mode == "border" else None)).astype(int)
    assert np.median(np.abs(found - wanted)) <= 3
    assert np.abs(found - wanted).max() <= (12 if crop_mode == "squash" else 130)  # 130: a border that begins a pixel later


def square_of_torchvision(image, size, crop, interpolation):
    resize = v2.Resize(round(size / crop), InterpolationMode(interpolation), antialias=True)
    return np.asarray(v2.CenterCrop(size)(resize(image)), dtype=int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (128, 128), (24, 16)])
def test_a_square_is_that_of_torchvision_where_both_cut_between_the_same_pixels(width, height, interpolation):
    image = noise(width, height)  # 28 / 0.875 = 32 divides both sides
    difference = to_square(image, Preprocessing(28, 0.875, interpolation)) - square_of_torchvision(image, 28, 0.875, interpolation)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (75, 75), (200, 61), (20, 30)])
@pytest.mark.parametrize(("size", "crop"), [(32, 0.875), (28, 1.0)])
def test_a_square_is_that_of_torchvision_within_a_few_grey_levels(width, height, size, crop, interpolation):
    image = waves(width, height)
    difference = to_square(image, Preprocessing(size, crop, interpolation)) - square_of_torchvision(image, size, crop, interpolation)
    # torchvision cuts at whole pixels: its square may lie half a pixel beside ours
    assert np.abs(difference).max() <= 8


def test_a_square_is_uint8_with_three_channels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(noise(40, 30).convert("L"), "JPEG"))
    square = read_square(tmp_path / "a.jpg", Preprocessing(16, 0.9, "bicubic"))
    assert (square.dtype, square.shape) == (np.uint8, (16, 16, 3))


def test_a_square_of_a_large_jpeg_is_that_of_all_its_pixels_within_a_few_grey_levels():
    content, preprocessing = encoded(waves(512, 384), "JPEG", quality=95), Preprocessing(32, 1.0, "bilinear")
    whole = to_square(decode(content), preprocessing)
    assert np.abs(read_square(content, preprocessing).astype(int) - whole).max() <= 4
