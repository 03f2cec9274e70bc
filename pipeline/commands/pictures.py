"""What commands that take pictures share: how pictures are named, what ends them, a line on stderr for each that cannot be read."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from pipeline.data.picks import Pick
    from pipeline.serving.answers import Broken

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


def picks(parsed: argparse.Namespace) -> list["Pick"]:
    """The pictures that the command line names, and in place of `-` those of the list on stdin. Raises PipelineError."""
    from pipeline.data.picks import find_pictures

    return list(find_pictures(_named(parsed.paths, parsed.null), parsed.here))


def _named(paths: Sequence[str], null: bool) -> Iterator[str]:
    from pipeline.data.picks import read_list

    for path in paths:
        yield from read_list(sys.stdin.buffer.read(), b"\0" if null else b"\n") if path == "-" else [path]


def bar_title(name: str, output: object) -> str | None:
    """The title of a progress bar; None where rows go to a terminal, since a bar would break them."""
    return None if output is None and sys.stdout.isatty() else name


def tell_broken(broken: "Broken") -> None:
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
