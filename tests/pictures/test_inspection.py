"""The facts about a picture: checksums, thumbnail, hash by its definition, suffix."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import inspection
from pipeline.pictures.images import FORMATS
from pipeline.pictures.inspection import inspect, inspect_all, perceptual_hash, wrong_suffix


def encoded(image, kind="PNG", **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def noise(width, height, number=0):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def look_at(image, kind="PNG", **options):
    return inspect(encoded(image, kind, **options)).info


def test_one_pixel_less_bright_by_a_level_has_another_sum():
    image = noise(5, 4)
    image.putpixel((0, 0), tuple(value ^ 1 for value in image.getpixel((0, 0))))
    assert look_at(image).pixels_sha256 != look_at(noise(5, 4)).pixels_sha256


def test_the_same_bytes_in_another_shape_have_another_sum():
    assert look_at(Image.new("RGB", (2, 3))).pixels_sha256 != look_at(Image.new("RGB", (3, 2))).pixels_sha256


def test_a_thumbnail_of_a_picture_of_its_size_is_the_picture():
    assert np.array_equal(look_at(noise(32, 32)).thumbnail, np.asarray(noise(32, 32)))


def test_a_thumbnail_is_the_mean_of_what_it_covers():
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, ::2] = 200  # (200 + 0) / 2
    assert np.unique(look_at(Image.fromarray(pixels)).thumbnail).tolist() == [100]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (31, 32)])
def test_a_thumbnail_has_one_size_whatever_the_picture_has(width, height):
    assert look_at(noise(width, height)).thumbnail.shape == (32, 32, 3)


@pytest.mark.parametrize(("darkest", "brightest", "expected"), [(7, 7, True), (10, 14, True), (10, 15, False)])
def test_a_picture_is_of_one_colour_where_no_channel_varies_by_more_than_4_levels(darkest, brightest, expected):
    image = Image.new("RGB", (4, 4), (200, darkest, 0))
    image.putpixel((1, 2), (200, brightest, 0))
    assert look_at(image).is_one_colour is expected


def test_a_jpeg_of_one_colour_is_of_one_colour():
    assert look_at(Image.new("RGB", (40, 40), (200, 100, 50)), "JPEG").is_one_colour


def hash_by_definition(pixels):
    """The bits by sums of cosines, of 32 x 32 levels of brightness."""
    place = np.arange(32)
    waves = [np.cos(np.pi * frequency * (2 * place + 1) / 64) for frequency in range(8)]
    sums = [float((pixels * np.outer(down, across)).sum()) for down in waves for across in waves]
    # the orthonormal transform weighs what has no wave in one direction by the square root of a half
    scales = [(0.5**0.5 if row == 0 else 1) * (0.5**0.5 if column == 0 else 1) for row in range(8) for column in range(8)]
    values = [value * scale for value, scale in zip(sums, scales, strict=True)][1:]
    middle = sorted(values)[31]
    return int("".join("1" if value > middle else "0" for value in values) + "0", 2)


@pytest.mark.parametrize("number", range(8))
def test_a_hash_is_the_one_of_the_definition(number):
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
    assert perceptual_hash(Image.fromarray(pixels)) == hash_by_definition(pixels.astype(float))


def test_31_of_63_frequencies_exceed_the_median():
    assert perceptual_hash(noise(50, 40)).bit_count() == 31


def test_a_hash_does_not_hear_of_the_mean():
    darker = Image.fromarray(np.asarray(noise(32, 32)) // 2)
    brighter = Image.fromarray(np.asarray(noise(32, 32)) // 2 + 100)
    assert (perceptual_hash(darker) ^ perceptual_hash(brighter)).bit_count() <= 2  # grey is rounded to whole levels


def test_all_members_are_inspected_whatever_the_batches(monkeypatch):
    monkeypatch.setattr(inspection, "_BATCH", 2)
    contents = {f"{number}.png": encoded(noise(4, 4, number)) for number in range(5)} | {"notes": b"hello"}
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        found = inspect_all(archive, list(contents))
    assert {name: facts.sha256 for name, facts in found.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }


@pytest.mark.parametrize(
    ("name", "picture_format", "expected"),
    [
        ("a.png", "PNG", False),
        ("a/b.PNG", "PNG", False),
        ("a.jpg", "PNG", True),
        ("a.png", "JPEG", True),
        ("a.jfif", "JPEG", False),
        ("a.jpg", "MPO", False),
        ("a.mpo", "MPO", False),
        ("a.png", "MPO", True),
        ("a.heic", "JPEG", True),
        ("a.pgm", "PPM", False),
        ("a.tif", "TIFF", False),
        ("a.png/b", "JPEG", False),
        ("no suffix", "JPEG", False),
    ],
)
def test_a_suffix_is_wrong_where_the_format_has_others(name, picture_format, expected):
    assert wrong_suffix(name, picture_format) is expected


@pytest.mark.parametrize("picture_format", [*FORMATS, "MPO"])
def test_every_format_that_is_decoded_has_its_suffixes(picture_format):
    assert wrong_suffix("a.other", picture_format)
