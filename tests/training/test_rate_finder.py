"""The learning-rate finder: the curve it draws and the rate it names, worked by hand and on a small network."""

import itertools
import math

import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.core.hardware import Hardware
from pipeline.search import probing as rate_finder
from pipeline.search.probing import Curve, find_rates
from pipeline.training.loop import Course
from tests.recipes import recipe_of
from tests.training.test_finetune import TRAIN, VAL, build_small

CPU = Hardware(torch.device("cpu"), "fp32")


def curve_of(steps=60, poison=None, **changes):
    torch.manual_seed(0)
    model = build_small()
    recipe = recipe_of(model, len(TRAIN), schedule="constant", **changes)
    train = TRAIN if poison is None else [(pixels, labels) for pixels, labels in TRAIN]
    if poison is not None:
        torch.nn.init.constant_(model.head.bias, poison)
    return find_rates(Course(model, train, VAL, recipe), CPU, steps)


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
    recipe = recipe_of(model, len(TRAIN))
    recipe.begin_epoch(1)
    first = recipe.loss(*TRAIN[0])[0].item()
    assert curve_of().losses[0] == pytest.approx(first, rel=1e-5)


def test_it_ends_where_training_breaks_down(monkeypatch):
    monkeypatch.setattr(rate_finder, "_HIGHEST", 1e6)
    curve = curve_of(optimiser="sgd")
    assert 10 < len(curve.rates) < 60
    assert all(math.isfinite(loss) for loss in curve.losses)
    assert curve.suggestion < curve.rates[-1]


def test_where_nothing_can_be_seen_it_says_so():
    with pytest.raises(PipelineError) as error:
        curve_of(poison=math.nan)
    assert str(error.value) == "find-lr: training broke down after 0 steps; say precision: fp32, or look at the data"
