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

Outcome = Literal["answered", "abstained", "refused", "broken"]
Format = Literal["csv", "jsonl"]


@dataclass(frozen=True)
class PictureFile:
    """A path, as the user named it or below a folder that the user named. `fault`: why it contains no picture."""

    path: str
    fault: str = ""


@dataclass(frozen=True)
class Prediction:
    """A prediction for one picture. Probabilities are rounded to six places; `probs` is in the order of the classes.

    `predicted` is the most probable class, or None if the model abstains or the picture is refused; `probability` is that of the most
    probable class; `unfamiliarity` is None if the model does not have this output; `refused`: as unfamiliar.
    """

    path: str
    predicted: str | None
    probability: float
    probs: dict[str, float]
    unfamiliarity: float | None = None
    refused: bool = False

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the picture is unlike those that the model learned from; None if the model does not tell."""
        return None if self.unfamiliarity is None else self.unfamiliarity > 1

    @property
    def outcome(self) -> Outcome:
        """Whether the model predicts a class, the picture is refused as unfamiliar, or the model abstains."""
        return "refused" if self.refused else "abstained" if self.predicted is None else "answered"

    @property
    def caption(self) -> str:
        """The prediction in a few words."""
        best = f"{max(self.probs, key=lambda name: self.probs[name])} ({self.probability:.2f})"
        if self.refused:
            return f"unfamiliar: {best}"
        note = ", unfamiliar" * bool(self.unfamiliar)
        return f"{'abstained: ' * (self.predicted is None)}{best}{note}"


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
    def tells_unfamiliar(self) -> bool:
        """Whether the model says how unfamiliar a picture is."""

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""

    def read(self, source: Path) -> Array:
        """The prepared pixels of a picture. Raises BrokenPicture."""

    def answer(self, pixels: Array) -> tuple[Array, Array | None]:
        """Probabilities, float32 (pictures, classes), and unfamiliarity, float32 (pictures,), of prepared pixels stacked in one array.

        The latter is None if the model does not tell.
        """


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
    model: PredictorLike,
    files: Iterable[PictureFile],
    here: Path,
    abstain_below: float,
    batch_size: int,
    threads: int,
    title: str | None,
    refuse_unfamiliar: bool = False,
) -> Iterator[list[Prediction | BrokenFile]]:
    """Batches of predictions, one per file in the order of the files. Relative paths start at `here`.

    The model abstains if the highest probability, after rounding, is less than `abstain_below`. With `refuse_unfamiliar`, no class is
    predicted for a picture that is unfamiliar to the model. A title shows a progress bar.
    """

    def read(file: PictureFile) -> Array | BrokenFile:
        return read_file(file, here, model.read)

    files = list(files)
    paths = iter(file.path for file in files)
    for batch in read_ahead(files, read, batch_size, threads, title):
        pixels = [item for item in batch if not isinstance(item, BrokenFile)]
        answers = _answers(*model.answer(np.stack(pixels))) if pixels else iter(())
        yield [
            item
            if isinstance(item, BrokenFile)
            else make_prediction(path, *next(answers), model.class_names, abstain_below, refuse_unfamiliar)
            for item, path in zip(batch, paths, strict=False)  # zip asks the batch first, so it takes no path too many
        ]


def _answers(probs: Array, unfamiliarity: Array | None) -> Iterator[tuple[Array, float | None]]:
    """The probabilities and the unfamiliarity of each picture."""
    return zip(probs, [None] * len(probs) if unfamiliarity is None else unfamiliarity.tolist(), strict=True)


def read_file(file: PictureFile, here: Path, read: Callable[[Path], Item]) -> Item | BrokenFile:
    """What `read` returns for a file, or why the file cannot be read. Relative paths start at `here`."""
    if fault := file.fault or file_fault(here / file.path):
        return BrokenFile(file.path, fault)
    try:
        return read(here / file.path)
    except BrokenPicture as error:
        return BrokenFile(file.path, str(error))


def make_prediction(
    path: str, probs: Array, unfamiliarity: float | None, class_names: Sequence[str], abstain_below: float, refuse_unfamiliar: bool = False
) -> Prediction:
    """The prediction from probabilities, float (classes,). Of equally probable classes the first is predicted."""
    rounded = {name: round(float(prob), 6) for name, prob in zip(class_names, probs, strict=True)}
    best = class_names[int(probs.argmax())]
    refused = refuse_unfamiliar and unfamiliarity is not None and unfamiliarity > 1
    predicted = None if refused or rounded[best] < abstain_below else best
    return Prediction(path, predicted, rounded[best], rounded, unfamiliarity, refused)


def printable(text: str) -> str:
    """The text as one line, with control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def rows_header(form: Format, class_names: Sequence[str], top: int | None, tells_unfamiliar: bool = False) -> str:
    """The line above the rows: the column names of CSV; nothing for JSON lines."""
    columns = _columns(class_names, top, tells_unfamiliar)
    return csv_line(columns, {name: name for name in columns}) if form == "csv" else ""


def row_line(prediction: Prediction, form: Format, top: int | None) -> str:
    """One prediction as a row. JSON is pure ASCII, so that no file name can break a line or an encoding."""
    # The sort is stable: equally probable classes keep their order.
    probs = dict(sorted(prediction.probs.items(), key=lambda pair: -pair[1])[:top]) if top else prediction.probs
    if form == "jsonl":
        facts = {"path": prediction.path, "predicted": prediction.predicted, "probability": prediction.probability, "probs": probs}
        if prediction.unfamiliarity is not None:
            facts |= {"unfamiliar": prediction.unfamiliar, "unfamiliarity": round(prediction.unfamiliarity, 4)}
        return json.dumps(facts, allow_nan=False) + "\n"
    cells: list[object] = [prediction.path, prediction.predicted, f"{prediction.probability:.6f}"]
    for name, prob in probs.items():
        cells += [name, f"{prob:.6f}"] if top else [f"{prob:.6f}"]
    if prediction.unfamiliarity is not None:
        cells += [str(prediction.unfamiliar).lower(), f"{prediction.unfamiliarity:.4f}"]
    columns = _columns(list(prediction.probs), top, prediction.unfamiliarity is not None)
    return csv_line(columns, dict(zip(columns, cells, strict=True)))


def _columns(class_names: Sequence[str], top: int | None, tells_unfamiliar: bool) -> list[str]:
    """The columns of CSV: `prob_<class>` per class, or `top_1`, `top_1_prob` and so on for the most probable classes.

    The last two are `unfamiliar` and `unfamiliarity`, if the model tells.
    """
    last = ["unfamiliar", "unfamiliarity"] if tells_unfamiliar else []
    if not top:
        return ["path", "predicted", "probability", *(f"prob_{name}" for name in class_names), *last]
    places = range(1, min(top, len(class_names)) + 1)
    return ["path", "predicted", "probability", *(column for place in places for column in (f"top_{place}", f"top_{place}_prob")), *last]
