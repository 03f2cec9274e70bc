"""A stored model in Python: `load_model()` returns an object that predicts, explains and computes features, without torch."""

import html
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, chdir, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import project_root, sha256_of_file
from pipeline.pictures.images import DAMAGE, Array, BrokenPicture, to_rgb, to_square
from pipeline.serving.predictions import BrokenFile, PictureFile, find_pictures, make_prediction, read_file
from pipeline.serving.predictor import Outputs, Predictor, open_model

if TYPE_CHECKING:
    import pandas as pd

# One picture or many: a path, a folder, the bytes of a file, a Pillow image, a NumPy array, or an iterable of any of these.
Pictures = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Array | Iterable["Pictures"]

_BATCH_SIZE = 32  # as in `pipeline predict`: a sum of floats depends on what is computed together
_BAR_SECONDS = 1.0  # before which no progress bar appears
_SHORT = 12  # digits of a sha256


@dataclass(frozen=True)
class _Square:
    """A picture that was read: `pixels`, uint8 (S, S, 3), or the fault for which there are none. `path`: None if it was in memory."""

    path: str | None
    pixels: Array | None
    fault: str | None = None


@dataclass(frozen=True, repr=False)
class Model:
    """A stored model. `load_model` makes it.

    `name`: in models/, `champion`, or the address in MLflow; `path`: of its model.onnx; `sha256`: of that file.

    `predict`, `features` and `explain` take the same pictures: a path (str or Path), a folder (all pictures in it, sorted), the bytes of
    a file, a Pillow image of any mode, a NumPy array, or an iterable of any of these, of which two batches are in memory at a time. An
    array is uint8: (height, width) grey, (height, width, 3) RGB, (height, width, 4) RGBA, or a stack (pictures, height, width, channels).
    Floats are refused, since nothing says whether white is 1 or 255. Relative paths start at the working directory.

    >>> from pipeline import load_model
    >>> model = load_model()
    >>> model
    Model(champion, 2 classes: ants, bees, sha256 ...)
    >>> model.predict("pictures")[["path", "predicted", "fault"]]
                      path predicted          fault
    0    pictures/ants.png      ants            NaN
    1    pictures/bees.png      bees            NaN
    2  pictures/broken.png       NaN  not a picture
    >>> model.features("pictures/ants.png").shape
    (1, 3)
    >>> model.explain("pictures/ants.png").size
    (176, 176)
    """

    name: str
    path: Path
    sha256: str
    predictor: Predictor

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""
        return self.predictor.class_names

    def predict(self, pictures: Pictures) -> "pd.DataFrame":
        """Return a row per picture, in the order of the pictures.

        Columns: `path` (missing if the picture was in memory), `predicted`, `probability` (of the predicted class), `prob_<class>` per
        class, `unfamiliar` (unlike the pictures that the model learned from; no such column if the model was stored without that output),
        and `fault`. Probabilities have six places, as those of `pipeline predict`. A picture that cannot be read is a row with a `fault`,
        which is missing in all others, and without a prediction. Raises TypeError or ValueError if an object is no picture.
        """
        import pandas as pd

        squares, answers = list[_Square](), list[tuple[Array, float | None]]()
        for batch, outputs in self._run(pictures, "unfamiliarity"):
            squares += [replace(square, pixels=None) for square in batch]
            if outputs:
                scores = [None] * len(outputs.probs) if outputs.unfamiliarity is None else outputs.unfamiliarity.tolist()
                answers += zip(outputs.probs, scores, strict=True)
        ahead = iter(answers)
        rows = [None if square.fault else make_prediction(square.path or "", *next(ahead), self.class_names, 0.0) for square in squares]
        columns: dict[str, Any] = {
            "path": [square.path for square in squares],
            "predicted": [row and row.predicted for row in rows],
            "probability": np.array([row.probability if row else np.nan for row in rows], float),
            **{f"prob_{name}": np.array([row.probs[name] if row else np.nan for row in rows], float) for name in self.class_names},
        }
        if "unfamiliarity" in self.predictor.outputs:
            columns["unfamiliar"] = pd.array([row and row.unfamiliar for row in rows], dtype="boolean")
        return pd.DataFrame({**columns, "fault": [square.fault for square in squares]})

    def features(self, pictures: Pictures) -> Array:
        """Return the features of the pictures, float32 (N, D): what the head sees. A picture that cannot be read is a row of NaN.

        Raises PipelineError if the model was stored without this output, and TypeError or ValueError as `predict`.
        """
        if "features" not in self.predictor.outputs:
            raise PipelineError(f"{self.path}: has no output `features`, because it was stored by an older version; run `dvc repro`")
        parts = [np.empty((0, self._width), np.float32)]
        for batch, outputs in self._run(pictures, "features"):
            rows = np.full((len(batch), self._width), np.nan, np.float32)
            if outputs:
                rows[[square.pixels is not None for square in batch]] = outputs.features
            parts.append(rows)
        return np.concatenate(parts)

    def explain(self, picture: Pictures, class_name: str | None = None) -> Image.Image:
        """Return the square that the network sees, in grey, with its class activation map in colours: what speaks for a class.

        `class_name`: by default the predicted class. Raises PipelineError if the picture cannot be read, if the network has no such map
        (`pipeline explain` draws Grad-CAM then), or if there is no such class; ValueError if this is not one picture.
        """
        from pipeline.evaluation.galleries import SIDE, class_activation, overlay

        names = self.class_names
        if class_name not in (None, *names):
            raise PipelineError(f"{class_name}: is not a class of {self.name}; its classes are {', '.join(names)}")
        if "feature_map" not in self.predictor.outputs:
            cure = "`pipeline explain` draws Grad-CAM maps, if the network is convolutional"
            raise PipelineError(f"{self.path}: its network has no map on which the head is linear; {cure}")
        batch, outputs = next(self._run(picture, "feature_map"), ([], None))
        if len(batch) != 1:
            raise ValueError(f"explain takes one picture; these are {len(batch) or 'none'}")
        if outputs is None or outputs.feature_map is None or batch[0].pixels is None:
            raise PipelineError(f"{batch[0].path or 'the picture'}: {batch[0].fault}; explain another picture")
        index = names.index(class_name) if class_name else int(outputs.probs[0].argmax())
        pixels = Image.fromarray(batch[0].pixels)
        side = max(SIDE, pixels.width)
        return overlay(pixels.resize((side, side)), class_activation(outputs.feature_map[0], self._head, index))

    def __repr__(self) -> str:
        return f"Model({self.name}, {len(self.class_names)} classes: {self._listed}, sha256 {self.sha256[:_SHORT]})"

    def _repr_html_(self) -> str:
        rows = {
            "model": self.name,
            f"{len(self.class_names)} classes": self._listed,
            "image size": f"{self.predictor.preprocessing.image_size} pixels",
            "says what is unfamiliar": "yes" if "unfamiliarity" in self.predictor.outputs else "no",
            "sha256": self.sha256,
        }
        cells = (f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table>{''.join(cells)}</table>"

    @property
    def _listed(self) -> str:
        names = self.class_names
        return ", ".join(names if len(names) <= 10 else [*names[:9], "…"])

    @property
    def _width(self) -> int:
        """How many features there are."""
        return int(next(each.shape[1] for each in self.predictor.session.get_outputs() if each.name == "features"))

    @cached_property
    def _head(self) -> Array:
        """The weights of the head, float32 (classes, channels)."""
        from onnx import numpy_helper

        from pipeline.networks.onnx_file import read_onnx

        tensors = {tensor.name: tensor for tensor in read_onnx(self.path).graph.initializer}
        return np.asarray(numpy_helper.to_array(tensors["head.weight"]))

    def _run(self, pictures: Pictures, output: str) -> Iterator[tuple[list[_Square], Outputs | None]]:
        """Batches of pictures and what the model computes for those that could be read; None if none could.

        At most two batches are in memory. The files of the next one are decoded in threads while the model runs.
        """
        here, threads = Path.cwd(), self.predictor.threads
        sources = _flatten(pictures, here)
        with ThreadPoolExecutor(threads) as pool, _progress_bar(pictures) as bar:
            # What is in memory is prepared before the iterable goes on, which may write the next picture into the same array.
            start = partial(self._start, pool, here)
            ahead = [start(source) for source in islice(sources, _BATCH_SIZE)]
            while ahead:
                current, ahead = ahead, [start(source) for source in islice(sources, _BATCH_SIZE)]
                batch = [each if isinstance(each, _Square) else each.result() for each in current]
                pixels = [square.pixels for square in batch if square.pixels is not None]
                yield batch, self.predictor.run(np.stack(pixels), output) if pixels else None
                if bar:
                    bar.update(len(batch))

    def _start(self, pool: ThreadPoolExecutor, here: Path, source: PictureFile | bytes | Image.Image) -> Any:
        if isinstance(source, Image.Image):
            return self._read(here, source)
        return pool.submit(self._read, here, source)

    def _read(self, here: Path, source: PictureFile | bytes | Image.Image) -> _Square:
        if isinstance(source, PictureFile):
            item = read_file(source, here, self.predictor.read)
            return _Square(source.path, None, item.fault) if isinstance(item, BrokenFile) else _Square(source.path, item)
        try:
            if isinstance(source, bytes):
                return _Square(None, self.predictor.read(source))
            source.load()
            return _Square(None, to_square(to_rgb(source), self.predictor.preprocessing))
        except (BrokenPicture, *DAMAGE) as error:
            return _Square(None, None, " ".join(str(error).split()) or "damaged")


def load_model(model: str | os.PathLike[str] | None = None, threads: int | None = None) -> Model:
    """Open a stored model. This works in any folder of a project, and with DVC_ROOT or a model's folder anywhere.

    `model`: by default the champion, or before there is one the model with the lowest val loss; a name in models/; a model folder; or
    `models:/NAME@ALIAS` or `models:/NAME/VERSION` of MLflow's registry at MLFLOW_TRACKING_URI. `threads`: by default those of
    params.yaml, outside of a project one per CPU. The project's root is the process's working directory until the model is open. Raises
    PipelineError if there is no such model or if it is damaged.
    """
    named, here = None if model is None else os.fspath(model), Path.cwd()
    with chdir(project_root()):
        if named is not None and named.startswith("models:/"):
            from pipeline.tracking.registry import fetch_model

            name, folder = named, fetch_model(named)
        else:
            from pipeline.promotion.champions import find_served

            try:
                name, folder = find_served(named, here)
            except PipelineError as error:
                raise PipelineError(str(error).removeprefix("--model ")) from None
        path = (folder / "model.onnx").resolve()
        return Model(name, path, sha256_of_file(path), open_model(folder.resolve(), threads or _threads()))


def _threads() -> int:
    from pipeline.core.hardware import usable_cpus
    from pipeline.core.params import PARAMS, read_threads

    return read_threads() if PARAMS.is_file() else usable_cpus()


def _flatten(pictures: Pictures, here: Path) -> Iterator[PictureFile | bytes | Image.Image]:
    """The single pictures, one after the other. Raises TypeError or ValueError at what is none."""
    if isinstance(pictures, str | os.PathLike):
        yield from find_pictures([os.fspath(pictures)], here)
    elif isinstance(pictures, bytes | bytearray | memoryview):
        yield bytes(pictures)
    elif isinstance(pictures, Image.Image):
        yield pictures
    elif isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OUT":  # objects and texts: a list
        yield from _images_in(pictures)
    elif isinstance(pictures, Iterable) and not hasattr(pictures, "read") and getattr(pictures, "ndim", 1) == 1:
        for picture in pictures:
            yield from _flatten(picture, here)
    else:
        expected = "a path, the bytes of a file, a Pillow image, a NumPy array (height, width, 3) of uint8, or an iterable of these"
        raise TypeError(f"{type(pictures).__name__}: is not a picture; expected {expected}")


def _images_in(array: Array) -> Iterator[Image.Image]:
    """The picture of an array, or those of a stack."""
    if array.dtype != np.uint8:
        cure = "if its white is 1, pass (255 * array).round().astype('uint8')" if array.dtype.kind == "f" else "convert it"
        raise TypeError(f"an array of {array.dtype}: expected uint8, from 0 to 255; {cure}")
    if array.ndim == 4:
        for picture in array:
            yield from _images_in(picture)
    elif array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        yield Image.fromarray(array)
    else:
        cures = "pass array.transpose(1, 2, 0) if the channels come first, list(array) if it is a stack of grey pictures"
        hint = f"; {cures}" if array.ndim == 3 else ""
        raise ValueError(f"an array of shape {array.shape}: expected (height, width), (height, width, 3) or (height, width, 4){hint}")


def _progress_bar(pictures: Pictures) -> AbstractContextManager[Any]:
    if not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    total = len(pictures) if isinstance(pictures, list | tuple) else None
    return tqdm(total=total, unit="picture", delay=_BAR_SECONDS)
