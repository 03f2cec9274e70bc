"""The facts about a picture: checksums, one colour, suffix."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import inspection
from pipeline.pictures.images import FORMATS
from pipeline.pictures.inspection import inspect, inspect_all, wrong_suffix


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


@pytest.mark.parametrize(("darkest", "brightest", "expected"), [(7, 7, True), (10, 14, True), (10, 15, False)])
def test_a_picture_is_of_one_colour_where_no_channel_varies_by_more_than_4_levels(darkest, brightest, expected):
    image = Image.new("RGB", (4, 4), (200, darkest, 0))
    image.putpixel((1, 2), (200, brightest, 0))
    assert look_at(image).is_one_colour is expected


def test_a_jpeg_of_one_colour_is_of_one_colour():
    assert look_at(Image.new("RGB", (40, 40), (200, 100, 50)), "JPEG").is_one_colour


def test_brightness_is_the_mean_of_the_grey_levels():
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :5] = 200  # a quarter
    assert look_at(Image.fromarray(pixels)).brightness == 50


def test_sharpness_is_the_deviation_of_the_laplacian():
    pixels = np.full((3, 3, 3), 100, np.uint8)
    pixels[1, 1] = 110  # Laplacian: -40 in the middle, 10 at its four neighbours; mean 0
    assert look_at(Image.fromarray(pixels)).sharpness == pytest.approx(((40**2 + 4 * 10**2) / 9) ** 0.5, abs=0.0005)


def test_the_same_blur_is_as_sharp_in_a_larger_picture():
    large = noise(256, 256).resize((1024, 1024), Image.Resampling.NEAREST)
    assert look_at(large).sharpness == pytest.approx(look_at(noise(256, 256)).sharpness)


def test_all_files_are_inspected_whatever_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_BATCH", 2)
    contents = {f"{number}.png": encoded(noise(4, 4, number)) for number in range(5)} | {"notes": b"hello"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = inspect_all({name: tmp_path / name for name in contents})
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
