"""What a model answered as the table that MLflow's evaluation view lays beside those of other runs."""

import json
from pathlib import Path

from pipeline.files import read_table

FILE = "predictions_table.json"
TAG = json.dumps([{"path": FILE, "type": "table"}])  # of `mlflow.loggedArtifacts`, by which the view finds it

_COLUMNS = ("image_id", "predicted", "label", "probability", "right")  # the view groups by the first and compares the second


def write_evaluation_table(path: Path, predictions: Path) -> None:
    """Write a row a picture, with the probability of the answer alone: a hundred classes would be a hundred columns.

    The form is that of MLflow's `log_table` (pandas, orient «split»), which appends where a file is there; this replaces it.
    """
    rows = read_table(predictions)
    data = [
        [row["image_id"], row["predicted"], row["label"], float(row[f"prob_{row['predicted']}"]), row["predicted"] == row["label"]]
        for row in rows
    ]
    path.write_text(json.dumps({"columns": _COLUMNS, "data": data}), encoding="utf-8")
