"""Training pictures: decoded once, at most at twice the image size, augmented anew each time."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pipeline.training import batches
from pipeline.training.batches import TrainingPictures


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Seven grey pictures of 6 x 5 pixels: the first is all 0, the last all 60."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (6, 5), (number * 10,) * 3).save(paths[-1])
    return paths


def kept(paths, **options):
    return TrainingPictures(paths, list(range(len(paths))), **{"image_size": 4, "augment": lambda image: image, "threads": 2, **options})


def test_a_training_picture_is_pixels_and_the_number_of_its_class(paths):
    pixels, label = kept(paths)[3, 0]
    assert (pixels.dtype, tuple(pixels.shape), pixels[0, 0].tolist(), label) == (torch.uint8, (5, 6, 3), [30, 30, 30], 3)


def test_there_are_as_many_training_pictures_as_paths(paths):
    assert len(kept(paths)) == 7


def test_a_training_picture_is_augmented_anew_each_time(paths):
    seen = []
    pictures = kept(paths, augment=lambda image: seen.append(image) or image.resize((2, 2)))
    assert (tuple(pictures[0, 0][0].shape), tuple(pictures[0, 1][0].shape), len(seen)) == ((2, 2, 3), (2, 2, 3), 2)


def test_a_training_picture_is_decoded_once(paths):
    pictures = kept(paths)
    for path in paths:
        path.unlink()
    assert pictures[6, 0][0][0, 0].tolist() == [60, 60, 60]


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (16, 8)), ((20, 40), (8, 16)), ((9, 8), (9, 8)), ((5, 30), (5, 30)), ((30, 9), (27, 8))]
)
def test_a_large_training_picture_is_kept_at_twice_the_image_size(tmp_path, monkeypatch, size, expected):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert kept([tmp_path / "a.png"])[0, 0][0].shape == (expected[1], expected[0], 3)


def test_what_does_not_fit_into_half_of_the_free_space_is_read_each_time(paths, monkeypatch):
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 6 * 5 * 3 + 1))
    pictures = kept(paths)
    assert (len(pictures.kept), [pictures[index, 0][0][0, 0, 0].item() for index in range(7)]) == (2, [0, 10, 20, 30, 40, 50, 60])


def test_what_is_random_in_a_training_picture_follows_from_its_seed_alone(paths):
    pictures = kept(paths, augment=lambda image: image.point(lambda value: value + int(torch.randint(200, ()))))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (pictures[0, seed][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)  # what else is drawn, as for dropout, does not change by it
