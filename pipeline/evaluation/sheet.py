"""The contact sheet: small pictures in a grid, each with its name and what was said of it. The same PNG for the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.data.images import decode
from pipeline.evaluation.lettering import fitting, font
from pipeline.files import atomic_file

_COLUMNS, _FEWEST_COLUMNS = 6, 3  # the title needs some width
SIDE, _GAP, _TEXT = 176, 12, 40  # pixels: of a picture, between two, below one
_TITLE = 44
_LETTERS = 14
_TINY = SIDE // 2  # below that a picture is shown pixel by pixel
_COLOURS = {"answered": "#222222", "abstained": "#b35c00", "wrong": "#b00020", "broken": "#b00020"}


@dataclass(frozen=True)
class Cell:
    """A picture on the sheet (None: it does not decode), its name, and in a few words what is said of it; the outcome colours them."""

    picture: Image.Image | None
    name: str
    words: str
    outcome: Literal["answered", "abstained", "wrong", "broken"]


def draw_sheet(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Write the sheet as PNG, whole or not at all. What does not decode is a crossed square; all texts are of printable letters."""
    columns = min(_COLUMNS, max(_FEWEST_COLUMNS, len(cells)))
    rows = -(-len(cells) // columns)
    size = (_GAP + columns * (SIDE + _GAP), _TITLE + rows * (SIDE + _TEXT + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen, letters = ImageDraw.Draw(sheet), font(_LETTERS)
    pen.text((_GAP, _GAP), fitting(title, size[0] - 2 * _GAP, letters), "black", letters)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (SIDE + _GAP), _TITLE + row * (SIDE + _TEXT + _GAP)
        _draw_cell(sheet, pen, cell, left, top, letters)
    with atomic_file(path) as partial:
        sheet.save(partial, "PNG")


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, letters: ImageFont.FreeTypeFont) -> None:
    square = (left, top, left + SIDE - 1, top + SIDE - 1)
    colour = _COLOURS[cell.outcome]
    pen.rectangle(square, "#f2f2f2")
    if cell.picture:
        picture = ImageOps.contain(cell.picture, (SIDE, SIDE))
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
    else:
        pen.line(square, "#c8c8c8", 2)
        pen.line((square[0], square[3], square[2], square[1]), "#c8c8c8", 2)
    if cell.outcome != "answered":
        pen.rectangle(square, outline=colour, width=3)
    pen.text((left, top + SIDE + 3), fitting(cell.name, SIDE, letters, keep_end=True), "#666666", letters)
    pen.text((left, top + SIDE + 20), fitting(cell.words, SIDE, letters), colour, letters)


def thumbnail(path: Path) -> Image.Image:
    """A picture as large as the sheet shows it, tiny ones pixel by pixel. Raises BrokenPicture."""
    image = decode(path, at_least=SIDE)
    tiny = max(image.size) < _TINY
    return ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)
