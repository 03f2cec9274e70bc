"""Averaged weights: worked by hand."""

import pytest
import torch
from torch import nn

from pipeline.training.recipe import Average


def averaged_over(values, decay):
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, decay)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    return average, average.judged.weight.item()


def test_without_a_decay_the_model_itself_is_judged():
    average, _ = averaged_over([1, 2], 0.0)
    assert average.judged is average.model


@pytest.mark.parametrize(
    ("decay", "values", "wanted"),
    [
        (0.9, [1.0], 1.0),  # the first step is taken as it is
        (0.9, [1.0, 2.0], 1.0 * 2 / 11 + 2.0 * 9 / 11),  # a young average follows quickly: (1 + 1) / (10 + 1) of it is kept
        (0.1, [1.0, 2.0, 3.0], (0.1 * 1 + 0.9 * 2) * 0.1 + 0.9 * 3),
    ],
)
def test_the_average_keeps_a_share_of_itself(decay, values, wanted):
    assert averaged_over(values, decay)[1] == pytest.approx(wanted, rel=1e-6)


def test_batchnorms_statistics_are_averaged_too():
    model = nn.BatchNorm1d(1)
    average = Average(model, 0.5)
    for value in (0.0, 1.0):
        nn.init.constant_(model.running_mean, value)
        average.update()
    assert 0 < average.judged.running_mean.item() < 1


def test_a_restored_average_is_where_it_was():
    first, value = averaged_over([1, 2, 5], 0.5)
    second = Average(nn.Linear(1, 1, bias=False), 0.5)
    second.restore(first.state())
    assert second.judged.weight.item() == value
    nn.init.constant_(second.model.weight, 7)
    nn.init.constant_(first.model.weight, 7)
    second.update(), first.update()
    assert torch.equal(first.judged.weight, second.judged.weight)


def test_what_does_not_move_stays_exactly_as_it_is():
    model = nn.Linear(100, 100)
    average = Average(model, 0.9)
    for _ in range(20):
        average.update()
    assert torch.equal(average.judged.weight, model.weight)
