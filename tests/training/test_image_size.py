"""The side of pictures: given, or the smallest at which a head is as good as at any other, measured on train pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import inception_v3

from pipeline.networks import classifier
from pipeline.networks.classifier import Backbone
from pipeline.pictures.manifest import Picture
from pipeline.training import image_size
from pipeline.training.image_size import Trial, candidate_sides, choose_image_size, compare, draw_sample, measure, standard_error

HALF = ((0.5,) * 3, (0.5,) * 3)


def make_picture(width, height=None, name="a.png", label="ants", group=None):
    return Picture(name, name, name.ljust(64, "0"), label, "train", group or name, width, height or width)


class Edges(nn.Module):
    """The mean step between neighbours across and down: fine stripes are seen as long as their pixels are."""

    def forward(self, pixels):
        return torch.stack([pixels.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (3, 2)], dim=1)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Choose the side for pictures, below `train`, which enter `network`."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(image_size.hardware, "choose_device", lambda: torch.device("cpu"))

    def choose_for(pictures, wanted="auto", own=224, fixed_size=False, network=None):
        (tmp_path / "weights.safetensors").write_bytes(b"weights")
        architecture = {"name": "own", "library": "timm", "image_size": own, "mean": HALF[0], "std": HALF[1], "crop": 1.0}
        facts = {"architecture": {**architecture, "interpolation": "bilinear", "fixed_size": fixed_size}}
        (tmp_path / "backbone.json").write_text(json.dumps(facts))
        backbone = network or Backbone(Edges(), *HALF).eval()
        monkeypatch.setattr(classifier, "load_backbone", lambda _: (backbone, 2))
        return choose_image_size(wanted, tmp_path, pictures, tmp_path / "train", threads=1)

    return choose_for


# Without a measurement


@pytest.mark.parametrize(("side", "found"), [(1, 64), (8, 64), (32, 64), (33, 96), (48, 96), (96, 192), (112, 224), (113, 224), (500, 224)])
def test_of_few_pictures_auto_is_twice_their_side_up_to_the_networks_own(choose, side, found):
    choice = choose([make_picture(side)])
    assert (choice.side, choice.trials) == (found, [])


@pytest.mark.parametrize(
    ("sizes", "found"),
    [([(10, 40)], 96), ([(8, 8), (40, 40), (2000, 2000)], 96), ([(40, 40), (57, 57)], 128)],
    ids=["the longer side", "the median picture", "the mean of two"],
)
def test_what_counts_of_few_pictures(choose, sizes, found):
    assert choose([make_picture(*size) for size in sizes]).side == found


def test_a_network_smaller_than_the_least_takes_its_own(choose):
    assert choose([make_picture(8)], own=32).side == 32


@pytest.mark.parametrize("count", [1, 200])
def test_a_network_of_fixed_size_takes_its_own(choose, count):
    assert choose([make_picture(8, name=f"{number}.png") for number in range(count)], own=384, fixed_size=True).side == 384


@pytest.mark.parametrize("fixed_size", [False, True])
def test_a_number_is_taken_as_it_is(choose, fixed_size):
    assert choose([make_picture(8)], wanted=100, fixed_size=fixed_size).side == 100


@pytest.fixture(scope="module")
def inception():
    """A network that takes no picture below 75 pixels, at weights that torch draws quickly."""
    network = inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    network.fc = nn.Identity()
    return Backbone(network, *HALF).eval()


@pytest.mark.parametrize(("side", "found"), [(8, 299), (48, 96)])
def test_tiny_pictures_enter_inception_at_its_own_size(choose, inception, side, found):
    assert choose([make_picture(side)], own=299, network=inception).side == found


# The measurement


@pytest.fixture
def stripes(tmp_path):
    """Write pictures of 112 pixels with stripes across or down, which are `width` pixels wide, and return them."""
    (tmp_path / "train").mkdir()

    def write(width, count=100):
        random, pictures = np.random.default_rng(0), []
        for number in range(count):
            stripe = 90 + 75 * (np.arange(112) // width % 2)
            pixels = np.broadcast_to(stripe, (112, 112)) + random.integers(-60, 60, (112, 112))
            name = f"{number:03}.png"
            Image.fromarray((pixels.T if number % 2 else pixels).astype(np.uint8)).convert("RGB").save(tmp_path / "train" / name)
            pictures.append(make_picture(112, name=name, label="down" if number % 2 else "across"))
        return pictures

    return write


@pytest.mark.parametrize(("width", "side"), [(1, 96), (7, 64)], ids=["fine", "coarse"])
def test_the_side_is_the_smallest_at_which_the_classes_are_told_apart(choose, stripes, width, side, capsys):
    choice = choose(stripes(width))
    assert choice.side == side
    accuracy = {row["image_size"]: row["accuracy"] for row in choice.trials}
    assert accuracy[side] > 0.98
    assert all(accuracy[smaller] < 0.9 for smaller in accuracy if smaller < side)
    assert f"embed.image_size: auto: {side} of {', '.join(map(str, accuracy))} pixels, measured in" in capsys.readouterr().err


def test_a_second_choice_embeds_nothing_and_is_the_same(choose, stripes, monkeypatch):
    pictures = stripes(7)
    first = choose(pictures)
    monkeypatch.setattr(classifier, "load_backbone", None)  # nor is the network loaded
    assert choose(pictures) == first


@pytest.mark.parametrize("change", [{"sha256": "f" * 64}, {"label": "down"}, {"group": "001.png"}], ids=str)
def test_another_sample_is_measured_again(choose, stripes, monkeypatch, change):
    pictures = stripes(7, count=101)
    choose(pictures)
    monkeypatch.setattr(image_size, "embed_eagerly", None)
    with pytest.raises(TypeError):
        choose([replace(pictures[0], **change), *pictures[1:]])


def test_a_damaged_measurement_is_made_again(choose, stripes, tmp_path):
    pictures = stripes(7)
    first = choose(pictures)
    paths = sorted((tmp_path / ".cache/image_size").rglob("*.json"))
    assert len(paths) == len(first.trials) + 1  # and the choice
    for path in (paths[0], paths[-1]):
        path.write_text("")
    assert choose(pictures) == first


def test_pictures_in_few_groups_are_not_measured(choose):
    assert choose([make_picture(8, name=f"{number}.png", group=str(number % 99)) for number in range(300)]).trials == []


@pytest.mark.parametrize(
    ("own", "sides"),
    [(224, [64, 96, 128, 160, 224]), (299, [96, 128, 160, 224, 299]), (384, [96, 160, 224, 288, 384]), (64, [64]), (32, [32])],
)
def test_sides_that_are_tried(own, sides):
    assert candidate_sides(own) == sides


@pytest.mark.parametrize(
    ("losses", "tried"),
    [([5, 4, 3, 2, 1], 5), ([3, 2, 4, 5, 1], 4), ([3, 4, 2, 5, 1], 5), ([1, 2, 3, 4, 5], 3), ([3, 2, 4, 1, 5], 5)],
)
def test_two_worse_sides_in_a_row_end_the_search(losses, tried):
    sides = [64, 96, 128, 160, 224]
    found = measure(sides, lambda side: Trial(np.array([float(losses[sides.index(side)])]), 0.5))
    assert list(found) == sides[:tried]


GROUPS = [str(number) for number in range(400)]
NOISE = np.random.default_rng(0).normal(0, 1, 400)


@pytest.mark.parametrize(("above", "side"), [(0.5, 64), (1.5, 96)])
def test_a_smaller_side_is_taken_within_one_standard_error_of_the_lowest(above, side):
    steps = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)  # the standard error of their mean is 1/20
    trials = {64: Trial(1 + steps + above / 20, 0.8), 96: Trial(np.ones(400), 0.9), 128: Trial(np.full(400, 1.1), 0.9)}
    choice = compare(trials, GROUPS)
    assert choice.side == side
    lowest = {"log_loss": 1.0, "accuracy": 0.9, "above_lowest": 0.0, "standard_error": 0.0}
    assert choice.trials[:2] == [
        {"image_size": 64, "log_loss": 1 + above / 20, "accuracy": 0.8, "above_lowest": above / 20, "standard_error": 0.05},
        {"image_size": 96, **lowest},
    ]


def test_pictures_of_one_group_count_as_one():
    pairs = np.repeat(NOISE, 2)
    assert standard_error(pairs, np.repeat(GROUPS, 2)) == pytest.approx(standard_error(NOISE, GROUPS))


def test_a_sample_covers_the_classes_and_has_at_most_fifty():
    pictures = [make_picture(8, name=f"{number:05}.png", label=f"class {number // 30:03}") for number in range(6000)]
    sample = draw_sample(pictures)
    labels = sorted({picture.label for picture in sample})
    assert (len(sample), len(labels), labels[0], labels[-1]) == (1000, 50, "class 000", "class 199")
    assert draw_sample(pictures[:600]) == pictures[:600]
