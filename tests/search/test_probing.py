"""Samples of equally many pictures per class, probes of features, the time of a run, and learning-rate curves."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.classifier import Backbone
from pipeline.networks.embedding import embed_eagerly
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.search import probing
from pipeline.search.probing import Curve, SampleRun, draw_sample, find_rates, probe, read_sample, settle_norms
from tests.recipes import CPU, trainer_of
from tests.training.test_loop import TRAIN, build_small

COUNTS = {"ant": 50, "bee": 5}
PICTURES = [Picture(f"{name}/{number:03d}.png", "", "", name, "train", "", 8, 8) for name in COUNTS for number in range(COUNTS[name])]


def test_a_rare_class_is_drawn_whole_before_another_is_drawn_more_often():
    assert Counter(picture.label for picture in draw_sample(PICTURES, 20, 0)) == {"ant": 15, "bee": 5}
    assert Counter(picture.label for picture in draw_sample(PICTURES, 6, 0)) == {"ant": 3, "bee": 3}


def test_it_keeps_their_order_and_draws_none_twice():
    sample = draw_sample(PICTURES, 30, 0)
    assert sample == [picture for picture in PICTURES if picture in sample]
    assert len(sample) == 30


def test_it_is_all_of_them_where_there_are_no_more():
    assert draw_sample(PICTURES, 1000, 0) == PICTURES


def test_the_seed_draws_it():
    assert draw_sample(PICTURES, 10, 0) == draw_sample(PICTURES, 10, 0) != draw_sample(PICTURES, 10, 1)


def test_of_many_classes_two_pictures_each_are_drawn(tmp_path):
    pictures = [
        Picture(f"{label:04d}/{split}{number}.png", "", "", f"{label:04d}", split, "", 8, 8)
        for label in range(600) for split in ("train", "val") for number in range(3)
    ]  # fmt: skip
    write_manifest(tmp_path / "manifest.csv", pictures)
    sample = read_sample(tmp_path / "manifest.csv", 0)
    assert set(Counter(picture.label for picture in sample.train).values()) == {2}
    assert {picture.split for picture in sample.train} == {"train"}
    assert set(Counter(picture.label for picture in sample.val).values()) == {2}
    assert sample.manifest.labels(sample.val[:3]) == [0, 0, 1]


FOLDS = np.arange(40) % 4
HALVES = np.arange(10) % 2 == 0  # of val, the last ten
LABELS = np.arange(40) // 4 % 2


@pytest.fixture
def batches():
    return list(np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(network, [0.5] * 3, [0.5] * 3)


def test_features_are_a_row_a_picture_in_their_order(backbone, batches):
    features = embed_eagerly(backbone, batches, CPU)
    assert (features.shape, features.dtype) == ((12, 5), np.float32)
    with torch.inference_mode():
        assert features[4:8] == pytest.approx(backbone(torch.from_numpy(batches[1])).numpy(), abs=1e-6)


def test_norms_take_the_statistics_of_the_pictures(backbone, batches):
    norm = backbone.network[1]
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    settle_norms(backbone, batches, CPU)
    assert norm.running_mean.numpy() == pytest.approx(torch.cat(seen).mean(dim=(0, 2, 3)).numpy(), abs=1e-5)
    embed_eagerly(backbone, batches, CPU)
    assert norm.running_mean.numpy() == pytest.approx(torch.cat(seen[:3]).mean(dim=(0, 2, 3)).numpy(), abs=1e-5)


def test_a_network_without_norms_is_left_as_it_is(batches):
    settle_norms(Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [0.5] * 3, [0.5] * 3), batches, CPU)


def test_a_head_is_right_about_what_tells_the_classes_apart():
    features = np.random.default_rng(0).normal(0, 0.1, (40, 6)).astype(np.float32)
    features[:, 0] += LABELS
    found = probe(features, LABELS, 30, FOLDS, HALVES, [0.001, 0.1], 1)
    assert not found.wrong.any()
    assert found.losses.max() < 0.5
    assert (found.head.logits(features).argmax(axis=1) == LABELS).all()


def test_a_head_is_no_better_than_chance_about_noise_that_it_did_not_see():
    features = np.random.default_rng(0).normal(0, 1, (40, 6)).astype(np.float32)
    assert 0.25 < probe(features, LABELS, 30, FOLDS, HALVES, [0.1], 1).wrong.mean() < 0.75


def test_a_class_that_the_other_folds_lack_costs_much_but_not_all():
    labels = np.where(np.arange(40) == 0, 2, LABELS)
    found = probe(np.random.default_rng(0).normal(0, 1, (40, 6)), labels, 30, FOLDS, HALVES, [0.1], 1)
    assert found.losses[0] == pytest.approx(-np.log(1e-6))


def test_the_seconds_of_a_whole_run_follow_from_its_epochs_and_pictures():
    run = SampleRun(np.zeros(1), 4, once_seconds=3, train_seconds=10, val_seconds=1)
    assert run.seconds(4, 2, 3) == (3 + 4 * 10) * 2 + 5 * 1 * 3


def curve_of(steps=60, poison=None, **changes):
    torch.manual_seed(0)
    model = build_small()
    if poison is not None:
        torch.nn.init.constant_(model.head.bias, poison)
    return find_rates(trainer_of(model, TRAIN, schedule="constant", **changes), steps)


@pytest.mark.parametrize(
    ("losses", "suggestion"),
    [
        ([2.0, 1.0, 1.0, 1.9, 2.1], 1e-4),  # twice the lowest is passed at the fifth rate, 1e-3
        ([5.0, 3.0, 1.0, 2.5, 9.0], 1e-5),  # what was high before the lowest does not count
        ([1.0, 0.9, 0.8, 0.7, 0.6], 1e-4),  # it never doubles: the highest that was tried
    ],
)
def test_the_rate_to_take_is_a_tenth_of_that_where_the_loss_doubles(losses, suggestion):
    assert Curve([1e-7, 1e-6, 1e-5, 1e-4, 1e-3], losses).suggestion == suggestion


def test_the_rate_rises_by_the_same_factor_from_step_to_step():
    rates = curve_of().rates
    assert rates[0] == 1e-7
    assert [second / first for first, second in itertools.pairwise(rates)] == pytest.approx([1e7 ** (1 / 59)] * (len(rates) - 1))


def test_the_losses_are_smoothed_and_start_at_the_first():
    torch.manual_seed(0)
    model = build_small()
    trainer = trainer_of(model, TRAIN)
    trainer.begin_epoch(1)
    first = trainer.loss(*TRAIN[0])[0].item()
    assert curve_of().losses[0] == pytest.approx(first, rel=1e-5)


def test_it_ends_when_training_diverges(monkeypatch):
    monkeypatch.setattr(probing, "_HIGHEST", 1e6)
    curve = curve_of(optimiser="sgd")
    assert 10 < len(curve.rates) < 60
    assert all(math.isfinite(loss) for loss in curve.losses)
    assert curve.suggestion < curve.rates[-1]


def test_a_curve_of_too_few_steps_is_refused():
    with pytest.raises(PipelineError, match=r"find-lr: .* after 0 steps"):
        curve_of(poison=math.nan)
