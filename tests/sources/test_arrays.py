"""Arrays as PNG files: values unchanged, reproducible bytes, encoded only when read."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.sources import formats as arrays
from pipeline.sources.formats import encode_png, picture_members
from tests.published_sets import noise


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (1, 1), (5, 300, 3)])
def test_no_value_changes(shape):
    pixels = noise("picture", *shape)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_pixels_that_do_not_lie_in_a_row_are_read_in_their_order():
    planes = noise("planes", 3, 4, 5)
    assert encode_png(planes.transpose(1, 2, 0)) == encode_png(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def test_a_picture_is_the_same_bytes_each_time():
    assert encode_png(noise("picture", 28, 28)) == encode_png(noise("picture", 28, 28))


def test_the_bytes_depend_on_no_way_to_compress():
    assert bytes(28) * 28 in encode_png(np.zeros((28, 27), np.uint8))  # each row begins with the byte of its filter


def test_a_picture_is_made_only_when_it_is_read(published, monkeypatch):
    made = []
    monkeypatch.setattr(arrays, "encode_png", lambda pixels: made.append(pixels.tolist()) or b"")
    members = picture_members(published({}), "train", np.arange(2, dtype=np.uint8).reshape(2, 1, 1), [0, 1], ["cat", "dog"])
    assert made == []
    members["train/dog/00001.png"]()
    assert made == [[[1]]]


def test_more_pictures_than_the_limits_allow_are_refused(published):
    with pytest.raises(PipelineError) as caught:
        picture_members(published({}, files=2), "train", np.zeros((3, 1, 1), np.uint8), [0, 0, 0], ["cat"])
    assert str(caught.value) == "set: contains more than 2 files; raise download.limits.files if this is intended"
