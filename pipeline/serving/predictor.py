"""The one way to run a stored model: ONNX Runtime in fp32, from the bytes of a picture to probabilities. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.networks.onnx_file import ORT_FAULTS, open_session, read_facts, run_in_parts
from pipeline.pictures.images import Array, Preprocessing, read_square

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Outputs:
    """What a model computes for N pictures, float32. None: the model does not have this output.

    `probs` (N, classes); `unfamiliarity` (N,): a picture above 1 is unfamiliar, see `pipeline.networks.unfamiliar`; `features` (N, D);
    `feature_map` (N, C, h, w): the last one, if the head is linear in its average.
    """

    probs: Array
    unfamiliarity: Array | None = None
    features: Array | None = None
    feature_map: Array | None = None


@dataclass(frozen=True)
class Predictor:
    """An open `model.onnx`: its session, the facts in its metadata, and how many threads run it."""

    session: "InferenceSession"
    facts: Mapping[str, Any]
    threads: int

    @classmethod
    def load(cls, path: Path, threads: int, on_gpu: bool = False) -> "Predictor":
        """Open a model file, see `open_session`."""
        session = open_session(path, threads, on_gpu)
        return cls(session, read_facts(session), threads)

    @cached_property
    def outputs(self) -> list[str]:
        """The names of what the model computes."""
        return [output.name for output in self.session.get_outputs()]

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""
        return list(self.facts["class_names"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared for the network."""
        return Preprocessing(**self.facts["preprocessing"])

    @property
    def tells_unfamiliar(self) -> bool:
        """Whether the model has the output `unfamiliarity`."""
        return "unfamiliar" in self.facts

    def read(self, source: bytes | Path) -> Array:
        """The prepared pixels of a picture: uint8 (S, S, 3). Raises BrokenPicture."""
        return read_square(source, self.preprocessing)

    def predict(self, sources: Sequence[bytes | Path]) -> Array:
        """Probabilities, float32 (pictures, classes), of one or more pictures, as bytes or paths. Raises BrokenPicture."""
        batches = (sources[start : start + _BATCH_SIZE] for start in range(0, len(sources), _BATCH_SIZE))
        return np.concatenate([self.predict_pixels(np.stack([self.read(source) for source in batch])) for batch in batches])

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pixels, uint8 (pictures, S, S, 3)."""
        return self.run(pixels).probs

    def answer(self, pixels: Array) -> tuple[Array, Array | None]:
        """Probabilities, float32 (pictures, classes), and unfamiliarity, float32 (pictures,), or None, of prepared pixels."""
        outputs = self.run(pixels, "unfamiliarity")
        return outputs.probs, outputs.unfamiliarity

    def run(self, pixels: Array, *others: str) -> Outputs:
        """The probabilities of prepared pixels, uint8 (pictures, S, S, 3), and those of the named other outputs that the model has."""
        named = ["probs", *(name for name in others if name in self.outputs)]
        return Outputs(**dict(zip(named, run_in_parts(self.session, named, pixels, self.threads), strict=True)))


def open_model(folder: Path, threads: int) -> Predictor:
    """Open the model of a model folder. Raises PipelineError if the file is damaged or is not a model of this pipeline."""
    try:
        return Predictor.load(folder / "model.onnx", threads)
    except (*ORT_FAULTS, KeyError):
        raise PipelineError(f"{folder}/model.onnx: is damaged or not a model of this pipeline; run `dvc checkout`") from None
