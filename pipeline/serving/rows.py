"""Answers as text, a line a picture, CSV or JSON; and where it goes."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, TextIO

from pipeline.errors import PipelineError
from pipeline.files import atomic_file, csv_line
from pipeline.serving.answers import Answer

Format = Literal["csv", "jsonl"]


def header(form: Format, class_names: Sequence[str], top: int | None) -> str:
    """The line above all rows: the columns of CSV; JSON lines have none."""
    columns = _columns(class_names, top)
    return csv_line(columns, {name: name for name in columns}) if form == "csv" else ""


def line(answer: Answer, form: Format, top: int | None) -> str:
    """The row of an answer. JSON is pure ASCII, so that no name can break a line or an encoding."""
    probs = dict(_most_probable(answer, top)) if top else answer.probs
    if form == "jsonl":
        facts = {"path": answer.path, "predicted": answer.predicted, "probability": answer.probability, "probs": probs}
        return json.dumps(facts, allow_nan=False) + "\n"
    cells: list[object] = [answer.path, answer.predicted, f"{answer.probability:.6f}"]
    for name, prob in probs.items():
        cells += [name, f"{prob:.6f}"] if top else [f"{prob:.6f}"]
    return csv_line(columns := _columns(list(answer.probs), top), dict(zip(columns, cells, strict=True)))


def target(here: Path, named: str) -> Path:
    """The file to write. Raises PipelineError where a folder, a device or the like is there: it would be replaced."""
    path = here / named
    if path.exists() and not path.is_file():
        raise PipelineError(f"{named}: is no ordinary file; name another")
    return path


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Turn what the system says of a write into a PipelineError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelineError(f"{target}: {error.strerror}; see to it and ask again") from None


@contextmanager
def row_stream(output: Path | None) -> Iterator[TextIO]:
    """A file that is written whole or not at all, or stdout. UTF-8; a file name that is none keeps its bytes.

    A reader of stdout that leaves early ends the program as it ends `cat`: quietly, with the code of SIGPIPE.
    """
    if output is not None:
        with writing(output), atomic_file(output) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        with writing("stdout"):
            yield sys.stdout
            sys.stdout.flush()
    except (BrokenPipeError, PipelineError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
        if isinstance(error, PipelineError):
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None


def _columns(class_names: Sequence[str], top: int | None) -> list[str]:
    """`prob_<class>` for each class, or `top_1,top_1_prob` and so on: class and probability of the most probable."""
    if not top:
        return ["path", "predicted", "probability", *(f"prob_{name}" for name in class_names)]
    places = range(1, min(top, len(class_names)) + 1)
    return ["path", "predicted", "probability", *(column for place in places for column in (f"top_{place}", f"top_{place}_prob"))]


def _most_probable(answer: Answer, top: int) -> list[tuple[str, float]]:
    """The likeliest classes, the likeliest first; equals in the order of the classes."""
    return sorted(answer.probs.items(), key=lambda pair: -pair[1])[:top]
