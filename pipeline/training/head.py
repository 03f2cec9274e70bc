"""A linear head on frozen features: multinomial logistic regression, its L2 penalty chosen on val."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from scipy.special import log_softmax, softmax

from pipeline.core.files import read_table
from pipeline.core.params import Section
from pipeline.pictures.manifest import Picture
from pipeline.pictures.splits import deal
from pipeline.training.temperature import calibrated_losses

Array = np.ndarray[Any, np.dtype[Any]]
History = list[dict[str, float]]
_FOLDS = 5
_SMALLEST_PROB = 1e-6  # smaller ones count as this: a head cannot predict a class that its folds lack


class HeadParams(Section):
    """Section `train_baseline` of params.yaml."""

    seed: NonNegativeInt  # of the folds
    threads: PositiveInt
    l2_grid: Annotated[list[PositiveFloat], Field(min_length=1)]  # tried in order; the lowest val loss wins


@dataclass(frozen=True)
class Examples:
    """Features, float (pictures, D), and class numbers, int (pictures,)."""

    features: Array
    labels: Array


@dataclass(frozen=True)
class Head:
    """Logits are `features @ weight.T + bias`. weight: float32 (classes, D); bias: float32 (classes,)."""

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """float32 (pictures, classes)."""
        return np.asarray(features @ self.weight.T + self.bias)


def fit_baseline(
    examples: Examples, count: int, folds: Array, val_halves: Array, l2_grid: Sequence[float], threads: int
) -> tuple[Head, History, Array]:
    """The head and the history of `choose_head`, and `out_of_fold_probs` of all examples with its penalty. `count`: of train, then val."""
    train, val = (Examples(examples.features[part], examples.labels[part]) for part in (slice(count), slice(count, None)))
    head, history = choose_head(train, val, val_halves, l2_grid, threads)
    l2 = min(history, key=lambda row: row["val_loss"])["l2"]
    return head, history, out_of_fold_probs(examples, folds, l2, threads)


def choose_head(train: Examples, val: Examples, val_halves: Array, l2_grid: Sequence[float], threads: int) -> tuple[Head, History]:
    """Fit a head per penalty. Returns the head with the lowest val loss, the first of equal ones, and the metrics of each.

    The val loss is that after temperature scaling, see `calibrated_losses`, as `val_halves` are.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        heads = [fit_head(train, l2) for l2 in l2_grid]
    history: History = []
    for step, (l2, head) in enumerate(zip(l2_grid, heads, strict=True)):
        (train_loss, train_accuracy), (unscaled, val_accuracy) = _scores(head, train), _scores(head, val)
        val_loss = float(calibrated_losses(head.logits(val.features), val.labels, val_halves).mean())
        history.append({
            "step": step, "l2": l2, "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "val_loss_unscaled": unscaled,
        })  # fmt: skip
    best = min(history, key=lambda row: row["val_loss"])
    return heads[int(best["step"])], history


def fit_head(examples: Examples, l2: float) -> Head:
    """Minimise the mean cross entropy + l2/2 · |weight|² by L-BFGS, on features that are centred, and scaled by one factor."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = examples.features.mean(axis=0), examples.features.std()
    # For two classes scikit-learn fits the difference of their logits, whose weight has twice the squared norm of the two weights.
    factor = 2 if len(np.unique(examples.labels)) == 2 else 1
    model = LogisticRegression(C=factor / (l2 * len(examples.labels)), max_iter=2000, tol=1e-4)
    model.fit((examples.features - mean) / deviation, examples.labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    # safetensors writes the memory of an array in its order, and scikit-learn's is column by column.
    return Head(np.ascontiguousarray(weight, np.float32), np.asarray(bias - weight @ mean, np.float32))


def out_of_fold_probs(examples: Examples, folds: Array, l2: float, threads: int) -> Array:
    """Probabilities of each picture by a head that was fitted on all other folds: float64 (pictures, classes).

    `folds`: int (pictures,). A class that is missing in the other folds has probability 0.
    """
    from threadpoolctl import threadpool_limits

    probs = np.zeros((len(folds), examples.labels.max() + 1))
    with threadpool_limits(threads):
        for fold in np.unique(folds):
            others = folds != fold
            present, labels = np.unique(examples.labels[others], return_inverse=True)
            if len(present) == 1:
                probs[~others, present[0]] = 1
                continue
            head = fit_head(Examples(examples.features[others], labels), l2)
            probs[np.ix_(~others, present)] = softmax(head.logits(examples.features[~others]).astype(np.float64), axis=1)
    return probs


def losses_of(probs: Array, labels: Array) -> Array:
    """The log loss of each picture in nats, float64 (pictures,), of probabilities as `out_of_fold_probs` returns them."""
    return np.asarray(-np.log(np.maximum(probs[np.arange(len(labels)), labels], _SMALLEST_PROB)))


def _scores(head: Head, examples: Examples) -> tuple[float, float]:
    """Mean cross entropy in nats, and accuracy as a fraction."""
    logits = head.logits(examples.features).astype(np.float64)
    loss = -log_softmax(logits, axis=1)[np.arange(len(logits)), examples.labels].mean()
    return float(loss), float((logits.argmax(axis=1) == examples.labels).mean())


def read_examples(embeddings: Path, pictures: Sequence[Picture], labels: Sequence[int]) -> Examples:
    """The features of these pictures, joined on image_id, with their class numbers."""
    features = np.load(embeddings / "features.npy")
    rows = {row["image_id"]: number for number, row in enumerate(read_table(embeddings / "image_ids.csv"))}
    return Examples(features[[rows[picture.image_id] for picture in pictures]], np.array(labels))


def deal_folds(pictures: list[Picture], seed: int) -> Array:
    """The fold of each picture, int (pictures,). Groups stay whole.

    There are five folds, or as many as the rarest class has groups, but at least two.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        groups[picture.label].add(picture.group)
    count = max(2, min(_FOLDS, *map(len, groups.values())))
    labels, group_of = ({picture.image_id: getattr(picture, field) for picture in pictures} for field in ("label", "group"))
    folds = deal(labels, group_of, {str(fold): 1 / count for fold in range(count)}, seed)
    return np.array([int(folds[picture.image_id]) for picture in pictures])
