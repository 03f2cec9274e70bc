"""Predictions for many picture files: find the files, predict in batches, format rows of CSV or JSON."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import csv_line
from pipeline.pictures.images import PICTURE_SUFFIXES, Array, BrokenPicture, Item, read_ahead

Outcome = Literal["answered", "abstained", "broken"]
Format = Literal["csv", "jsonl"]


@dataclass(frozen=True)
class PictureFile:
    """A path, as the user named it or below a folder that the user named. `fault`: why it contains no picture."""

    path: str
    fault: str = ""


@dataclass(frozen=True)
class Prediction:
    """A prediction for one picture. Probabilities are rounded to six places; `probs` is in the order of the classes.

    `predicted` is the most probable class, or None if the model abstains; `probability` is that of the most probable class.
    """

    path: str
    predicted: str | None
    probability: float
    probs: dict[str, float]

    @property
    def outcome(self) -> Outcome:
        """Whether the model predicts a class or abstains."""
        return "abstained" if self.predicted is None else "answered"

    @property
    def caption(self) -> str:
        """The prediction in a few words."""
        best = f"{max(self.probs, key=lambda name: self.probs[name])} ({self.probability:.2f})"
        return f"abstained: {best}" if self.predicted is None else best


@dataclass(frozen=True)
class BrokenFile:
    """A path for which there is no prediction, and why."""

    path: str
    fault: str
    outcome: Outcome = "broken"

    @property
    def caption(self) -> str:
        """The fault in a few words."""
        return f"broken: {self.fault}"


class PredictorLike(Protocol):
    """A model that predicts in two steps. The first, `read`, may run in several threads."""

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""

    def read(self, source: Path) -> Array:
        """The prepared pixels of a picture. Raises BrokenPicture."""

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pixels stacked in one array."""


def read_list(content: bytes, separator: bytes) -> list[str]:
    """The paths in a list as `find` prints it. Raises PipelineError if the content is something else."""
    if b"\0" in content and separator != b"\0":
        raise PipelineError("-: contains NUL bytes; expected a list of paths, one per line, or separated by NUL with -0")
    return [os.fsdecode(name) for name in content.split(separator) if name]


def find_pictures(names: Iterable[str], here: Path) -> Iterator[PictureFile]:
    """Each named file, and in place of each named folder the pictures below it, sorted by name. Names are relative to `here`.

    Files in a folder are pictures by their suffix. Hidden files, files that systems add and links to folders are
    skipped.
    """
    for name in names:
        if name and os.path.isdir(here / name):  # noqa: PTH112 - Path.is_dir raises if a name is too long
            below = _pictures_below(name, here)
            yield next(below, PictureFile(name, "contains no pictures"))
            yield from below
        else:
            yield PictureFile(name)


def _pictures_below(folder: str, here: Path) -> Iterator[PictureFile]:
    from pipeline.sources.members import is_junk

    try:
        with os.scandir(here / folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield PictureFile(folder, error.strerror or str(error))
        return
    for entry in (entry for entry in entries if not is_junk(entry.name)):
        path = f"{folder.rstrip('/')}/{entry.name}"  # text, since Path would turn ./-a.png into -a.png
        if entry.is_dir(follow_symlinks=False):
            yield from _pictures_below(path, here)
        elif entry.name.lower().endswith(PICTURE_SUFFIXES):
            yield PictureFile(path)


def file_fault(path: Path) -> str:
    """Why a path cannot be read as a file; empty if it can. Never waits, as opening a pipe would."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is not a regular file"
        path.open("rb").close()
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def predict_all(
    model: PredictorLike, files: Iterable[PictureFile], here: Path, abstain_below: float, batch_size: int, threads: int, title: str | None
) -> Iterator[list[Prediction | BrokenFile]]:
    """Batches of predictions, one per file in the order of the files. Relative paths start at `here`.

    The model abstains if the highest probability, after rounding, is less than `abstain_below`. A title shows a progress bar.
    """

    def read(file: PictureFile) -> Array | BrokenFile:
        return read_file(file, here, model.read)

    files = list(files)
    paths = iter(file.path for file in files)
    for batch in read_ahead(files, read, batch_size, threads, title):
        pixels = [item for item in batch if not isinstance(item, BrokenFile)]
        probs = iter(model.predict_pixels(np.stack(pixels)) if pixels else ())
        yield [
            item if isinstance(item, BrokenFile) else make_prediction(path, next(probs), model.class_names, abstain_below)
            for item, path in zip(batch, paths, strict=False)  # zip asks the batch first, so it takes no path too many
        ]


def read_file(file: PictureFile, here: Path, read: Callable[[Path], Item]) -> Item | BrokenFile:
    """What `read` returns for a file, or why the file cannot be read. Relative paths start at `here`."""
    if fault := file.fault or file_fault(here / file.path):
        return BrokenFile(file.path, fault)
    try:
        return read(here / file.path)
    except BrokenPicture as error:
        return BrokenFile(file.path, str(error))


def make_prediction(path: str, probs: Array, class_names: Sequence[str], abstain_below: float) -> Prediction:
    """The prediction from probabilities, float (classes,). Of equally probable classes the first is predicted."""
    rounded = {name: round(float(prob), 6) for name, prob in zip(class_names, probs, strict=True)}
    best = class_names[int(probs.argmax())]
    return Prediction(path, None if rounded[best] < abstain_below else best, rounded[best], rounded)


def printable(text: str) -> str:
    """The text as one line, with control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def rows_header(form: Format, class_names: Sequence[str], top: int | None) -> str:
    """The line above the rows: the column names of CSV; nothing for JSON lines."""
    columns = _columns(class_names, top)
    return csv_line(columns, {name: name for name in columns}) if form == "csv" else ""


def row_line(prediction: Prediction, form: Format, top: int | None) -> str:
    """One prediction as a row. JSON is pure ASCII, so that no file name can break a line or an encoding."""
    # The sort is stable: equally probable classes keep their order.
    probs = dict(sorted(prediction.probs.items(), key=lambda pair: -pair[1])[:top]) if top else prediction.probs
    if form == "jsonl":
        facts = {"path": prediction.path, "predicted": prediction.predicted, "probability": prediction.probability, "probs": probs}
        return json.dumps(facts, allow_nan=False) + "\n"
    cells: list[object] = [prediction.path, prediction.predicted, f"{prediction.probability:.6f}"]
    for name, prob in probs.items():
        cells += [name, f"{prob:.6f}"] if top else [f"{prob:.6f}"]
    return csv_line(columns := _columns(list(prediction.probs), top), dict(zip(columns, cells, strict=True)))


def _columns(class_names: Sequence[str], top: int | None) -> list[str]:
    """The columns of CSV: `prob_<class>` per class, or `top_1`, `top_1_prob` and so on for the most probable classes."""
    if not top:
        return ["path", "predicted", "probability", *(f"prob_{name}" for name in class_names)]
    places = range(1, min(top, len(class_names)) + 1)
    return ["path", "predicted", "probability", *(column for place in places for column in (f"top_{place}", f"top_{place}_prob"))]
