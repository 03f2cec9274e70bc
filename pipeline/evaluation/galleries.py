"""Which test pictures are worth a look, and how they are shown: each with its answer and where the model looked."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation.sheet import Cell, draw_sheet, thumbnail
from pipeline.files import write_json

Array = np.ndarray[Any, np.dtype[Any]]

SHOWN = 12
TITLES = {
    "mistakes": "Surest mistakes",
    "least_sure": "Least sure answers",
    "mislabelled": "Likely mislabelled",
    "random": "A random draw of test pictures",
}


def choose(labels: Array, probs: Array, seed: int) -> dict[str, Array]:
    """The numbers of the pictures of each gallery, at most twelve, int (pictures,)."""
    predicted, sure = probs.argmax(axis=1), probs.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    drawn = np.random.default_rng(seed).permutation(len(labels))[:SHOWN]
    chosen = {
        "mistakes": wrong[np.argsort(-sure[wrong], kind="stable")],
        "least_sure": np.argsort(sure, kind="stable"),
        "mislabelled": likely_mislabelled(labels, probs),
        "random": np.sort(drawn),
    }
    return {kind: numbers[:SHOWN] for kind, numbers in chosen.items()}


def likely_mislabelled(labels: Array, probs: Array) -> Array:
    """Pictures that confident learning (Northcutt et al., 2021) suspects, the least likely labels first.

    Another class is answered with at least the mean probability that the pictures labelled so get for it.
    """
    predicted, rows = probs.argmax(axis=1), np.arange(len(labels))
    present = np.unique(labels)
    usual = np.full(probs.shape[1], np.inf)
    usual[present] = [probs[labels == index, index].mean() for index in present]
    suspects = np.flatnonzero((predicted != labels) & (probs[rows, predicted] >= usual[predicted]))
    return suspects[np.argsort(probs[suspects, labels[suspects]], kind="stable")]


def write_galleries(
    folder: Path,
    chosen: Mapping[str, Array],
    rows: Sequence[Mapping[str, str]],
    paths: Sequence[Path],
    overlays: Mapping[int, Image.Image],
) -> None:
    """Write a PNG sheet a gallery, and `galleries.json` with its pictures as data URLs for the report.

    `rows`: those of predictions.csv; `overlays`: for the number of a picture, its map laid over it, where there is one.
    """
    numbers = sorted({int(number) for each in chosen.values() for number in each})
    thumbnails = {number: thumbnail(paths[number]) for number in numbers}
    for kind, title in TITLES.items():
        cells = [cell for number in chosen[kind] for cell in _cells(rows[number], thumbnails[int(number)], overlays.get(int(number)))]
        draw_sheet(folder / f"gallery_{kind}.png", cells, f"{title}: {len(chosen[kind])} of {len(rows)} test pictures")
    pictures = {
        rows[number]["image_id"]: {
            "picture": data_url(thumbnails[number]),
            "map": data_url(overlays[number]) if number in overlays else None,
        }
        for number in numbers
    }
    galleries = {kind: [_told(rows[number]) for number in each] for kind, each in chosen.items()}
    write_json(folder / "galleries.json", {"pictures": pictures, "galleries": galleries})


def data_url(image: Image.Image) -> str:
    """A picture as the data URL of a JPEG."""
    with io.BytesIO() as file:
        image.convert("RGB").save(file, "JPEG", quality=82)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _told(row: Mapping[str, str]) -> dict[str, Any]:
    """What is said of a picture: its label, the answer, the probabilities of both."""
    label, predicted = row["label"], row["predicted"]
    return {
        "image_id": row["image_id"],
        "label": label,
        "predicted": predicted,
        "label_probability": float(row[f"prob_{label}"]),
        "probability": float(row[f"prob_{predicted}"]),
    }


def _cells(row: Mapping[str, str], thumbnail: Image.Image, overlay: Image.Image | None) -> list[Cell]:
    told = _told(row)
    words = f"{told['predicted']} ({told['probability']:.2f})"
    if told["predicted"] == told["label"]:
        cells = [Cell(thumbnail, row["image_id"], words, "answered")]
    else:
        cells = [Cell(thumbnail, row["image_id"], f"{words}, is {told['label']} ({told['label_probability']:.2f})", "wrong")]
    return cells if overlay is None else [*cells, Cell(overlay, "", "where it looked", "answered")]
