"""The draw of each class: seeded, bounded, small."""

import base64
import io

import pytest
from PIL import Image

from pipeline.evaluation.galleries import draw, montage
from pipeline.pictures.manifest import Picture


def make_pictures(classes, each):
    return [
        Picture(f"{label}/{number}.png", f"{label}/{number}.png", "0" * 64, f"{label:03d}", "train", "", 8, 8)
        for label in range(classes)
        for number in range(each)
    ]


@pytest.mark.parametrize(("classes", "shown", "each"), [(2, 2, 8), (40, 40, 8), (100, 100, 3), (200, 150, 2)])
def test_the_more_classes_there_are_the_fewer_pictures_of_each(classes, shown, each):
    drawn = draw(make_pictures(classes, 10), 0)
    assert (len(drawn), {len(pictures) for pictures in drawn.values()}) == (shown, {each})


def test_a_small_class_is_shown_whole():
    assert {picture.path for picture in draw(make_pictures(2, 3), 0)["000"]} == {"0/0.png", "0/1.png", "0/2.png"}


def test_the_seed_decides_the_draw():
    pictures = make_pictures(2, 100)
    assert draw(pictures, 0) == draw(pictures, 0)
    assert draw(pictures, 0) != draw(pictures, 1)


def test_a_picture_is_drawn_small(tmp_path):
    (tmp_path / "0").mkdir()
    Image.new("RGB", (300, 150), "red").save(tmp_path / "0" / "0.png")
    (url,) = montage(make_pictures(1, 1), tmp_path, 0)["000"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.size == (96, 48)
