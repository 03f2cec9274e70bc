"""Batches of pictures: in the order of the paths, decoded once."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pictures.images import BrokenPicture, Preprocessing, read_square, square_batches
from pipeline.training import batches as loading
from pipeline.training.batches import TrainingPictures

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


def kept(paths, **options):
    return TrainingPictures(paths, list(range(len(paths))), **{"image_size": 4, "vary": lambda image: image, "threads": 2, **options})


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


def test_a_training_picture_is_pixels_and_the_number_of_its_class(paths):
    pixels, label = kept(paths)[3]
    assert (pixels.dtype, tuple(pixels.shape), pixels[0, 0].tolist(), label) == (torch.uint8, (5, 6, 3), [30, 30, 30], 3)


def test_there_are_as_many_training_pictures_as_paths(paths):
    assert len(kept(paths)) == 7


def test_a_training_picture_is_varied_each_time(paths):
    seen = []
    pictures = kept(paths, vary=lambda image: seen.append(image) or image.resize((2, 2)))
    assert (tuple(pictures[0][0].shape), tuple(pictures[0][0].shape), len(seen)) == ((2, 2, 3), (2, 2, 3), 2)


def test_a_training_picture_is_decoded_once(paths):
    pictures = kept(paths)
    for path in paths:
        path.unlink()
    assert pictures[6][0][0, 0].tolist() == [60, 60, 60]


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (16, 8)), ((20, 40), (8, 16)), ((9, 8), (9, 8)), ((5, 30), (5, 30)), ((30, 9), (27, 8))]
)
def test_a_large_training_picture_is_kept_at_twice_the_image_size(tmp_path, size, expected):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert kept([tmp_path / "a.png"])[0][0].shape == (expected[1], expected[0], 3)


def test_what_does_not_fit_into_memory_is_read_each_time(paths, monkeypatch):
    monkeypatch.setattr(loading, "_MEMORY_BYTES", 2 * 6 * 5 * 3)
    pictures = kept(paths)
    assert (sorted(pictures.kept), [pictures[index][0][0, 0, 0].item() for index in range(7)]) == ([0, 1], [0, 10, 20, 30, 40, 50, 60])
