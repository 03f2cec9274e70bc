"""The formulas against scikit-learn's, and what they do where there is nothing to divide by."""

import numpy as np
import pytest
import sklearn.metrics as oracle

from pipeline.evaluation import scores as metrics


def draw_case(seed, num_classes=4, count=60, never_predicted=None):
    """Labels that hold every class, and float32 probabilities that rarely are sure."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    probs = generator.dirichlet(np.ones(num_classes), count).astype(np.float32)
    if never_predicted is not None:
        probs[:, never_predicted] = 0
        probs /= probs.sum(axis=1, keepdims=True)
    return labels, probs, num_classes


CASES = [
    pytest.param(draw_case(0), id="four classes"),
    pytest.param(draw_case(1, num_classes=2), id="two classes"),
    pytest.param(draw_case(2, num_classes=9, count=40), id="few pictures"),
    pytest.param(draw_case(3, never_predicted=2), id="a class never predicted"),
    pytest.param(draw_case(4, never_predicted=3), id="the last class never predicted"),
]


def matrix_of(case):
    labels, probs, num_classes = case
    return metrics.confusion_matrix(labels, probs.argmax(axis=1), num_classes)


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_is_scikit_learns(case):
    labels, probs, num_classes = case
    wanted = oracle.confusion_matrix(labels, probs.argmax(axis=1), labels=range(num_classes))
    np.testing.assert_array_equal(matrix_of(case), wanted)


@pytest.mark.parametrize("case", CASES)
def test_accuracy_is_scikit_learns(case):
    labels, probs, _ = case
    assert metrics.top1_accuracy(matrix_of(case)) == pytest.approx(oracle.accuracy_score(labels, probs.argmax(axis=1)), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_balanced_accuracy_is_scikit_learns(case):
    labels, probs, _ = case
    wanted = oracle.balanced_accuracy_score(labels, probs.argmax(axis=1))
    assert metrics.balanced_accuracy(matrix_of(case)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("formula", "column"), [(metrics.precision_per_class, 0), (metrics.recall_per_class, 1), (metrics.f1_per_class, 2)]
)
def test_a_figure_of_each_class_is_scikit_learns(case, formula, column):
    labels, probs, num_classes = case
    wanted = oracle.precision_recall_fscore_support(labels, probs.argmax(axis=1), labels=range(num_classes), zero_division=np.nan)
    np.testing.assert_allclose(formula(matrix_of(case)), wanted[column], atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_log_loss_is_scikit_learns(case):
    labels, probs, num_classes = case
    wanted = oracle.log_loss(labels, probs, labels=range(num_classes))
    assert metrics.log_losses(labels, probs).mean() == pytest.approx(wanted, rel=1e-6)


def test_rows_of_the_matrix_are_the_truth():
    np.testing.assert_array_equal(metrics.confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), 2), [[0, 2], [0, 1]])


def test_a_log_loss_is_bounded_where_the_true_class_got_nothing():
    found = metrics.log_losses(np.array([1]), np.array([[1, 0]], dtype=np.float32))
    assert found == pytest.approx([23 * np.log(2)])  # float32's epsilon is 2 to the power of -23


def test_a_sure_right_answer_loses_nothing():
    assert metrics.log_losses(np.array([0]), np.array([[1, 0]], dtype=np.float32)).tolist() == [0.0]


@pytest.mark.parametrize("formula", [metrics.precision_per_class, metrics.recall_per_class, metrics.f1_per_class])
def test_a_class_that_is_neither_there_nor_answered_has_no_figure(formula):
    np.testing.assert_array_equal(np.isnan(formula(np.array([[3, 0], [0, 0]]))), [False, True])


def test_balanced_accuracy_leaves_out_a_class_without_pictures():
    assert metrics.balanced_accuracy(np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])) == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize("case", CASES)
def test_macro_f1_is_scikit_learns(case):
    labels, probs, num_classes = case
    wanted = oracle.f1_score(labels, probs.argmax(axis=1), labels=range(num_classes), average="macro", zero_division=np.nan)
    assert metrics.macro_f1(matrix_of(case)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_brier_score_is_scikit_learns(case):
    labels, probs, num_classes = case
    wanted = sum(oracle.brier_score_loss(labels == index, probs[:, index].astype(float)) for index in range(num_classes))
    assert metrics.brier_scores(labels, probs).mean() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_class_among_the_first_is_scikit_learns_top_k(k):
    labels, probs, num_classes = draw_case(5, num_classes=6)
    wanted = oracle.top_k_accuracy_score(labels, probs, k=k, labels=range(num_classes))
    assert metrics.among_the_first(labels, probs, k).mean() == pytest.approx(wanted)


def test_of_equal_probabilities_the_first_class_comes_first():
    probs = np.full((3, 3), 1 / 3, np.float32)
    assert metrics.among_the_first(np.array([0, 1, 2]), probs, 2).tolist() == [True, True, False]
