"""Heads on features, and training runs on a sample: what they find on pictures that are easy to tell apart, and the time of a whole run."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.hardware import Hardware
from pipeline.networks.classifier import Backbone
from pipeline.search.probing import SampleRun, embed, probe, settle_norms

CPU = Hardware(torch.device("cpu"), "fp32")
FOLDS = np.arange(40) % 4
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
    features = embed(backbone, batches, CPU)
    assert (features.shape, features.dtype) == ((12, 5), np.float32)
    with torch.inference_mode():
        assert features[4:8] == pytest.approx(backbone(torch.from_numpy(batches[1])).numpy(), abs=1e-6)


def test_norms_take_the_statistics_of_the_pictures(backbone, batches):
    norm = backbone.network[1]
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    settle_norms(backbone, batches, CPU)
    assert norm.running_mean.numpy() == pytest.approx(torch.cat(seen).mean(dim=(0, 2, 3)).numpy(), abs=1e-5)
    embed(backbone, batches, CPU)
    assert norm.running_mean.numpy() == pytest.approx(torch.cat(seen[:3]).mean(dim=(0, 2, 3)).numpy(), abs=1e-5)


def test_a_network_without_norms_is_left_as_it_is(batches):
    settle_norms(Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [0.5] * 3, [0.5] * 3), batches, CPU)


def test_a_head_is_right_about_what_tells_the_classes_apart():
    features = np.random.default_rng(0).normal(0, 0.1, (40, 6)).astype(np.float32)
    features[:, 0] += LABELS
    found = probe(features, LABELS, 30, FOLDS, [0.001, 0.1], 1)
    assert not found.wrong.any()
    assert found.losses.max() < 0.5
    assert (found.head.logits(features).argmax(axis=1) == LABELS).all()


def test_a_head_is_no_better_than_chance_about_noise_that_it_did_not_see():
    features = np.random.default_rng(0).normal(0, 1, (40, 6)).astype(np.float32)
    assert 0.25 < probe(features, LABELS, 30, FOLDS, [0.1], 1).wrong.mean() < 0.75


def test_a_class_that_the_other_folds_lack_costs_much_but_not_all():
    labels = np.where(np.arange(40) == 0, 2, LABELS)
    assert probe(np.random.default_rng(0).normal(0, 1, (40, 6)), labels, 30, FOLDS, [0.1], 1).losses[0] == pytest.approx(-np.log(1e-6))


def test_the_seconds_of_a_whole_run_follow_from_its_epochs_and_pictures():
    run = SampleRun(np.zeros(1), 4, once_seconds=3, train_seconds=10, val_seconds=1)
    assert run.seconds(4, 2, 3) == (3 + 4 * 10) * 2 + 5 * 1 * 3
