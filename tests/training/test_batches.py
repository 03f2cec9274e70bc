"""Batches: every picture once per epoch, classes balanced on demand, a frozen front run once."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pictures.images import Preprocessing
from pipeline.training import batches as batches_module
from pipeline.training.batches import TrainingData, activation_batches, batch_sizes, decode_val, picture_batches
from tests.recipes import CPU, recipe_of

SIZE = 8
LABELS = [0] * 9 + [1] * 3


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Twelve training pictures, each of one grey that is its number; the first three are the val pictures."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(paths[-1])
    preprocessing = Preprocessing(SIZE, 1.0, "bilinear")
    return TrainingData(
        paths,
        LABELS,
        paths[:3],
        LABELS[:3],
        np.array([True, False, True]),
        ["0", "1", "2"],
        ["a", "b"],
        preprocessing,
        True,
        tmp_path,
        tmp_path,
        {},
        "",
    )


def pictures_of(data, batch_size=4, **changes):
    """The batches of train and of val."""
    recipe = recipe_of(batch_size=batch_size, **changes)
    return picture_batches(data, decode_val(data, recipe), recipe, SIZE)


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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are processors
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_processes_changes_no_picture(data, monkeypatch, workers):
    def epochs(count):
        monkeypatch.setattr(batches_module, "_workers", lambda *_: count)
        train, _ = pictures_of(data, batch_size=5, min_crop_area=0.1, augment="trivial")
        assert train.num_workers == count
        return [(pixels.clone(), labels) for _ in range(2) for pixels, labels in train], torch.rand(1)

    for path in data.train_paths:
        noise = np.random.default_rng(len(path.name)).integers(0, 256, (3 * SIZE, 2 * SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    torch.manual_seed(0)
    alone, after = epochs(0)
    torch.manual_seed(0)
    beside, after_too = epochs(workers)
    assert torch.equal(after, after_too)
    assert len(alone) == len(beside) == 6
    for (pixels, labels), (pixels_too, labels_too) in zip(alone, beside, strict=True):
        assert torch.equal(pixels, pixels_too)
        assert torch.equal(labels, labels_too)
    assert len({pixels.numpy().tobytes() for pixels, _ in alone}) == 6


@pytest.mark.parametrize(
    ("pictures", "cpus", "free", "platform", "workers"),
    [(1000, 2, 1 << 30, "linux", 1), (1000, 1, 1 << 30, "linux", 1), (10**6, 64, 1 << 40, "linux", 8), (10**6, 6, 1 << 40, "linux", 5),
     (127, 8, 1 << 30, "linux", 0), (1000, 8, 64 << 20, "linux", 2), (1000, 8, 1 << 20, "linux", 0), (1000, 8, 1 << 30, "darwin", 0)],
)  # fmt: skip
def test_processes_that_augment_are_as_many_as_pay_and_fit(monkeypatch, pictures, cpus, free, platform, workers):
    monkeypatch.setattr(batches_module, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(batches_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(batches_module.sys, "platform", platform)
    assert batches_module._workers(pictures, 32, 224) == workers


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


def test_val_pictures_are_decoded_once(data):
    _, val = pictures_of(data, batch_size=2)
    for path in data.val_paths:
        path.unlink()
    assert [numbers(val) for _ in range(2)] == [[0, 1, 2]] * 2
    assert [pixels.shape[0] for pixels, _ in val] == [2, 1]


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
    assert sum(seen) == 12 + 3 + 3  # val is not kept, and runs each time


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
