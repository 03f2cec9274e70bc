"""MLflow's pyfunc of a stored model: a column of picture bytes in, classes and probabilities out.

MLflow runs this file as a script when it logs and loads the model, in place of a pickle.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.pictures.images import Array, BrokenPicture
from pipeline.serving.predictor import Predictor

_COLUMNS = ("predicted", "probability", "probabilities", "unfamiliar", "fault")
_BATCH_SIZE = 32


class PictureModel(PythonModel):
    """Predicts for a data frame with the column `picture` (the bytes of a file): one row per picture.

    Only bytes are a picture: a text, as a request in CSV brings it, is never opened as a path.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Open the logged model file."""
        self.predictor = Predictor.load(Path(context.artifacts["model"]), os.cpu_count() or 1)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The columns `predicted` (a class), `probability` (of that class), `probabilities` (of all classes, in their order),
        `unfamiliar` (whether the picture is unlike those that the model learned from; None if the model does not tell) and `fault`.

        A picture that cannot be read has a fault and nothing else; the others have no fault.
        """
        cells = list(model_input["picture"])
        batches = [cells[start : start + _BATCH_SIZE] for start in range(0, len(cells), _BATCH_SIZE)]
        rows = [row for batch in batches for row in self._answer([self._read(cell) for cell in batch])]
        return pd.DataFrame(rows, columns=list(_COLUMNS), dtype=object)

    def _read(self, cell: object) -> Array | str:
        """The prepared pixels of a picture, or why there are none."""
        if not isinstance(cell, bytes | bytearray | memoryview):
            return "is not the bytes of a picture"
        try:
            return self.predictor.read(bytes(cell))
        except BrokenPicture as error:
            return str(error)

    def _answer(self, items: Sequence[Array | str]) -> list[tuple[Any, ...]]:
        """A row per item."""
        pixels = [item for item in items if not isinstance(item, str)]
        rows = iter(self._rows(np.stack(pixels)) if pixels else ())
        return [(None, None, None, None, item) if isinstance(item, str) else next(rows) for item in items]

    def _rows(self, pixels: Array) -> list[tuple[Any, ...]]:
        names, (probs, unfamiliarity) = self.predictor.class_names, self.predictor.answer(pixels)
        unfamiliar = [None] * len(pixels) if unfamiliarity is None else (unfamiliarity > 1).tolist()
        return [
            (names[int(row.argmax())], float(row.max()), row.astype(float).tolist(), is_unfamiliar, None)
            for row, is_unfamiliar in zip(probs, unfamiliar, strict=True)
        ]


set_model(PictureModel())
