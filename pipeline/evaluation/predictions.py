"""The table of what a model answers, a row a picture; and which labels it speaks against."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.manifest import Picture
from pipeline.evaluation.metrics import Array
from pipeline.files import write_table


def write_predictions(path: Path, pictures: Sequence[Picture], probs: Array, class_names: Sequence[str]) -> None:
    """A row a picture: its class, the answer, and the probability of every class to six places."""
    rows = [
        {
            "image_id": picture.image_id,
            "label": picture.label,
            "predicted": class_names[int(row.argmax())],
            **{f"prob_{name}": f"{prob:.6f}" for name, prob in zip(class_names, row, strict=True)},
        }
        for picture, row in zip(pictures, probs, strict=True)
    ]
    write_table(path, list(rows[0]), rows)


def most_doubted(predictions: Sequence[Mapping[str, str]], count: int) -> list[Mapping[str, str]]:
    """At most `count` rows whose answer differs from the label, those of the least probable labels first."""
    wrong = [row for row in predictions if row["predicted"] != row["label"]]
    return sorted(wrong, key=lambda row: (float(row[f"prob_{row['label']}"]), row["image_id"]))[:count]
