"""A linear head on frozen features: multinomial logistic regression, its L2 penalty chosen on val."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from scipy.special import log_softmax, softmax

from pipeline.core.files import read_table
from pipeline.core.sections import Section
from pipeline.pictures.manifest import Picture
from pipeline.pictures.splits import deal
from pipeline.training.logistic import Array, Axes, fit_logistic, over_blocks, principal_axes
from pipeline.training.temperature import calibrated_losses

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
    axes = principal_axes(examples.features, threads)
    train, val = (Examples(examples.features[part], examples.labels[part]) for part in (slice(count), slice(count, None)))
    head, history = choose_head(train, val, val_halves, l2_grid, axes, threads)
    l2 = min(history, key=lambda row: row["val_loss"])["l2"]
    return head, history, out_of_fold_probs(examples, folds, l2, axes, threads)


def choose_head(
    train: Examples, val: Examples, val_halves: Array, l2_grid: Sequence[float], axes: Axes, threads: int
) -> tuple[Head, History]:
    """Fit a head per penalty. Returns the head with the lowest val loss, the first of equal ones, and the metrics of each.

    The val loss is that after temperature scaling, see `calibrated_losses`, as `val_halves` are. `axes`: see `fit_logistic`.
    """
    all_rows = np.ones((len(l2_grid), len(train.labels)), bool)
    heads = [Head(*fitted) for fitted in fit_logistic(train.features, train.labels, all_rows, l2_grid, axes, threads)]
    scores = np.concatenate([_scores(heads, train, threads), _scores(heads, val, threads)], axis=1).tolist()
    history: History = []
    for step, (l2, head, row) in enumerate(zip(l2_grid, heads, scores, strict=True)):
        train_loss, train_accuracy, unscaled, val_accuracy = row
        val_loss = float(calibrated_losses(head.logits(val.features), val.labels, val_halves).mean())
        history.append({
            "step": step, "l2": l2, "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "val_loss_unscaled": unscaled,
        })  # fmt: skip
    best = min(history, key=lambda row: row["val_loss"])
    return heads[int(best["step"])], history


def out_of_fold_probs(examples: Examples, folds: Array, l2: float, axes: Axes, threads: int) -> Array:
    """Probabilities of each picture by a head that was fitted on all other folds: float64 (pictures, classes).

    `folds`: int (pictures,). A class that is missing in the other folds has probability 0. `axes`: see `fit_logistic`.
    """
    others = folds != np.unique(folds)[:, None]  # (folds, pictures)
    # No fold starts from the head of all pictures: what was learned from a picture would not be quite forgotten.
    heads = [Head(*fitted) for fitted in fit_logistic(examples.features, examples.labels, others, [l2] * len(others), axes, threads)]
    probs = np.zeros((len(folds), examples.labels.max() + 1))

    def predict(part: slice) -> None:
        for head, other in zip(heads, others[:, part], strict=True):
            probs[part][~other] = softmax(head.logits(examples.features[part][~other]).astype(np.float64), axis=1)

    for _ in over_blocks(examples.features, threads, predict):
        pass
    return probs


def losses_of(probs: Array, labels: Array) -> Array:
    """The log loss of each picture in nats, float64 (pictures,), of probabilities as `out_of_fold_probs` returns them."""
    return np.asarray(-np.log(np.maximum(probs[np.arange(len(labels)), labels], _SMALLEST_PROB)))


def _scores(heads: Sequence[Head], examples: Examples, threads: int) -> Array:
    """Of each head, mean cross entropy in nats and accuracy as a fraction: float64 (heads, 2)."""

    def sums(part: slice) -> Array:
        labels, features = examples.labels[part], np.asarray(examples.features[part])
        found = []
        for head in heads:
            logits = head.logits(features).astype(np.float64)
            losses = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
            found.append([losses.sum(), (logits.argmax(axis=1) == labels).sum()])
        return np.array(found)

    return sum(over_blocks(examples.features, threads, sums), np.zeros((len(heads), 2))) / len(examples.labels)


def read_examples(embeddings: Path, pictures: Sequence[Picture], labels: Sequence[int]) -> Examples:
    """The features of these pictures, joined on image_id, with their class numbers.

    The features are a memory map where the pictures are in the order of the file, and a copy otherwise.
    """
    features = np.load(embeddings / "features.npy", mmap_mode="r")
    numbers = {row["image_id"]: number for number, row in enumerate(read_table(embeddings / "image_ids.csv"))}
    rows = np.array([numbers[picture.image_id] for picture in pictures], np.int64)
    in_order = len(rows) > 0 and bool((np.diff(rows) == 1).all())
    return Examples(features[rows[0] : rows[-1] + 1] if in_order else features[rows], np.array(labels))


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
