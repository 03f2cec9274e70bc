"""The learning rate from step to step: values worked by hand."""

import math

import pytest
import torch
from torch import nn

from pipeline.training.recipe import Plateau, make_schedule


def rates(steps, warmup, learning_rate=1.0, kind="cosine", plateau=None):
    """The rate at each step, and the one after the last."""
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=learning_rate)
    schedule = make_schedule(kind, optimiser, steps, warmup, plateau or Plateau())
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


def test_a_constant_rate_stays_after_its_warm_up():
    assert rates(4, 0.5, kind="constant") == pytest.approx([0.5, 1, 1, 1, 1])


def test_steps_drop_to_a_tenth_at_30_60_and_90_percent():
    wanted = [1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001] * 2
    assert rates(10, 0.0, kind="step") == pytest.approx(wanted)


def test_one_cycle_rises_to_its_top_and_falls_to_almost_nothing():
    found = rates(20, 0.3, kind="one_cycle")
    top = found.index(max(found))
    assert max(found) == pytest.approx(1, abs=0.02)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert found[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_one_cycle_serves_the_shortest_run(steps, warmup):
    assert len(rates(steps, warmup, kind="one_cycle")) == steps + 1


@pytest.mark.parametrize(("momentum", "least"), [(0.9, 0.8), (0.5, 0.4), (0.05, 0.0), (0.0, 0.0)])
def test_one_cycle_moves_the_momentum_the_other_way_from_what_is_named(momentum, least):
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0, momentum=momentum)
    schedule = make_schedule("one_cycle", optimiser, 10, 0.5, Plateau())
    found = []
    for _ in range(10):
        found.append(optimiser.param_groups[0]["momentum"])
        optimiser.step()
        schedule.step()
    assert (found[0], max(found)) == pytest.approx((momentum, momentum))
    assert min(found) == pytest.approx(least, abs=5e-3)


def test_one_cycle_moves_the_first_beta_of_adam():
    optimiser = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
    make_schedule("one_cycle", optimiser, 10, 0.5, Plateau())
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("losses", "factors"),
    [
        ([3, 2, 1], [1, 1, 1]),
        ([1, 2, 2], [1, 1, 0.1]),
        ([1, 2, 2, 2, 2], [1, 1, 0.1, 0.1, 0.01]),
        ([1, 2, 0.5, 2, 2], [1, 1, 1, 1, 0.1]),
    ],
)
def test_a_plateau_of_two_epochs_drops_the_rate_to_a_tenth(losses, factors):
    plateau, found = Plateau(), []
    for loss in losses:
        plateau.see(loss)
        found.append(plateau.factor)
    assert found == pytest.approx(factors)


def test_a_schedule_follows_its_plateau():
    plateau = Plateau()
    plateau.factor = 0.1
    assert rates(2, 0.0, kind="plateau", plateau=plateau) == pytest.approx([1, 0.1, 0.1])
