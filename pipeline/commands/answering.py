"""What commands that take pictures share: arguments, rows, drawn pictures, exit codes."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from pipeline.core.files import atomic_file
from pipeline.core.params import read_threads

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.serving.answers import BrokenFile, Format, PictureFile, Prediction, PredictorLike

SOME_BROKEN = 3  # exit code
CODES = """\
A picture that cannot be read has no row but a line on stderr, `PATH: reason`, and the rest goes on.

exit codes:
  0  every picture is answered
  1  nothing was done, or answers could not be written; a line on stderr says why
  2  wrong usage
  3  some pictures could not be read, the others are answered

examples:
"""


def add_command(commands: "argparse._SubParsersAction[Any]", name: str, summary: str, about: str, examples: str) -> argparse.ArgumentParser:
    """A parser of a command that takes pictures; its help ends with the exit codes and the examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=about, epilog=CODES + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture; a folder: all pictures below; -: a list of both on stdin")
    parser.add_argument("-0", "--null", action="store_true", help="NUL parts the paths of the list on stdin, not line feeds")
    parser.set_defaults(here=Path.cwd())  # where the user stands: commands run in the project's root
    return parser


def picks(parsed: argparse.Namespace) -> list["PictureFile"]:
    """The pictures that the command line names, and in place of `-` those of the list on stdin. Raises PipelineError."""
    from pipeline.serving.answers import find_pictures

    return list(find_pictures(_named(parsed.paths, parsed.null), parsed.here))


def _named(paths: Sequence[str], null: bool) -> Iterator[str]:
    from pipeline.serving.answers import read_list

    for path in paths:
        yield from read_list(sys.stdin.buffer.read(), b"\0" if null else b"\n") if path == "-" else [path]


def bar_title(name: str, output: object) -> str | None:
    """The title of a progress bar; None where rows go to a terminal, since a bar would break them."""
    return None if output is None and sys.stdout.isatty() else name


def tell_broken(broken: "BrokenFile") -> None:
    """A line on stderr for a picture that has no row."""
    from pipeline.serving.answers import plain

    tqdm.write(f"{plain(broken.path)}: {plain(broken.fault)}", file=sys.stderr)


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


def answer(parsed: argparse.Namespace, title: str, open_model: Callable[[int], tuple[str, "PredictorLike"]]) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError.

    `open_model` takes the number of threads and gives what answers, and its name for people.
    """
    from pipeline.core.files import output_path, row_stream
    from pipeline.serving.answers import predict_all, rows_header

    here, threads = parsed.here, read_threads()
    output, sheet = (named and output_path(here, named) for named in (parsed.output, parsed.sheet))
    name, model = open_model(threads)
    pictures = picks(parsed)
    first, counts = list["Prediction | BrokenFile"](), Counter[str]()
    with row_stream(output) as stream:
        stream.write(rows_header(parsed.format, model.class_names, parsed.top))
        for batch in predict_all(model, pictures, here, parsed.abstain_below, parsed.batch_size, threads, bar_title(title, output)):
            _tell(batch, stream, parsed.format, parsed.top)
            counts.update(found.outcome for found in batch)
            first += batch[: _SHOWN - len(first)]
    if sheet:
        _draw(sheet, first, here, f"{name}: {_sum(len(pictures), counts)}")
    if counts["broken"]:
        raise SystemExit(SOME_BROKEN)


def _tell(batch: Sequence["Prediction | BrokenFile"], stream: TextIO, form: "Format", top: int | None) -> None:
    """Write the rows of a batch, and a line on stderr for each picture that has none."""
    from pipeline.serving.answers import Prediction, row_line

    for found in batch:
        if isinstance(found, Prediction):
            stream.write(row_line(found, form, top))
        else:
            tell_broken(found)
    stream.flush()


def _sum(pictures: int, counts: Counter[str]) -> str:
    shown = f" (the first {_SHOWN} are shown)" if pictures > _SHOWN else ""
    return f"{pictures} picture{'s' * (pictures != 1)}{shown}, {counts['abstained']} abstained, {counts['broken']} broken"


def _draw(sheet: Path, first: Sequence["Prediction | BrokenFile"], here: Path, title: str) -> None:
    from pipeline.core.files import writing
    from pipeline.evaluation.galleries import Cell, draw_sheet, thumbnail
    from pipeline.serving.answers import plain

    with writing(sheet):
        cells = [
            Cell(None if found.outcome == "broken" else thumbnail(here / found.path), plain(found.path), plain(found.words), found.outcome)
            for found in first
        ]
        draw_sheet(sheet, cells, title)


def see(parsed: argparse.Namespace, title: str, header: str, look: "Callable[[str, str, Image.Image], str]") -> None:
    """Write the row of each picture, and tell by the exit code whether all could be read. Raises PipelineError.

    `look` takes the path of a picture, a name for what it draws, and the picture, and gives the row.
    """
    from pipeline.core.files import row_stream
    from pipeline.serving.answers import BrokenFile

    names, broken = Names(), 0
    with row_stream(None) as stream:
        stream.write(header)
        for path, picture in _read(parsed, title):
            if isinstance(picture, BrokenFile):
                tell_broken(picture)
                broken += 1
                continue
            stream.write(look(path, names.name(path), picture))
            stream.flush()
    if broken:
        raise SystemExit(SOME_BROKEN)


def _read(parsed: argparse.Namespace, title: str) -> Iterator[tuple[str, "Image.Image | BrokenFile"]]:
    """The path of each picture as it was named and the picture, or why there is none; the next ones are decoded meanwhile."""
    from pipeline.pictures.images import decode, read_ahead
    from pipeline.serving.answers import read_file

    def read(pick: "PictureFile") -> "tuple[str, Image.Image | BrokenFile]":
        return pick.path, read_file(pick, parsed.here, decode)

    for batch in read_ahead(picks(parsed), read, 1, read_threads(), bar_title(title, None)):
        yield from batch


class Names:
    """A name for each picture: that of its file, numbered where another has it, be it in capitals."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def name(self, path: str) -> str:
        """The name of a picture, without an ending."""
        stem = Path(path).stem
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(self._given) + 2))
        given = next(name for name in numbered if name.casefold() not in self._given)
        self._given.add(given.casefold())
        return given


def make_folder(here: Path, named: str) -> Path:
    """The folder in which the drawn pictures go. Raises PipelineError."""
    from pipeline.core.files import writing

    with writing(named):
        (here / named).mkdir(parents=True, exist_ok=True)
    return here / named


def write_picture(picture: "Image.Image", path: Path) -> None:
    """Write a PNG, whole or not at all. Raises PipelineError."""
    from pipeline.core.files import output_path, writing

    with writing(path), atomic_file(output_path(path.parent, path.name)) as partial:
        picture.save(partial, "PNG")
