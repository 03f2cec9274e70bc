"""MLflow's pyfunc of a stored model: a column of picture bytes in, classes and probabilities out.

MLflow runs this file as a script when it logs and loads the model, in place of a pickle.
"""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.serving.predictor import Predictor


class PictureModel(PythonModel):
    """Predicts for a data frame with the column `picture` (the bytes of a file): one row per picture."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the logged model file."""
        self.predictor = Predictor.load(Path(context.artifacts["model"]), os.cpu_count() or 1)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The columns `predicted` (a class), `probability` (of that class) and `probabilities` (of all classes, in their order)."""
        probs = self.predictor.predict(list(model_input["picture"]))
        best = probs.argmax(axis=1)
        return pd.DataFrame(
            {
                "predicted": [self.predictor.class_names[index] for index in best],
                "probability": probs.max(axis=1).astype(float),
                "probabilities": probs.astype(float).tolist(),
            }
        )


set_model(PictureModel())
