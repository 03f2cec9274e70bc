"""Which new pictures to show and to label: how far each is from the test pictures, and those that teach most."""

from pathlib import Path

import numpy as np

from pipeline.core.files import csv_line, row_stream, table_rows
from pipeline.drift.incoming import Incoming
from pipeline.drift.reference import Reference, Sample
from pipeline.evaluation.intervals import Array

COLUMNS = ("path", "label", "split", "predicted", "probability", "distance", "unfamiliarity", "reason")
_NEIGHBOURS = 5
_USUAL = 0.95  # of the reference: at that quantile of its distances the distance is 1
_BLOCK = 8_000_000  # numbers of a block of distances
_CANDIDATES = 20  # per picture to choose, the highest scores; the others are not compared with one another
_FAR, _UNSURE = 1.0, 0.75  # a distance above, a probability below: what the reason says


def distances(reference: Sample, sample: Sample) -> Array:
    """How far each new picture is from the test pictures: float (N,). 1: as far as only one test picture in twenty is from the others.

    The mean distance to the five nearest ones, of features of length 1 (Sun et al., 2022).
    """
    old, new = _unit(reference.features), _unit(sample.features)
    count = min(_NEIGHBOURS, len(old) - 1)
    usual = np.quantile(_mean_distances(old, old, count, is_same=True), _USUAL) if count else 0.0
    return np.asarray(_mean_distances(new, old, max(count, 1), is_same=False) / max(float(usual), 1e-6))


def _unit(features: Array) -> Array:
    rows = features.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _mean_distances(some: Array, others: Array, count: int, is_same: bool) -> Array:
    """The mean distance of each row to the `count` nearest of the others. `is_same`: both are the same rows, and none is its own one."""
    size = max(1, _BLOCK // len(others))
    found = []
    for start in range(0, len(some), size):
        squares = np.maximum(2 - 2 * some[start : start + size] @ others.T, 0)
        if is_same:
            squares[np.arange(len(squares)), start + np.arange(len(squares))] = np.inf
        found.append(np.sqrt(np.partition(squares, count - 1, axis=1)[:, :count]).mean(axis=1))
    return np.concatenate(found)


def scores(far: Array, confidence: Array, num_classes: int) -> Array:
    """Far times unsure: float (N,), 0 to 1.

    `far`: of `distances`; beyond twice the usual one nothing more is gained. Unsure: 1 if all classes are as probable, 0 if one is certain.
    """
    unsure = (1 - confidence) / max(1 - 1 / num_classes, 1e-12)
    return np.asarray((0.05 + np.minimum(far / 2, 1)) * (0.05 + np.clip(unsure, 0, 1)) / 1.05**2)


def choose_next(sample: Sample, score: Array, count: int) -> list[int]:
    """The rows of at most `count` pictures to label, the most useful first: high scores that are unlike one another.

    Greedy: each time the highest product of the score and the distance to the nearest that is chosen (farthest-first). Of equal products
    the first row wins. Pictures with equal features are chosen once.
    """
    pool = np.argsort(-score, kind="stable")[: _CANDIDATES * count]
    rows, weights = _unit(sample.features[pool]), score[pool]
    nearest = np.ones(len(pool), np.float32)
    chosen: list[int] = []
    while len(chosen) < min(count, len(pool)):
        gains = weights * nearest
        best = int(gains.argmax())
        if gains[best] <= 1e-4 * weights[best]:  # only copies are left
            break
        chosen.append(int(pool[best]))
        gaps = np.sqrt(np.maximum(2 - 2 * rows @ rows[best], 0))
        gaps[best] = 0
        nearest = np.minimum(nearest, gaps)
    return chosen


def reason(far: float, confidence: float) -> str:
    """Why a picture was chosen, in a few words."""
    words = [f"{far:.1f} times as far as usual"] * (far > _FAR) + ["unsure"] * (confidence < _UNSURE)
    return " and ".join(words) or "unlike the others"


def label_rows(reference: Reference, incoming: Incoming, far: Array, count: int) -> list[dict[str, object]]:
    """The rows of label_next.csv, at most `count`. Pictures that a log did not keep cannot be labelled. `far`: of `distances`."""
    kept = np.array([row for row, path in enumerate(incoming.paths) if path is not None], int)
    if not len(kept) or not count:
        return []
    sample = incoming.sample.take(kept)
    score = scores(far[kept], sample.confidence, len(reference.class_names))
    return [
        {
            **{"path": incoming.paths[kept[row]], "label": "", "split": "train"},
            "predicted": reference.class_names[int(sample.predicted[row])],
            "probability": f"{sample.confidence[row]:.4f}",
            "distance": f"{far[kept[row]]:.3f}",
            "unfamiliarity": "" if sample.unfamiliarity is None else f"{sample.unfamiliarity[row]:.3f}",
            "reason": reason(float(far[kept[row]]), float(sample.confidence[row])),
        }
        for row in choose_next(sample, score, count)
    ]


def is_filled(path: Path) -> bool:
    """Whether somebody filled in labels in a label_next.csv, or saved it in another form."""
    if not path.is_file():
        return False
    try:
        return any(tuple(row) != COLUMNS or row["label"].strip() for row in table_rows(path))
    except (ValueError, AttributeError):  # another encoding, or a short row
        return True


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write label_next.csv. Raises PipelineError if it cannot be written."""
    with row_stream(path) as stream:
        stream.write(csv_line(COLUMNS, {name: name for name in COLUMNS}))
        stream.writelines(csv_line(COLUMNS, row) for row in rows)
