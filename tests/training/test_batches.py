"""Batches: every picture once per epoch, classes balanced on demand, a frozen front run once."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pictures.images import Preprocessing
from pipeline.training.batches import TrainingData, activation_batches, batch_sizes, decode_val, picture_batches
from tests.recipes import CPU, recipe_of

SIZE = 8
LABELS = [0] * 9 + [1] * 3


@pytest.fixture
def data(tmp_path):
    """Twelve training pictures, each of one grey that is its number; the first three are the val pictures."""
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(paths[-1])
    preprocessing = Preprocessing(SIZE, 1.0, "bilinear")
    return TrainingData(
        paths, LABELS, paths[:3], LABELS[:3], np.array([True, False, True]), ["a", "b"], preprocessing, True, tmp_path, tmp_path, {}, ""
    )


def pictures_of(data, batch_size=4, **changes):
    """The batches of train and of val."""
    recipe = recipe_of(batch_size=batch_size, **changes)
    return picture_batches(data, decode_val(data, recipe), recipe)


def activations_of(data, front, path):
    recipe = recipe_of(batch_size=4)
    return activation_batches(data, decode_val(data, recipe), recipe, front, CPU, path)


def numbers(batches):
    """Which pictures come, in their order."""
    return [int(pixels.flatten()[0]) for batch, _ in batches for pixels in batch]


def mean_colour(pixels):
    return pixels.float().mean(dim=(1, 2))


def test_each_epoch_brings_every_picture_once_in_another_order(data):
    train, _ = pictures_of(data)
    first, second = numbers(train), numbers(train)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


@pytest.mark.parametrize("batch_size", [4, 5, 11, 20])
@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_the_sizes_of_the_batches_are_known_before_they_come(data, batch_size, balance):
    for batches in pictures_of(data, batch_size, balance=balance):
        assert batch_sizes(batches) == [len(labels) for _, labels in batches]


def test_the_order_follows_from_the_seed(data):
    runs = [numbers(pictures_of(data, seed=seed)[0]) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_pictures_come_with_their_classes(data):
    train, val = pictures_of(data)
    for batches in (train, val):
        for pixels, labels in batches:
            assert [LABELS[int(picture.flatten()[0])] for picture in pixels] == labels.tolist()


def test_val_pictures_come_as_they_are_in_their_order(data):
    assert numbers(pictures_of(data)[1]) == [0, 1, 2]


def test_balanced_sampling_brings_each_class_equally_often(data):
    train, _ = pictures_of(data, balance="sampling")
    counts = Counter(label for _ in range(50) for _, labels in train for label in labels.tolist())
    assert sum(counts.values()) == 600
    assert 250 < counts[1] < 350


def test_balanced_sampling_follows_from_the_seed(data):
    runs = [numbers(pictures_of(data, seed=seed, balance="sampling")[0]) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_last_batch_of_one_is_left_out(data):
    train, _ = pictures_of(data, batch_size=11)
    assert [len(labels) for _, labels in train] == [11]


def test_a_front_gives_the_activations_of_each_picture_with_its_class(data, tmp_path):
    train, val = activations_of(data, mean_colour, tmp_path / "kept.npy")
    for batches in (train, val):
        for activations, labels in batches:
            assert activations.dtype == torch.float32
            assert [LABELS[int(row[0])] for row in activations] == labels.tolist()
    assert sorted(numbers(train)) == list(range(12))
    assert numbers(val) == [0, 1, 2]


def test_a_front_runs_once_over_each_training_picture_and_not_again_after_a_kill(data, tmp_path):
    seen = []

    def front(pixels):
        seen.append(len(pixels))
        return mean_colour(pixels)

    for _ in range(2):
        train, _ = activations_of(data, front, tmp_path / "kept.npy")
        numbers(train), numbers(train)
    assert sum(seen) == 12 + 3 + 3  # val is in memory, and runs each time


def test_a_front_that_is_killed_leaves_nothing_half_written(data, tmp_path):
    calls = []

    def front(pixels):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean_colour(pixels)

    with pytest.raises(KeyboardInterrupt):
        activations_of(data, front, tmp_path / "room" / "kept.npy")
    assert not (tmp_path / "room" / "kept.npy").exists()


def test_kept_activations_are_a_plain_array(data, tmp_path):
    activations_of(data, mean_colour, tmp_path / "kept.npy")
    assert np.load(tmp_path / "kept.npy", allow_pickle=False)[:, 0].tolist() == list(range(12))


def is_mirrored(pixels):
    return pixels[:, : SIZE // 2].float().mean() > pixels[:, SIZE // 2 :].float().mean()


@pytest.mark.parametrize(
    ("flip", "tiny", "some"), [("auto", True, False), ("auto", False, True), (True, True, True), (False, False, False)]
)
def test_auto_mirrors_pictures_unless_they_are_tiny(data, flip, tiny, some):
    ramp = np.tile(np.arange(0, 240, 30, dtype=np.uint8)[None, :, None], (SIZE, 1, 3))
    for path in data.train_paths:
        Image.fromarray(ramp).save(path)
    train, _ = pictures_of(replace(data, tiny=tiny), flip=flip)
    torch.manual_seed(0)
    assert any(is_mirrored(pixels) for batch, _ in train for pixels in batch) == some
