"""What the commands that take pictures share: arguments, rows, drawn pictures, exit codes."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.serving.predictions import BrokenFile, Format, PictureFile, Prediction, PredictorLike

SOME_BROKEN = 3  # exit code
CODES = """\
A picture that cannot be read has no row. It is reported on stderr as `PATH: reason`, and the command goes on.

exit codes:
  0  all pictures have rows
  1  no rows, or they could not be written; a line on stderr gives the reason
  2  wrong usage
  3  some pictures could not be read; all others have rows

examples:
"""
_SHEET_SIZE = 100  # pictures on a contact sheet


def add_command(commands: "argparse._SubParsersAction[Any]", name: str, summary: str, about: str, examples: str) -> argparse.ArgumentParser:
    """Add the parser of a command that takes pictures. Its help ends with the exit codes and the examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=about, epilog=CODES + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture; a folder: all pictures in it; -: a list of both on stdin")
    parser.add_argument("-0", "--null", action="store_true", help="the paths on stdin are separated by NUL, not by line feeds")
    parser.set_defaults(here=Path.cwd())  # the user's working directory: commands run in the project's root
    return parser


def whole(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def png(text: str) -> str:
    """The name of a PNG file, for argparse."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return text


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def add_row_arguments(parser: argparse.ArgumentParser, top: int | None) -> None:
    """Add the arguments that `answer` reads. `top` is the default number of classes in a row; None means all."""
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    classes = "the K most probable classes" + (" (default: %(default)s)" if top else " instead of all")
    parser.add_argument("--top", type=whole, default=top, metavar="K", help=classes)
    parser.add_argument("--abstain-below", type=share, default=0.0, metavar="P", help="predict no class if its probability is below P")
    parser.add_argument("--output", metavar="FILE", help="write the rows to a file, whole or not at all (default: stdout, row by row)")
    parser.add_argument("--sheet", type=png, metavar="FILE.png", help=f"draw a contact sheet of the first {_SHEET_SIZE} pictures")
    parser.add_argument("--batch-size", type=whole, default=32, metavar="N", help="pictures per batch (default: 32)")


def picture_files(parsed: argparse.Namespace) -> Iterator["PictureFile"]:
    """The pictures that the command line names, with the list on stdin in place of `-`. Raises PipelineError."""
    from pipeline.serving.predictions import find_pictures, read_list

    separator = b"\0" if parsed.null else b"\n"
    names = [read_list(sys.stdin.buffer.read(), separator) if path == "-" else [path] for path in parsed.paths]
    return find_pictures((name for listed in names for name in listed), parsed.here)


def answer(
    parsed: argparse.Namespace,
    title: str,
    open_model: Callable[[int], tuple[str, "PredictorLike"]],
    run: Callable[..., Iterator[list["Prediction | BrokenFile"]]] | None = None,
) -> None:
    """Write a row per picture and exit with SOME_BROKEN if some could not be read. Raises PipelineError.

    `open_model` takes the number of threads and returns the name of the model and the model. `run`: takes the place of `predict_all`.
    """
    from pipeline.core.files import output_path, row_stream
    from pipeline.core.params import read_threads
    from pipeline.serving.predictions import predict_all, rows_header

    here, threads = parsed.here, read_threads()
    output, sheet = (named and output_path(here, named) for named in (parsed.output, parsed.sheet))
    name, model = open_model(threads)
    files = picture_files(parsed)
    first, outcomes = list["Prediction | BrokenFile"](), Counter[str]()
    with row_stream(output) as stream:
        stream.write(rows_header(parsed.format, model.class_names, parsed.top, model.tells_unfamiliar))
        bar = _bar_title(title, output)
        for batch in (run or predict_all)(model, files, here, parsed.abstain_below, parsed.batch_size, threads, bar):
            _write_rows(batch, stream, parsed.format, parsed.top)
            outcomes.update(item.outcome for item in batch)
            first += batch[: _SHEET_SIZE - len(first)]
    if sheet:
        count = outcomes.total()
        shown = f" (the first {_SHEET_SIZE} are shown)" if count > _SHEET_SIZE else ""
        total = f"{count} picture{'s' * (count != 1)}{shown}"
        refused = f", {outcomes['refused']} refused as unfamiliar" if outcomes["refused"] else ""
        _draw_sheet(sheet, first, here, f"{name}: {total}, {outcomes['abstained']} abstained{refused}, {outcomes['broken']} broken")
    if outcomes["broken"]:
        raise SystemExit(SOME_BROKEN)


def _bar_title(name: str, output: object) -> str | None:
    """The title of the progress bar; None, no bar, if rows go to a terminal: a bar would garble them."""
    return None if output is None and sys.stdout.isatty() else name


def _write_rows(batch: Sequence["Prediction | BrokenFile"], stream: TextIO, form: "Format", top: int | None) -> None:
    from pipeline.serving.predictions import BrokenFile, row_line

    for item in batch:
        if isinstance(item, BrokenFile):
            _report_broken(item)
        else:
            stream.write(row_line(item, form, top))
    stream.flush()


def _report_broken(broken: "BrokenFile") -> None:
    from tqdm import tqdm

    from pipeline.serving.predictions import printable

    tqdm.write(f"{printable(broken.path)}: {printable(broken.fault)}", file=sys.stderr)  # above a progress bar


def _draw_sheet(sheet: Path, first: Sequence["Prediction | BrokenFile"], here: Path, title: str) -> None:
    from pipeline.core.files import writing
    from pipeline.evaluation.galleries import Cell, draw_sheet, thumbnail
    from pipeline.serving.predictions import printable

    with writing(sheet):
        pictures = [None if item.outcome == "broken" else thumbnail(here / item.path) for item in first]
        captions = [(printable(item.path), printable(item.caption), item.outcome) for item in first]
        draw_sheet(sheet, [Cell(picture, *caption) for picture, caption in zip(pictures, captions, strict=True)], title)


def see(parsed: argparse.Namespace, title: str, header: str, look: "Callable[[str, str, Image.Image], str]") -> None:
    """Write a row per picture and exit with SOME_BROKEN if some could not be read. Raises PipelineError.

    `look` takes the path of a picture, a unique name for the files that it writes, and the picture. It returns the row.
    """
    from pipeline.core.files import row_stream
    from pipeline.serving.predictions import BrokenFile

    names, broken = set[str](), 0
    with row_stream(None) as stream:
        stream.write(header)
        for path, picture in _read_pictures(parsed, title):
            if isinstance(picture, BrokenFile):
                _report_broken(picture)
                broken += 1
                continue
            stream.write(look(path, _unique_name(path, names), picture))
            stream.flush()
    if broken:
        raise SystemExit(SOME_BROKEN)


def _read_pictures(parsed: argparse.Namespace, title: str) -> Iterator[tuple[str, "Image.Image | BrokenFile"]]:
    """The path and the picture of each named file, or why there is none. Threads decode the next ones in the meantime."""
    from pipeline.core.params import read_threads
    from pipeline.pictures.images import decode, read_ahead
    from pipeline.serving.predictions import read_file

    def read(file: "PictureFile") -> "tuple[str, Image.Image | BrokenFile]":
        return file.path, read_file(file, parsed.here, decode)

    for batch in read_ahead(list(picture_files(parsed)), read, 1, read_threads(), _bar_title(title, None)):
        yield from batch


def _unique_name(path: str, taken: set[str]) -> str:
    """The file's name without suffix, numbered if it is taken, in whatever case. It is then added to the taken names."""
    stem = Path(path).stem
    candidates = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(taken) + 2))
    name = next(name for name in candidates if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def make_folder(here: Path, named: str) -> Path:
    """The folder for drawn pictures; it is made if it is missing. Raises PipelineError."""
    from pipeline.core.files import writing

    with writing(named):
        (here / named).mkdir(parents=True, exist_ok=True)
    return here / named


def write_picture(picture: "Image.Image", path: Path) -> None:
    """Write a PNG file, whole or not at all. Raises PipelineError."""
    from pipeline.core.files import atomic_file, output_path, writing

    with writing(path), atomic_file(output_path(path.parent, path.name)) as partial:
        picture.save(partial, "PNG")
