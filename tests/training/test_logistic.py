"""Logistic regression: the optimum is scikit-learn's for every shape, and the bytes depend on nothing but the features."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from pipeline.core.errors import PipelineError
from pipeline.training.head import Head
from pipeline.training.logistic import fit_logistic, principal_axes

GRID = [0.001, 0.1, 10.0]


def draw(num_classes, count=60, width=5, noise=1.0, decay=0.0):
    """Features, far from the origin, and labels: overlapping clouds, a class each. The deviations fall as a power of the dimension."""
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    clouds = generator.normal(size=(num_classes, width))[labels] + noise * generator.normal(size=(count, width))
    return (3 + 2 * clouds * np.arange(1.0, width + 1) ** -decay).astype(np.float32), labels


def fit(features, labels, l2, threads=1):
    """The head of all rows."""
    used = np.ones((1, len(labels)), bool)
    return Head(*fit_logistic(features, labels, used, [l2], principal_axes(features, threads), threads)[0])


def scaled(features):
    """As the objective sees them: centred, scaled as a whole."""
    features = features.astype(float)
    return (features - features.mean(axis=0)) / features.std()


def objective(logits, weight, labels, l2):
    """`weight`: of scaled features."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean() + l2 / 2 * (weight**2).sum()


def loss_of(head, features, labels, l2):
    weight = head.weight.astype(float)
    return objective(features.astype(float) @ weight.T + head.bias, weight * features.astype(float).std(), labels, l2)


def lowest_loss(features, labels, l2):
    """By scikit-learn. Of two classes it fits the difference of their logits, whose weight has twice the squared norm of both."""
    factor = 2 if labels.max() == 1 else 1
    model = LogisticRegression(C=factor / (l2 * len(labels)), tol=1e-7, max_iter=20_000).fit(scaled(features), labels)
    weight, bias = model.coef_, model.intercept_
    if factor == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return objective(scaled(features) @ weight.T + bias, weight, labels, l2)


SHAPES = {
    "two classes": draw(2),
    "six classes": draw(6),
    "many classes": draw(60, count=400, width=20),
    "clear classes": draw(4, count=200, width=20, noise=0.1),
    "more features than pictures": draw(3, count=20, width=50),
    "one picture more than features": draw(3, count=31, width=30),
    "uneven features": draw(5, count=1500, width=40, decay=2),
    "several blocks and a sample for the axes": draw(3, count=2500, width=10),
}
features, labels = draw(3)
SHAPES["constant features"] = features * [1, 0, 1, 0, 1] + [0, 7, 0, 0.1, 0], labels
SHAPES["equal features"] = features[:, [0, 0, 1, 1, 2]], labels
SHAPES["a rare feature"] = features * np.where(np.arange(60)[:, None] == 33, 1, [1, 1, 1, 1, 0]), labels
features, labels = draw(3, count=200)
SHAPES["a rare class"] = features[(labels > 0) | (np.arange(200) < 2)], labels[(labels > 0) | (np.arange(200) < 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", GRID)
def test_the_loss_is_as_low_as_scikit_learns(shape, l2):
    features, labels = SHAPES[shape][0].astype(np.float32), SHAPES[shape][1]
    assert loss_of(fit(features, labels, l2), features, labels, l2) == pytest.approx(lowest_loss(features, labels, l2), rel=0, abs=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("l2", GRID)
def test_the_gradient_of_the_objective_is_zero(num_classes, l2):
    features, labels = draw(num_classes)
    head = fit(features, labels, l2)
    errors = softmax(head.logits(features).astype(float), axis=1) - np.eye(num_classes)[labels]
    by_weight = errors.T @ scaled(features) / len(features) + l2 * head.weight * features.std()
    np.testing.assert_allclose(by_weight, 0, atol=5e-4)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=5e-4)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_is_float32_in_rows_of_classes(num_classes):
    head = fit(*draw(num_classes), 0.1)
    assert (head.weight.shape, head.bias.shape) == ((num_classes, 5), (num_classes,))
    assert head.weight.dtype == head.bias.dtype == np.float32


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_comes_back_from_safetensors_as_it_was(num_classes, tmp_path):
    head = fit(*draw(num_classes), 0.1)
    save_file({"head.weight": head.weight, "head.bias": head.bias}, tmp_path / "head.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "head.safetensors")["head.weight"], head.weight)
    np.testing.assert_array_equal(load_file(tmp_path / "head.safetensors")["head.bias"], head.bias)


def test_shifted_and_stretched_features_get_the_same_answers():
    features, labels = draw(3)
    other = features * 10 + 5
    np.testing.assert_allclose(fit(other, labels, 0.1).logits(other), fit(features, labels, 0.1).logits(features), atol=2e-3)


def test_a_greater_penalty_gives_smaller_weights():
    sizes = [np.abs(fit(*draw(3), l2).weight).sum() for l2 in GRID]
    assert sizes == sorted(sizes, reverse=True)


def test_two_classes_have_opposite_weights():
    head = fit(*draw(2), 0.1)
    np.testing.assert_array_equal(head.weight[0], -head.weight[1])


def test_problems_side_by_side_are_solved_as_each_alone():
    features, labels = draw(4, count=90)
    used = np.arange(90) % 3 != np.array([[0], [1]])
    together = fit_logistic(features, labels, used, [0.001, 0.1], principal_axes(features, 1), 1)
    for (weight, bias), rows, l2 in zip(together, used, [0.001, 0.1], strict=True):
        alone = fit(features[rows], labels[rows], l2)
        np.testing.assert_allclose(softmax(features @ weight.T + bias, axis=1), softmax(alone.logits(features), axis=1), atol=0.02)
        assert loss_of(Head(weight, bias), features[rows], labels[rows], l2) == pytest.approx(
            lowest_loss(features[rows], labels[rows], l2), abs=1e-5
        )


def test_more_parameters_than_are_solved_side_by_side_are_solved_one_after_the_other(monkeypatch):
    features, labels = draw(3)
    used, axes = np.ones((3, 60), bool), principal_axes(features, 1)
    together = fit_logistic(features, labels, used, GRID, axes, 1)
    monkeypatch.setattr("pipeline.training.logistic._PARAMETERS", 40)  # two problems of 3 x 6
    for (weight, _), (other, _) in zip(together, fit_logistic(features, labels, used, GRID, axes, 1), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-3)


def test_a_class_without_rows_is_never_predicted():
    features, labels = draw(3)
    ((weight, bias),) = fit_logistic(features, labels, (labels != 1)[None], [0.1], principal_axes(features, 1), 1)
    assert bias[1] == -np.inf
    two = fit(features[labels != 1], labels[labels != 1] // 2, 0.1)
    np.testing.assert_allclose(softmax(features @ weight.T + bias, axis=1)[:, [0, 2]], softmax(two.logits(features), axis=1), atol=2e-3)


def test_one_class_is_always_predicted():
    head = fit(draw(3)[0], np.zeros(60, int), 0.1)
    assert softmax(head.logits(draw(3)[0]), axis=1).tolist() == [[1]] * 60


@pytest.mark.parametrize("count", [4, 40])
def test_features_that_are_all_equal_give_the_shares_of_the_classes(count):
    head = fit(np.full((count, 5), 0.1, np.float32), np.arange(count) % 4 // 3, 0.1)
    np.testing.assert_allclose(softmax(head.bias + 0.1 * head.weight.sum(axis=1)), [0.75, 0.25], atol=1e-6)


@pytest.mark.parametrize("shape", ["several blocks and a sample for the axes", "more features than pictures"])
def test_any_number_of_threads_and_a_memory_map_give_the_same_bytes(shape, tmp_path):
    features, labels = SHAPES[shape]
    np.save(tmp_path / "features.npy", features)
    first = fit(features, labels, 0.001)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for head in (fit(features, labels, 0.001, threads=3), fit(mapped, labels, 0.001, threads=2)):
        assert head.weight.tobytes() == first.weight.tobytes()
        assert head.bias.tobytes() == first.bias.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("count", [4, 60])
def test_features_that_are_no_numbers_are_refused(value, count):
    features, labels = draw(3, count=count)
    features[1, 1] = value
    with pytest.raises(PipelineError, match="the features: contain NaN or infinity"):
        fit(features, labels, 0.1)
