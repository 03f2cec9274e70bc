"""What the loop is fed with: every picture once an epoch, classes balanced on demand, a front run once."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.hardware import Hardware
from pipeline.pictures.images import Preprocessing, square_batches
from pipeline.training.batches import Kitchen, TrainingData
from tests.recipes import settings

CPU = Hardware(torch.device("cpu"), "fp32")
SIZE = 8
LABELS = [0] * 9 + [1] * 3


@pytest.fixture
def material(tmp_path):
    """Twelve pictures, each of one grey that is its number, the first three in val too."""
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(paths[-1])
    preprocessing = Preprocessing(SIZE, 1.0, "bilinear")
    return TrainingData(paths, LABELS, [*square_batches(paths[:3], preprocessing, 2, 1, "val")], LABELS[:3], preprocessing, False)


def kitchen(seed=0, **changes):
    return Kitchen(settings(batch_size=4, seed=seed, threads=1, **changes))


def numbers(batches):
    """Which pictures come, in their order."""
    return [int(pixels.flatten()[0]) for batch, _ in batches for pixels in batch]


def mean_colour(pixels):
    return pixels.float().mean(dim=(1, 2))


def test_each_epoch_brings_every_picture_once_in_another_order(material):
    train, _ = kitchen().from_pictures(material)
    first, second = numbers(train), numbers(train)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_order_follows_from_the_seed(material):
    runs = [numbers(kitchen(seed).from_pictures(material)[0]) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_pictures_come_with_their_classes(material):
    train, val = kitchen().from_pictures(material)
    for batches in (train, val):
        for pixels, labels in batches:
            assert [LABELS[int(picture.flatten()[0])] for picture in pixels] == labels.tolist()


def test_val_pictures_come_as_they_are_in_their_order(material):
    assert numbers(kitchen().from_pictures(material)[1]) == [0, 1, 2]


def test_balanced_sampling_brings_each_class_equally_often(material):
    train, _ = kitchen(balance="sampling").from_pictures(material)
    counts = Counter(label for _ in range(50) for _, labels in train for label in labels.tolist())
    assert sum(counts.values()) == 600
    assert 250 < counts[1] < 350


def test_balanced_sampling_follows_from_the_seed(material):
    runs = [numbers(kitchen(seed, balance="sampling").from_pictures(material)[0]) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_last_batch_of_one_is_left_out(material):
    train, _ = Kitchen(settings(batch_size=11, seed=0, threads=1)).from_pictures(material)
    assert [len(labels) for _, labels in train] == [11]


def test_a_front_gives_the_activations_of_each_picture_with_its_class(material, tmp_path):
    train, val = kitchen().from_activations(material, mean_colour, CPU, tmp_path / "kept.npy")
    for batches in (train, val):
        for activations, labels in batches:
            assert activations.dtype == torch.float32
            assert [LABELS[int(row[0])] for row in activations] == labels.tolist()
    assert sorted(numbers(train)) == list(range(12))
    assert numbers(val) == [0, 1, 2]


def test_a_front_runs_once_over_each_training_picture_and_not_again_after_a_kill(material, tmp_path):
    seen = []

    def front(pixels):
        seen.append(len(pixels))
        return mean_colour(pixels)

    for _ in range(2):
        train, _ = kitchen().from_activations(material, front, CPU, tmp_path / "kept.npy")
        numbers(train), numbers(train)
    assert sum(seen) == 12 + 3 + 3  # val, which lies in memory, each time


def test_a_front_that_is_killed_leaves_nothing_half_written(material, tmp_path):
    calls = []

    def front(pixels):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean_colour(pixels)

    with pytest.raises(KeyboardInterrupt):
        kitchen().from_activations(material, front, CPU, tmp_path / "room" / "kept.npy")
    assert not (tmp_path / "room" / "kept.npy").exists()


def test_kept_activations_are_a_plain_array(material, tmp_path):
    kitchen().from_activations(material, mean_colour, CPU, tmp_path / "kept.npy")
    assert np.load(tmp_path / "kept.npy", allow_pickle=False)[:, 0].tolist() == list(range(12))
