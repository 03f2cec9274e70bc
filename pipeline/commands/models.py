"""`pipeline models`: which networks there are to start from."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.models.catalogue import Entry

_COLUMNS = ("name", "library", "parameters", "GFLOPs", "px", "licence", "source", "on disk")
_NUMBERS = ("parameters", "GFLOPs", "px")
_WORD = 13  # characters that are shown of a licence or a source


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("models", help="list the networks of torchvision and timm that params.yaml may name")
    parser.add_argument("--search", metavar="TEXT", default="", help="those whose name holds this text")
    parser.add_argument("--library", choices=["torchvision", "timm"], help="those of one library (default: of both)")
    parser.set_defaults(run=lambda parsed: print("\n".join(describe(parsed.search, parsed.library))))


def describe(search: str, library: str | None) -> Iterator[str]:
    """The lines to print. Raises PipelineError with the nearest names where none fits."""
    from pipeline.models import zoo
    from pipeline.models.catalogue import find_names, list_entries

    names = find_names(search, library)
    if not names:
        among = f" among those of {library}" if library else ""
        raise PipelineError(f"{search!r}: no model has that in its name{among}; the nearest are {', '.join(zoo.nearest_names(search))}")
    entries = list(list_entries(names))
    rows = [_COLUMNS, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "  ".join(_aligned(*cell) for cell in zip(row, _COLUMNS, widths, strict=True)).rstrip()
    yield ""
    yield f"{len(entries)} models. GFLOPs: thousand millions of multiply-adds a picture. Take one: backbone.name in params.yaml."
    if any(entry.parameters is None for entry in entries):
        yield "timm has no table of sizes; they are counted where a search leaves 50 of its models or fewer."


def _row(entry: "Entry") -> tuple[str, ...]:
    licence, source = (text if len(text) <= _WORD else f"{text[: _WORD - 1]}…" for text in (entry.licence, entry.source))
    parameters = "-" if entry.parameters is None else f"{entry.parameters / 1e6:,.1f} M"
    gflops = "-" if entry.gflops is None else f"{entry.gflops:,.{1 if entry.gflops >= 100 else 2}f}"
    return entry.name, entry.library, parameters, gflops, str(entry.image_size), licence, source, entry.disk


def _aligned(cell: str, column: str, width: int) -> str:
    return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
