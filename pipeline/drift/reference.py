"""The reference: what the test pictures look like to a model. `evaluate` writes it, and it is kept with the champion.

New pictures are compared with it, so both are measured by the same functions.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file
from pipeline.evaluation.intervals import Array
from pipeline.networks.onnx_file import spread
from pipeline.pictures.images import decode
from pipeline.pictures.inspection import brightness_and_sharpness
from pipeline.pictures.manifest import Picture
from pipeline.serving.predictor import Outputs, Predictor

REFERENCE = "reference.npz"  # in results/<model>, and in the folder of a champion
MOST = 5000  # pictures of a reference, and new pictures that are tested
_DTYPES = {
    **{"features": "<f2", "probs": "<f4", "labels": "<i4", "groups": "<i4", "width": "<i4", "height": "<i4"},
    **{"brightness": "<f4", "sharpness": "<f4", "unfamiliarity": "<f4"},
}


class Seen(NamedTuple):
    """A decoded picture: its pixels for the network, uint8 (S, S, 3), and the facts about it, see `inspection.PictureInfo`."""

    pixels: Array
    brightness: float
    sharpness: float
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """What is known of N pictures.

    `features`: float16 (N, D), as a log of predictions has them; `probs`: float32 (N, classes); `groups`: int (N,), pictures of one group
    are one draw; `brightness`, `sharpness`: float (N,); `width`, `height`: int (N,), in pixels; `unfamiliarity`: float (N,), above 1 is
    unfamiliar, None if the model does not say.
    """

    features: Array
    probs: Array
    groups: Array
    brightness: Array
    sharpness: Array
    width: Array
    height: Array
    unfamiliarity: Array | None = None

    def __len__(self) -> int:
        return len(self.probs)

    def take(self, rows: Array) -> "Sample":
        """The pictures of these rows."""
        taken: dict[str, Any] = {name: None if values is None else values[rows] for name, values in vars(self).items()}
        return Sample(**taken)

    @property
    def predicted(self) -> Array:
        """The most probable classes: int (N,)."""
        return np.asarray(self.probs.argmax(axis=1))

    @property
    def confidence(self) -> Array:
        """The highest probabilities: float64 (N,)."""
        return np.asarray(self.probs.max(axis=1).astype(float))


@dataclass(frozen=True)
class Reference:
    """The test pictures of a model. `labels`: int (N,), the true classes; `model_sha256`: of its model.onnx."""

    sample: Sample
    labels: Array
    class_names: Sequence[str]
    model_sha256: str


def look_at(source: Path, predictor: Predictor) -> Seen:
    """Decode a picture for the network and, whole, for its facts. Raises BrokenPicture."""
    content = source.read_bytes()
    # By the predictor's own way of reading, which may decode a JPEG at a fraction: a domain classifier would see the difference.
    pixels, image = predictor.read(content), decode(content)
    return Seen(pixels, *brightness_and_sharpness(image), *image.size)


def measure(predictor: Predictor, batches: Iterable[Sequence[Seen]]) -> Sample | None:
    """What the model computes of decoded pictures, each a group of its own; None without a picture.

    Raises PipelineError if the model gives no features.
    """
    columns: dict[str, list[Array]] = {}
    for batch in batches:
        outputs = predictor.run(np.stack([seen.pixels for seen in batch]), "features", "unfamiliarity")
        if outputs.features is None:
            raise PipelineError("model.onnx: has no output `features`; run `dvc repro`, which trains a model that has it")
        found = {"features": outputs.features, "probs": outputs.probs, "unfamiliarity": outputs.unfamiliarity}
        found |= {name: np.array([getattr(seen, name) for seen in batch]) for name in Seen._fields[1:]}
        for name, values in found.items():
            if values is not None:
                columns.setdefault(name, []).append(values.astype(_DTYPES[name]))
    if not columns:
        return None
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Sample(**arrays, groups=np.arange(len(arrays["probs"])))


def write_reference(
    folder: Path, model: tuple[str, Sequence[str]], pictures: Sequence[Picture], outputs: Outputs, labels: Array, groups: Array
) -> None:
    """Write `reference.npz` of at most 5,000 of the test pictures, evenly drawn, with the same bytes each time.

    `model`: the sha256 of its model.onnx, and its classes; `outputs`: of all test pictures, but `features` of the rows of `spread` alone.
    Nothing is written for a model without features, which an older version made.
    """
    if outputs.features is None:
        return
    rows = spread(len(pictures), MOST)
    arrays = {"features": outputs.features, "probs": outputs.probs[rows]}
    arrays |= {name: np.array([getattr(pictures[row], name) for row in rows]) for name in Seen._fields[1:]}
    arrays |= {"groups": np.unique(groups[rows], return_inverse=True)[1], "labels": labels[rows]}
    arrays |= {} if outputs.unfamiliarity is None else {"unfamiliarity": outputs.unfamiliarity[rows]}
    typed: dict[str, Any] = {name: values.astype(_DTYPES[name]) for name, values in arrays.items()}
    names: dict[str, Any] = {"class_names": np.array(model[1]), "model_sha256": np.array(model[0])}
    with atomic_file(folder / REFERENCE) as partial, partial.open("wb") as file:
        np.savez(file, **typed, **names)  # its zip entries have a fixed date


def read_reference(path: Path, sha256: str) -> Reference:
    """Read the reference of the model with that sha256. Raises PipelineError if it is missing, damaged, or of another model."""
    cure = "run `dvc repro`; a champion keeps it from its promotion on, so promote again, or name another --model"
    if not path.is_file():
        raise PipelineError(f"{path}: is not there, so that nothing can be compared with the model's test pictures; {cure}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        names, of_model, labels = arrays.pop("class_names").tolist(), str(arrays.pop("model_sha256")), arrays.pop("labels")
        reference = Reference(Sample(**arrays), labels, names, of_model)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error):
        raise PipelineError(f"{path}: is damaged; {cure}") from None
    if of_model != sha256:
        raise PipelineError(f"{path}: is of the model {of_model[:12]}, not of {sha256[:12]}; {cure}")
    return reference


def reference_path(name: str, folder: Path) -> Path:
    """Where the reference of a model is: in its folder if that is a champion's, else in results/<name>."""
    kept = folder / "results" / REFERENCE
    return kept if kept.parent.is_dir() else Path("results") / name / REFERENCE
