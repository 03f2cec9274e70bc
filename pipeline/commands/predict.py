"""`pipeline predict`: ask a stored model about pictures. ONNX Runtime answers; torch is never imported."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from pipeline.params import read_threads

if TYPE_CHECKING:
    from pipeline.serving.answers import Answer, Broken
    from pipeline.serving.rows import Format

_SHOWN = 100  # pictures on a sheet
_SOME_BROKEN = 3  # exit code

_ABOUT = """\
Ask a stored model about pictures: a row a picture, in the order in which they are named.

Probabilities are calibrated and have six places. CSV has the columns path, predicted, probability (of the most
probable class) and prob_<class> for each class, with --top K in their place top_1, top_1_prob and so on. A JSON line has
the keys path, predicted, probability, probs. Where the model abstains, predicted is empty (JSON: null)."""

_CODES = """\
A picture that cannot be read has no row but a line on stderr, `PATH: reason`, and the rest goes on.

exit codes:
  0  every picture is answered
  1  nothing was done, or answers could not be written; a line on stderr says why
  2  wrong usage
  3  some pictures could not be read, the others are answered

examples:
  pipeline predict pictures/ --sheet sheet.png > answers.csv
  find /photos -name '*.jpg' -print0 | pipeline predict -0 - --format jsonl --abstain-below 0.9"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="ask a stored model about pictures",
        description=_ABOUT,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture; a folder: all pictures below; -: a list of both on stdin")
    parser.add_argument("-0", "--null", action="store_true", help="NUL parts the paths of the list on stdin, not line feeds")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="one of models/, or a model's folder (default: the lowest val loss)")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    parser.add_argument("--top", type=_count, metavar="K", help="the K most probable classes instead of all")
    parser.add_argument("--abstain-below", type=_share, default=0.0, metavar="P", help="predict no class whose probability is lower")
    parser.add_argument("--output", metavar="FILE", help="written whole or not at all (default: stdout, as answers come)")
    parser.add_argument("--sheet", type=_png, metavar="FILE.png", help=f"draw a contact sheet of the first {_SHOWN} pictures")
    parser.set_defaults(run=predict, here=Path.cwd())  # where the user stands: commands run in the project's root


def predict(parsed: argparse.Namespace) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.data.picks import find_pictures
    from pipeline.serving.answers import answer_all
    from pipeline.serving.choice import find_model, open_model
    from pipeline.serving.rows import header, row_stream, target

    here, threads = parsed.here, read_threads()
    output, sheet = (named and target(here, named) for named in (parsed.output, parsed.sheet))
    model = find_model(parsed.model, Path("models"), here)
    predictor = open_model(model, threads)
    picks = list(find_pictures(_named(parsed.paths, parsed.null), here))
    title = None if output is None and sys.stdout.isatty() else "predict"  # a bar would break the rows
    first, counts = list["Answer | Broken"](), Counter[str]()
    with row_stream(output) as stream:
        stream.write(header(parsed.format, predictor.class_names, parsed.top))
        for batch in answer_all(predictor, picks, here, parsed.abstain_below, threads, title):
            _tell(batch, stream, parsed.format, parsed.top)
            counts.update(found.outcome for found in batch)
            first += batch[: _SHOWN - len(first)]
    if sheet:
        _draw(sheet, first, here, f"{model.name}: {_sum(len(picks), counts)}")
    if counts["broken"]:
        raise SystemExit(_SOME_BROKEN)


def _named(paths: Sequence[str], null: bool) -> Iterator[str]:
    """The paths of the command line, and in place of `-` those of the list on stdin."""
    from pipeline.data.picks import read_list

    for path in paths:
        yield from read_list(sys.stdin.buffer.read(), b"\0" if null else b"\n") if path == "-" else [path]


def _tell(batch: Sequence["Answer | Broken"], stream: TextIO, form: "Format", top: int | None) -> None:
    """Write the rows of a batch, and a line on stderr for each picture that has none."""
    from pipeline.serving.answers import Answer, plain
    from pipeline.serving.rows import line

    for found in batch:
        if isinstance(found, Answer):
            stream.write(line(found, form, top))
        else:
            tqdm.write(f"{plain(found.path)}: {plain(found.fault)}", file=sys.stderr)
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


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return text
