"""Optimiser, schedule, variation, early stopping: values worked by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.models.classifier import Backbone, Classifier
from pipeline.training.recipe import BestEpoch, make_optimiser, make_recipe, make_schedule, make_variation


def build_small():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)


def rates(steps, warmup, learning_rate=1.0):
    """The rate at each step, and the one after the last."""
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=learning_rate)
    schedule = make_schedule(optimiser, steps, warmup)
    found = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        optimiser.step()
        schedule.step()
        found.append(schedule.get_last_lr()[0])
    return found


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine():
    root = math.sqrt(0.5)
    assert rates(8, 0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2, 0], abs=1e-12)


def test_without_warm_up_the_rate_starts_at_its_top():
    assert rates(3, 0.0) == pytest.approx([1, 1, 0.5, 0], abs=1e-12)


def test_the_rates_are_shares_of_the_learning_rate():
    assert rates(8, 0.5, 3e-4)[:4] == pytest.approx([0.75e-4, 1.5e-4, 2.25e-4, 3e-4])


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_a_schedule_of_one_step_takes_it_in_full(warmup):
    assert rates(1, warmup)[0] == 1


def test_only_matrices_and_kernels_decay():
    model = build_small()
    decaying, others = make_optimiser(model, 0.1, 0.01).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name.removeprefix("backbone.network.") for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decaying["params"]} == {"0.weight", "head.weight"}
    assert {names[id(parameter)] for parameter in others["params"]} == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "head.bias"}


def test_a_recipe_leaves_batchnorm_out_of_the_optimiser():
    model = build_small()
    recipe = make_recipe(model, 2, 5, 0.1, 0.01, 0.1, 0.0, 3)
    trained = {id(parameter) for group in recipe.optimiser.param_groups for parameter in group["params"]}
    assert [name for name, parameter in model.named_parameters() if id(parameter) not in trained] == [
        "backbone.network.1.weight",
        "backbone.network.1.bias",
    ]


def test_a_recipe_spreads_its_schedule_over_all_steps_of_all_epochs():
    recipe = make_recipe(build_small(), 2, 5, 1.0, 0.01, 0.5, 0.0, 3)
    assert recipe.schedule.get_last_lr() == [0.2, 0.2]  # the first of five warm-up steps of ten


def look(best, losses):
    """Show epochs of these losses, whose weight is their number; whether each was the last."""
    model = nn.Linear(1, 1)
    ends = []
    for epoch, loss in enumerate(losses):
        nn.init.constant_(model.weight, epoch)
        best.see(loss, model)
        ends.append(best.is_over)
    return ends


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 2, 1], 2), ([1, 2, 3], 0), ([3, 1, 2], 1), ([2, 1, 1], 1)],  # of equal losses the first
)
def test_the_weights_of_the_lowest_loss_are_kept(losses, epoch):
    best = BestEpoch(patience=9)
    look(best, losses)
    assert best.state["weight"].item() == epoch


def test_the_kept_weights_do_not_move_with_the_model():
    best, model = BestEpoch(patience=9), nn.Linear(1, 1)
    best.see(1.0, model)
    kept = best.state["weight"].item()
    nn.init.constant_(model.weight, 7)
    assert best.state["weight"].item() == kept != 7


@pytest.mark.parametrize(
    ("patience", "losses", "ends"),
    [
        (1, [3, 2, 2], [False, False, True]),
        (2, [3, 4, 5], [False, False, True]),
        (2, [3, 4, 2, 4, 3], [False, False, False, False, True]),
        (3, [3, 4, 5], [False, False, False]),
    ],
)
def test_it_is_over_after_so_many_epochs_without_a_lower_loss(patience, losses, ends):
    assert look(BestEpoch(patience), losses) == ends


def picture():
    """Dark on the left, bright on the right."""
    return Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (16, 1, 3)))


def vary(flip, seed, count=40, min_crop_area=0.65):
    torch.manual_seed(seed)
    variation = make_variation(12, "bicubic", min_crop_area, flip)
    return [np.asarray(variation(picture())) for _ in range(count)]


def is_mirrored(pixels):
    return pixels[:, :6].mean() > pixels[:, 6:].mean()


def test_variations_of_one_seed_are_the_same():
    np.testing.assert_array_equal(vary(True, 3), vary(True, 3))


def test_variations_differ_from_each_other():
    first, second = vary(False, 3, count=2)
    assert (first != second).any()


def test_a_variation_has_the_networks_size():
    assert vary(True, 0, 1)[0].shape == (12, 12, 3)


def test_nothing_is_mirrored_where_that_is_not_allowed():
    assert not any(is_mirrored(pixels) for pixels in vary(False, 0))


def test_about_half_is_mirrored_where_that_is_allowed():
    assert 10 <= sum(is_mirrored(pixels) for pixels in vary(True, 0)) <= 30


def test_a_crop_holds_at_least_its_share_of_the_picture():
    # A crop of the whole area has at least 3/4 of the width or of the height: the span from dark to bright stays wide.
    spans = [int(pixels.max()) - int(pixels.min()) for pixels in vary(False, 0, min_crop_area=0.65)]
    assert min(spans) > 230 * 0.5
