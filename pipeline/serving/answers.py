"""Predictions for many pictures: which files are pictures, one answer per picture, rows of CSV or JSON."""

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
from pipeline.sources.members import is_junk


@dataclass(frozen=True)
class PictureFile:
    """A path as it was named, or as it lies below a folder that was named. `fault`: why no picture can be read there."""

    path: str
    fault: str = ""


def read_list(content: bytes, separator: bytes) -> list[str]:
    """The paths in a list that `find` and the like print. Raises PipelineError where it holds anything else."""
    if b"\0" in content and separator != b"\0":
        raise PipelineError("-: holds NUL bytes; give names of files, one a line, or parted by NUL with -0; a picture itself is no list")
    return [os.fsdecode(name) for name in content.split(separator) if name]


def find_pictures(names: Iterable[str], here: Path) -> Iterator[PictureFile]:
    """Each file that is named, and in place of a folder the pictures below it, sorted by name. Names start at `here`.

    In a folder a file is a picture by the ending of its name; what is hidden, what systems leave behind and links to
    folders are passed by.
    """
    for name in names:
        if name and os.path.isdir(here / name):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            below = _below(name, here)
            yield next(below, PictureFile(name, "holds no pictures"))
            yield from below
        else:
            yield PictureFile(name)


def file_fault(path: Path) -> str:
    """Why a path cannot be read as a file, or nothing. It never waits, as to open a pipe would."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no ordinary file"
        path.open("rb").close()
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _below(folder: str, here: Path) -> Iterator[PictureFile]:
    try:
        with os.scandir(here / folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield PictureFile(folder, error.strerror or str(error))
        return
    for entry in (entry for entry in entries if not is_junk(entry.name)):
        path = f"{folder.rstrip('/')}/{entry.name}"  # no Path: it would make -a.png of ./-a.png
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path, here)
        elif entry.name.lower().endswith(PICTURE_SUFFIXES):
            yield PictureFile(path)


Outcome = Literal["answered", "abstained", "broken"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a picture: probabilities to six places, `probs` in the order of the classes.

    `probability` is that of the most probable class, `predicted` its name, or None where that is too improbable.
    """

    path: str
    predicted: str | None
    probability: float
    probs: dict[str, float]

    @property
    def outcome(self) -> Outcome:
        """What became of the picture."""
        return "abstained" if self.predicted is None else "answered"

    @property
    def words(self) -> str:
        """The answer for a person."""
        said = f"{max(self.probs, key=lambda name: self.probs[name])} ({self.probability:.2f})"
        return f"abstained: {said}" if self.predicted is None else said


@dataclass(frozen=True)
class BrokenFile:
    """A path without an answer, and why."""

    path: str
    fault: str
    outcome: Outcome = "broken"

    @property
    def words(self) -> str:
        """The fault for a person."""
        return f"broken: {self.fault}"


class PredictorLike(Protocol):
    """What gives probabilities for pictures, in two steps, of which the first may run in several threads."""

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""

    def read(self, source: Path) -> Array:
        """A picture as it is prepared for the network. Raises BrokenPicture."""

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pictures in one array."""


def predict_all(
    model: PredictorLike, picks: Sequence[PictureFile], here: Path, abstain_below: float, batch_size: int, threads: int, title: str | None
) -> Iterator[list[Prediction | BrokenFile]]:
    """An answer for each pick, in batches, in their order. Relative paths start at `here`; without a title no progress is shown.

    Where the highest probability, as it is written, is below `abstain_below`, the model does not commit itself.
    """

    def read(pick: PictureFile) -> Array | BrokenFile:
        return read_file(pick, here, model.read)

    paths = iter(pick.path for pick in picks)
    for batch in read_ahead(picks, read, batch_size, threads, title):
        pixels = [found for found in batch if not isinstance(found, BrokenFile)]
        probs = iter(model.predict_pixels(np.stack(pixels)) if pixels else ())
        yield [
            found if isinstance(found, BrokenFile) else judge(path, next(probs), model.class_names, abstain_below)
            for found, path in zip(batch, paths, strict=False)
        ]


def read_file(pick: PictureFile, here: Path, read: Callable[[Path], Item]) -> Item | BrokenFile:
    """What `read` makes of a picture, or why it cannot be read. Relative paths start at `here`."""
    if fault := pick.fault or file_fault(here / pick.path):
        return BrokenFile(pick.path, fault)
    try:
        return read(here / pick.path)
    except BrokenPicture as error:
        return BrokenFile(pick.path, str(error))


def judge(path: str, probs: Array, class_names: Sequence[str], abstain_below: float) -> Prediction:
    """What probabilities, float (classes,), say: the most probable class, the first of equals, if it is probable enough."""
    rounded = {name: round(float(prob), 6) for name, prob in zip(class_names, probs, strict=True)}
    best = class_names[int(probs.argmax())]
    return Prediction(path, None if rounded[best] < abstain_below else best, rounded[best], rounded)


def plain(text: str) -> str:
    """A text in one line, without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


Format = Literal["csv", "jsonl"]


def rows_header(form: Format, class_names: Sequence[str], top: int | None) -> str:
    """The line above all rows: the columns of CSV; JSON lines have none."""
    columns = _columns(class_names, top)
    return csv_line(columns, {name: name for name in columns}) if form == "csv" else ""


def row_line(answer: Prediction, form: Format, top: int | None) -> str:
    """The row of an answer. JSON is pure ASCII, so that no name can break a line or an encoding."""
    probs = dict(_most_probable(answer, top)) if top else answer.probs
    if form == "jsonl":
        facts = {"path": answer.path, "predicted": answer.predicted, "probability": answer.probability, "probs": probs}
        return json.dumps(facts, allow_nan=False) + "\n"
    cells: list[object] = [answer.path, answer.predicted, f"{answer.probability:.6f}"]
    for name, prob in probs.items():
        cells += [name, f"{prob:.6f}"] if top else [f"{prob:.6f}"]
    return csv_line(columns := _columns(list(answer.probs), top), dict(zip(columns, cells, strict=True)))


def _columns(class_names: Sequence[str], top: int | None) -> list[str]:
    """`prob_<class>` for each class, or `top_1,top_1_prob` and so on: class and probability of the most probable."""
    if not top:
        return ["path", "predicted", "probability", *(f"prob_{name}" for name in class_names)]
    places = range(1, min(top, len(class_names)) + 1)
    return ["path", "predicted", "probability", *(column for place in places for column in (f"top_{place}", f"top_{place}_prob"))]


def _most_probable(answer: Prediction, top: int) -> list[tuple[str, float]]:
    """The likeliest classes, the likeliest first; equals in the order of the classes."""
    return sorted(answer.probs.items(), key=lambda pair: -pair[1])[:top]
