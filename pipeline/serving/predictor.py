"""The one way to run a stored model: ONNX Runtime in fp32, from bytes of a picture to probabilities. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.core.errors import PipelineError
from pipeline.networks.onnx_file import open_session, read_facts
from pipeline.pictures.images import Preprocessing, read_square

Array = np.ndarray[Any, np.dtype[Any]]
_BATCH = 32  # pictures that lie in memory at once


@dataclass(frozen=True)
class Predictor:
    """A `model.onnx`: its session, and what it says of itself."""

    session: onnxruntime.InferenceSession
    facts: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path, threads: int) -> "Predictor":
        """Open a stored model on the CPU with that many threads."""
        session = open_session(path, threads)
        return cls(session, read_facts(session))

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""
        return list(self.facts["class_names"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture is prepared."""
        return Preprocessing(**self.facts["preprocessing"])

    def read(self, source: bytes | Path) -> Array:
        """A picture as it is prepared: uint8 (S, S, 3). Raises BrokenPicture."""
        return read_square(source, self.preprocessing)

    def predict(self, sources: Sequence[bytes | Path]) -> Array:
        """Probabilities of pictures, one or more, given as bytes or paths: float32, (pictures, classes). Raises BrokenPicture."""
        batches = (sources[start : start + _BATCH] for start in range(0, len(sources), _BATCH))
        return np.concatenate([self.predict_pixels(np.stack([self.read(source) for source in batch])) for batch in batches])

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities of prepared pixels, uint8 (pictures, S, S, 3): float32, (pictures, classes)."""
        return np.asarray(self.session.run(["probs"], {"pixels": pixels})[0])

    def feature_maps(self, pixels: Array) -> Array | None:
        """The last feature maps, float32 (pictures, C, h, w); None where the head is not linear on their pooling."""
        if len(self.session.get_outputs()) == 1:
            return None
        return np.asarray(self.session.run(["feature_map"], {"pixels": pixels})[0])


def open_model(folder: Path, threads: int) -> "Predictor":
    """Open a stored model. Raises PipelineError where the file is none of ours."""
    from pipeline.networks.onnx_file import ORT_FAULTS

    try:
        return Predictor.load(folder / "model.onnx", threads)
    except (*ORT_FAULTS, KeyError):
        raise PipelineError(f"{folder}/model.onnx: is no model of this pipeline, or damaged; run `dvc checkout`") from None
