"""Answers for pictures, whoever gives them: rows of CSV or JSON, a contact sheet, an exit code that tells."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipeline.commands.pictures import SOME_BROKEN, bar_title, picks, png, share, tell_broken, whole
from pipeline.params import read_threads

if TYPE_CHECKING:
    from pipeline.serving.answers import Answer, Answerer, Broken
    from pipeline.serving.rows import Format

_SHOWN = 100  # pictures on a sheet


def add_row_arguments(parser: argparse.ArgumentParser, top: int | None) -> None:
    """Let the parser take what `answer` needs; `top`: how many classes a row has where nothing is said, None: all."""
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    wanted = "the K most probable classes" + (" (default: %(default)s)" if top else " instead of all")
    parser.add_argument("--top", type=whole, default=top, metavar="K", help=wanted)
    parser.add_argument("--abstain-below", type=share, default=0.0, metavar="P", help="predict no class whose probability is lower")
    parser.add_argument("--output", metavar="FILE", help="written whole or not at all (default: stdout, as answers come)")
    parser.add_argument("--sheet", type=png, metavar="FILE.png", help=f"draw a contact sheet of the first {_SHOWN} pictures")
    parser.add_argument("--batch-size", type=whole, default=32, metavar="N", help="pictures at once (default: 32)")


def answer(parsed: argparse.Namespace, title: str, open_model: Callable[[int], tuple[str, "Answerer"]]) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError.

    `open_model` takes the number of threads and gives what answers, and its name for people.
    """
    from pipeline.serving.answers import answer_all
    from pipeline.serving.rows import header, row_stream, target

    here, threads = parsed.here, read_threads()
    output, sheet = (named and target(here, named) for named in (parsed.output, parsed.sheet))
    name, model = open_model(threads)
    pictures = picks(parsed)
    first, counts = list["Answer | Broken"](), Counter[str]()
    with row_stream(output) as stream:
        stream.write(header(parsed.format, model.class_names, parsed.top))
        for batch in answer_all(model, pictures, here, parsed.abstain_below, parsed.batch_size, threads, bar_title(title, output)):
            _tell(batch, stream, parsed.format, parsed.top)
            counts.update(found.outcome for found in batch)
            first += batch[: _SHOWN - len(first)]
    if sheet:
        _draw(sheet, first, here, f"{name}: {_sum(len(pictures), counts)}")
    if counts["broken"]:
        raise SystemExit(SOME_BROKEN)


def _tell(batch: Sequence["Answer | Broken"], stream: TextIO, form: "Format", top: int | None) -> None:
    """Write the rows of a batch, and a line on stderr for each picture that has none."""
    from pipeline.serving.answers import Answer
    from pipeline.serving.rows import line

    for found in batch:
        if isinstance(found, Answer):
            stream.write(line(found, form, top))
        else:
            tell_broken(found)
    stream.flush()


def _sum(pictures: int, counts: Counter[str]) -> str:
    shown = f" (the first {_SHOWN} are shown)" if pictures > _SHOWN else ""
    return f"{pictures} picture{'s' * (pictures != 1)}{shown}, {counts['abstained']} abstained, {counts['broken']} broken"


def _draw(sheet: Path, first: Sequence["Answer | Broken"], here: Path, title: str) -> None:
    from pipeline.evaluation.sheet import Cell, draw_sheet, thumbnail
    from pipeline.serving.answers import plain
    from pipeline.serving.rows import writing

    with writing(sheet):
        cells = [
            Cell(None if found.outcome == "broken" else thumbnail(here / found.path), plain(found.path), plain(found.words), found.outcome)
            for found in first
        ]
        draw_sheet(sheet, cells, title)
