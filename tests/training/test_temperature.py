"""The temperature against a grid, and what its prior does where pictures are few."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pipeline.training.temperature import fit_temperature


def draw(count, temperature, seed=0):
    """Logits that are so many times too large for their labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, 3))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1).clip(0, 2)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_many_pictures_give_the_temperature_that_they_were_drawn_with(temperature):
    assert fit_temperature(*draw(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_best_of_a_grid():
    logits, labels = draw(50, 2.0)
    grid = np.exp(np.linspace(-3, 3, 6001))
    losses = [-log_softmax(logits / t, axis=1)[np.arange(50), labels].sum() + 2 * np.log(t) ** 2 for t in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_a_few_pictures_that_are_all_right_do_not_make_it_sure_of_everything():
    assert 0.3 < fit_temperature(np.eye(3) * 4, np.arange(3)) < 1


def test_it_has_six_digits():
    found = fit_temperature(*draw(50, 2.0))
    assert found == float(f"{found:.6g}")
