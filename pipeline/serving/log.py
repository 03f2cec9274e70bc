"""The log of predictions: what a server answered, one JSON line per picture, in files that are rotated."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.pictures.images import Array

LOG_FILES = "*.jsonl"


@dataclass(frozen=True)
class Record:
    """One prediction.

    `time`: in UTC, as 2026-11-27T03:00:00.123Z; `request_id`: of the request that brought the picture; `sha256`: of the picture's bytes;
    `model_sha256`: of model.onnx; `probs`: float32 (classes,), in the order of its classes; `unfamiliarity`: above 1 is unfamiliar, None
    if the model does not say; `features`: float16 (D,); `width`, `height`: in pixels; `brightness`, `sharpness`: see
    `inspection.PictureInfo`; `picture`: the path of the kept picture below the log's folder, None if it was not kept.
    """

    time: str
    request_id: str
    sha256: str
    model_sha256: str
    probs: Array
    unfamiliarity: float | None
    features: Array
    width: int
    height: int
    brightness: float
    sharpness: float
    picture: str | None = None


def log_line(record: Record) -> str:
    """A record as a line of JSON, with the features in base64."""
    facts = vars(record) | {
        "probs": [round(float(prob), 6) for prob in record.probs],
        "features": base64.b64encode(record.features.astype("<f2").tobytes()).decode("ascii"),
    }
    return json.dumps(facts, allow_nan=False) + "\n"


def read_log(folder: Path) -> Iterator[Record]:
    """The records of a log, in the order of its files and lines. A last line that a kill cut short is skipped. Raises PipelineError."""
    files = sorted(folder.glob(LOG_FILES))
    if not files:
        raise PipelineError(f"{folder}: contains no log of predictions; name the folder of `pipeline serve --log`")
    for path in files:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # behind the last line break is nothing, or a line that was cut short
            try:
                facts = json.loads(line)
                features = np.frombuffer(base64.b64decode(facts["features"]), "<f2")
                yield Record(**facts | {"probs": np.array(facts["probs"], np.float32), "features": features})
            except (ValueError, TypeError, KeyError):
                raise PipelineError(f"{path}: line {number}: is not a prediction; remove the line") from None
