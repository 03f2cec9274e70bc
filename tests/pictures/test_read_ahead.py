"""Batches of pictures, in the order of the paths."""

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.images import BrokenPicture, Preprocessing, read_square, square_batches

SQUARE = Preprocessing(4, 1.0, "bilinear")


@pytest.fixture
def paths(tmp_path):
    """Seven grey pictures of 6 x 5 pixels: the first is all 0, the last all 60."""
    found = []
    for number in range(7):
        found.append(tmp_path / f"{number}.png")
        Image.new("RGB", (6, 5), (number * 10,) * 3).save(found[-1])
    return found


def batches(paths, batch_size, threads=2):
    return list(square_batches(paths, SQUARE, batch_size, threads, "test"))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])])
def test_batches_hold_all_pictures(paths, batch_size, sizes):
    assert [batch.shape for batch in batches(paths, batch_size)] == [(size, 4, 4, 3) for size in sizes]


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_keep_the_order_of_the_paths(paths, threads):
    found = np.concatenate(batches(paths[::-1], 2, threads))
    assert found[:, 0, 0, 0].tolist() == [60, 50, 40, 30, 20, 10, 0]


def test_a_batch_holds_the_squares_of_the_decoder(paths):
    assert np.array_equal(batches(paths, 7)[0], np.stack([read_square(path, SQUARE) for path in paths]))


def test_a_batch_is_uint8(paths):
    assert batches(paths, 2)[0].dtype == np.uint8


def test_no_paths_are_no_batches():
    assert batches([], 2) == []


def test_a_broken_picture_stops_the_batches(paths):
    paths[3].write_bytes(b"")
    with pytest.raises(BrokenPicture, match=r"^not a picture$"):
        batches(paths, 2)
