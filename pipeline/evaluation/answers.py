"""The answers of a model: its probabilities in predictions.npy, what the figures need of them, and predictions.csv."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.core.files import write_table
from pipeline.evaluation.intervals import Array
from pipeline.pictures.manifest import Picture

_BLOCK = 4_000_000  # probabilities that are worked on at once
_LEAST_PROB = np.finfo(np.float32).eps
MOST_LOSS = float(-np.log(_LEAST_PROB))


@dataclass(frozen=True)
class Answers:
    """A few numbers per picture, from which every figure but the areas under curves follows. Each field: (pictures,)."""

    labels: Array  # int, the true classes
    predicted: Array  # int, the most probable classes
    top_probs: Array  # float64, the probabilities of the predicted classes
    true_probs: Array  # float64, the probabilities of the true classes
    ranks: Array  # int, how many classes are more probable than the true one; among equal probabilities the first class wins
    brier_scores: Array  # float64, the squared distance between probabilities and one-hot label (Brier, 1950): 0 to 2

    @property
    def correct(self) -> Array:
        """Whether the predicted class is the true one: bool (pictures,)."""
        return np.asarray(self.predicted == self.labels)

    @property
    def log_losses(self) -> Array:
        """-log of the probability of the true class, in nats: float64 (pictures,). Probabilities below float32's epsilon count as it."""
        return np.asarray(-np.log(np.clip(self.true_probs, _LEAST_PROB, 1)))


def read_answers(labels: Array, probs: Array, temperature: float | None = None) -> Answers:
    """Reduce probabilities, float (pictures, classes), to answers, block by block. `labels`: int (pictures,).

    `temperature`: a scaling that is undone first.
    """
    size = max(1, _BLOCK // probs.shape[1])
    parts = []
    for start in range(0, len(labels), size):
        block = probs[start : start + size]
        parts.append(_reduce(labels[start : start + size], block if temperature is None else without_temperature(block, temperature)))
    return Answers(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Answers)))


def _reduce(labels: Array, probs: Array) -> Answers:
    true_probs = probs[np.arange(len(labels)), labels]
    classes = np.arange(probs.shape[1])
    ahead = (probs > true_probs[:, None]) | ((probs == true_probs[:, None]) & (classes < labels[:, None]))
    distances = ((probs.astype(float) - (classes == labels[:, None])) ** 2).sum(axis=1)
    return Answers(labels, probs.argmax(axis=1), probs.max(axis=1).astype(float), true_probs.astype(float), ahead.sum(axis=1), distances)


def without_temperature(probs: Array, temperature: float) -> Array:
    """Probabilities before temperature scaling: softmax(logits), from softmax(logits / temperature). float64 (pictures, classes)."""
    logits = temperature * np.log(np.maximum(probs.astype(float), np.finfo(np.float32).tiny))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def write_probs(path: Path, batches: Iterable[Array], shape: tuple[int, int]) -> Array:
    """Write probabilities, float32 (pictures, classes), batch by batch, as .npy. Returns the file as an array that is read on demand."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for batch in batches:
            file.write(batch.astype("<f4").tobytes())
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def prediction_row(
    picture: Picture, answers: Answers, number: int, class_names: Sequence[str], unfamiliarity: Array | None = None
) -> dict[str, str]:
    """The row of predictions.csv with that number: the predicted class and the true one, and their probabilities to six decimal places.

    `unfamiliarity`: float (pictures,), a column more.
    """
    row = {
        "image_id": picture.image_id,
        "group": picture.group,
        "label": picture.label,
        "predicted": class_names[int(answers.predicted[number])],
        "probability": f"{answers.top_probs[number]:.6f}",
        "label_probability": f"{answers.true_probs[number]:.6f}",
    }
    return row if unfamiliarity is None else {**row, "unfamiliarity": f"{unfamiliarity[number]:.6f}"}


def write_predictions(
    path: Path, pictures: Sequence[Picture], answers: Answers, class_names: Sequence[str], unfamiliarity: Array | None = None
) -> None:
    """Write predictions.csv, a row per picture; of one picture or more."""
    rows = (prediction_row(picture, answers, number, class_names, unfamiliarity) for number, picture in enumerate(pictures))
    first = next(rows)
    write_table(path, list(first), chain([first], rows))


def most_doubted(predictions: Iterable[Mapping[str, str]], count: int) -> list[Mapping[str, str]]:
    """At most `count` rows of predictions.csv whose predicted class is not the label, the least probable labels first."""
    wrong = [row for row in predictions if row["predicted"] != row["label"]]
    return sorted(wrong, key=lambda row: (float(row["label_probability"]), row["image_id"]))[:count]
