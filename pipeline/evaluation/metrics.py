"""What a classifier scored, from the true classes and the probabilities that it gave."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def confusion_matrix(labels: Array, predicted: Array, num_classes: int) -> Array:
    """How often each class (rows: the truth) was answered by each (columns): int, (classes, classes)."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def top1_accuracy(matrix: Array) -> float:
    """The share of right answers, 0 to 1."""
    return float(np.trace(matrix) / matrix.sum())


def recalls(matrix: Array) -> Array:
    """A class: the share of its pictures that were recognised; NaN where it has none. float, (classes,)."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def precisions(matrix: Array) -> Array:
    """A class: the share of its answers that were right; NaN where it was never answered. float, (classes,)."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def f1_scores(matrix: Array) -> Array:
    """A class: the harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn). float, (…, classes) of a stack of matrices."""
    return _ratio(2 * np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-2) + matrix.sum(axis=-1))


def balanced_accuracy(matrix: Array) -> float:
    """The mean recall of the classes that are there, 0 to 1."""
    return float(np.nanmean(recalls(matrix)))


def macro_f1(matrix: Array) -> Array:
    """The mean F1 of the classes that are there or were answered, 0 to 1: one, or one for each of a stack of matrices."""
    return np.asarray(np.nanmean(f1_scores(matrix), axis=-1))


def log_losses(labels: Array, probs: Array) -> Array:
    """A picture: -log of the probability of its true class, in nats, the probability bounded below by float32's epsilon."""
    true_probs = probs[np.arange(len(labels)), labels].astype(float)
    return np.asarray(-np.log(np.clip(true_probs, np.finfo(np.float32).eps, 1)))


def brier_scores(labels: Array, probs: Array) -> Array:
    """A picture: the squared distance of its probabilities from the truth, summed over the classes (Brier, 1950): 0 to 2."""
    truth = np.arange(probs.shape[1]) == labels[:, None]
    return np.asarray(((probs.astype(float) - truth) ** 2).sum(axis=1))


def among_the_first(labels: Array, probs: Array, k: int) -> Array:
    """A picture: whether its class is among the k most probable ones; of equal probabilities the first class comes first. bool."""
    true_probs = probs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    return np.asarray(((probs > true_probs) | ((probs == true_probs) & earlier)).sum(axis=1) < k)


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(above / np.where(below == 0, np.nan, below))
