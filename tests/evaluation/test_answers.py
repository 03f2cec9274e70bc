"""What is kept of each picture's probabilities, worked by hand or from scikit-learn, and the files that contain it."""

import numpy as np
import pytest
import sklearn.metrics as oracle
from scipy.special import softmax

from pipeline.core.files import read_table
from pipeline.evaluation.answers import most_doubted, read_answers, without_temperature, write_predictions, write_probs
from pipeline.pictures.manifest import Picture


def test_a_log_loss_is_bounded_if_the_true_class_has_probability_0():
    found = read_answers(np.array([1]), np.array([[1, 0]], np.float32)).log_losses
    assert found == pytest.approx([23 * np.log(2)])  # float32's epsilon is 2 to the power of -23


def test_a_certain_and_correct_answer_has_no_loss():
    found = read_answers(np.array([0]), np.array([[1, 0]], np.float32))
    assert (found.log_losses.tolist(), found.brier_scores.tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_ranks_of_the_true_classes_give_scikit_learns_top_k_accuracy(k):
    generator = np.random.default_rng(5)
    labels, probs = generator.integers(0, 6, 60), generator.dirichlet(np.ones(6), 60)
    wanted = oracle.top_k_accuracy_score(labels, probs, k=k, labels=range(6))
    assert (read_answers(labels, probs).ranks < k).mean() == pytest.approx(wanted)


def test_among_equal_probabilities_the_first_class_wins():
    found = read_answers(np.array([0, 1, 2]), np.full((3, 3), 1 / 3, np.float32))
    assert (found.ranks.tolist(), found.predicted.tolist()) == ([0, 1, 2], [0, 0, 0])


def test_the_temperature_is_removed():
    logits = np.random.default_rng(0).normal(0, 3, (20, 4))
    probs = softmax(logits / 0.6, axis=1).astype(np.float32)
    np.testing.assert_allclose(without_temperature(probs, 0.6), softmax(logits, axis=1), atol=1e-6)


def test_a_probability_of_0_stays_finite():
    found = without_temperature(np.array([[1, 0]], np.float32), 0.5)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)


def test_probabilities_written_in_batches_are_one_array_that_numpy_reads(tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 10).astype(np.float32)
    mapped = write_probs(tmp_path / "predictions.npy", (probs[start : start + 4] for start in range(0, 10, 4)), probs.shape)
    for found in (mapped, np.load(tmp_path / "predictions.npy", allow_pickle=False)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, probs)


def test_predictions_have_a_row_per_picture(tmp_path):
    pictures = [Picture(name, name, "0" * 64, label, "val", name, 8, 8) for name, label in (("bees/1.png", "bees"), ("a,b.png", "ants"))]
    answers = read_answers(np.array([1, 0]), np.array([[0.25, 0.75], [1 / 3, 2 / 3]]))
    write_predictions(tmp_path / "predictions.csv", pictures, answers, ["ants", "bees"])
    assert read_table(tmp_path / "predictions.csv") == [
        {"image_id": name, "group": name, "label": label, "predicted": "bees", "probability": prob, "label_probability": label_prob}
        for name, label, prob, label_prob in (("bees/1.png", "bees", "0.750000", "0.750000"), ("a,b.png", "ants", "0.666667", "0.333333"))
    ]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_least_probable_labels_are_doubted_most(count):
    rows = [
        {"image_id": name, "label": label, "predicted": predicted, "label_probability": prob}
        for name, label, predicted, prob in (
            ("correct", "ants", "ants", "0.9"),
            ("nearly correct", "ants", "bees", "0.4"),
            ("wrong", "bees", "ants", "0.01"),
            ("also wrong", "bees", "ants", "0.01"),
        )
    ]
    assert [row["image_id"] for row in most_doubted(rows, count)] == ["also wrong", "wrong", "nearly correct"][:count]
