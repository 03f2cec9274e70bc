"""The one way to ask a stored model: ONNX Runtime in fp32, from the bytes of a picture to probabilities. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.data.images import Preprocessing, read_square
from pipeline.models.session import METADATA_KEY, open_session

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Predictor:
    """A `model.onnx`: its session, its classes in the order of the probabilities, its way to prepare a picture."""

    session: onnxruntime.InferenceSession
    class_names: list[str]
    preprocessing: Preprocessing

    @classmethod
    def load(cls, path: Path, threads: int) -> "Predictor":
        """Open a stored model on the CPU with that many threads."""
        session = open_session(path, threads)
        facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        return cls(session, facts["class_names"], Preprocessing(**facts["preprocessing"]))

    def predict(self, sources: Sequence[bytes | Path]) -> Array:
        """Probabilities of pictures, given as bytes or paths: float32, (pictures, classes). Raises BrokenPicture."""
        return self.predict_pixels(np.stack([read_square(source, self.preprocessing) for source in sources]))

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities of prepared pixels, uint8 (pictures, S, S, 3): float32, (pictures, classes)."""
        (probs,) = self.session.run(None, {"pixels": pixels})
        return np.asarray(probs)
