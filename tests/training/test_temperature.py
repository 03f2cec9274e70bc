"""The temperature against a grid, what half a mistake does where pictures are few, and the loss that ranks models."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pipeline.pictures.manifest import Picture
from pipeline.training.temperature import calibrated_losses, fit_temperature, halves


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
    mistaken = 0.5 / 51
    targets = np.where(np.arange(3) == labels[:, None], 1 - mistaken, mistaken / 2)
    losses = [-(targets * log_softmax(logits / t, axis=1)).sum() for t in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_it_has_six_digits():
    found = fit_temperature(*draw(50, 2.0))
    assert found == float(f"{found:.6g}")


def test_without_pictures_it_is_1():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1


def test_pictures_that_are_all_right_are_as_sure_as_half_a_mistake_among_one_more_allows():
    # Two classes, margin m: the best share of the true class is 1 - 0.5 / (count + 1).
    for count in (4, 40):
        temperature = fit_temperature(np.tile([[3.0, 0.0]], (count, 1)), np.zeros(count, int))
        assert softmax([3 / temperature, 0])[1] == pytest.approx(0.5 / (count + 1), rel=1e-3)


def test_each_half_is_scored_under_the_temperature_of_the_other():
    logits, labels = draw(40, 2.0)
    half = np.arange(40) < 15
    losses = calibrated_losses(logits, labels, half)
    for this in (half, ~half):
        temperature = fit_temperature(logits[~this], labels[~this])
        assert losses[this] == pytest.approx(-log_softmax(logits[this] / temperature, axis=1)[np.arange(this.sum()), labels[this]])


def test_a_model_that_is_too_sure_is_no_worse_than_the_same_model_with_smaller_logits():
    logits, labels = draw(200, 1.0)
    half = np.arange(200) % 2 == 0
    assert calibrated_losses(5 * logits, labels, half) == pytest.approx(calibrated_losses(logits, labels, half), rel=1e-3)


def make_pictures(*labels_and_groups):
    return [Picture(str(n), str(n), "0" * 64, label, "val", group, 8, 8) for n, (label, group) in enumerate(labels_and_groups)]


def test_a_half_has_every_other_group_of_a_class_and_groups_stay_whole():
    found = halves(make_pictures(*[("ant", "1"), ("ant", "1"), ("ant", "2"), ("bee", "3"), ("ant", "4"), ("bee", "5"), ("ant", "2")]))
    assert found.tolist() == [True, True, False, False, True, True, False]


def test_neither_half_is_empty_where_every_class_has_one_picture():
    assert 0 < halves(make_pictures(("ant", "1"), ("bee", "2"))).sum() < 2
