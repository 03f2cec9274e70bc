"""Words in drawn pictures: the names at boxes, and the legend below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.lettering import fitting, font
from pipeline.stock.colours import Colour

Box = tuple[float, float, float, float]

_LEAST = 320  # pixels that a legend is wide
_MOST = 40  # entries of a legend


@dataclass(frozen=True)
class Caption:
    """A text in its colour; on a box, or in a legend. Without a colour it has no swatch."""

    text: str
    colour: Colour | None


def letters_for(canvas: Image.Image) -> ImageFont.FreeTypeFont:
    """Letters that are read where the picture is seen whole."""
    return font(max(14, max(canvas.size) // 50))


def draw_names(canvas: Image.Image, captions: Sequence[tuple[Caption, Box]]) -> None:
    """Write each text at its box, the first ones first; one that would hide another finds another corner or is left out."""
    pen, letters = ImageDraw.Draw(canvas), letters_for(canvas)
    taken: list[Box] = []
    for caption, box in captions:
        size = (letters.getlength(caption.text) + letters.size * 0.5, letters.size * 1.4)
        free = (place for place in _places(box, size) if _is_free(place, canvas.size, taken))
        if place := next(free, None):
            taken.append(place)
            pen.rectangle(place, fill=caption.colour, outline="black")
            pen.text((place[0] + letters.size * 0.25, place[1] + letters.size * 0.1), caption.text, _ink(caption.colour), letters)


def _places(box: Box, size: tuple[float, float]) -> Iterator[Box]:
    """Where a text of that width and height may stand: above the box, in it, below it, from the left, then from the right."""
    x0, y0, x1, y1 = box
    for x in (x0, x1 - size[0]):
        for y in (y0 - size[1], y0, y1, y1 - size[1]):
            yield x, y, x + size[0], y + size[1]


def _is_free(place: Box, size: tuple[int, int], taken: Sequence[Box]) -> bool:
    x0, y0, x1, y1 = place
    inside = x0 >= 0 and y0 >= 0 and x1 < size[0] and y1 < size[1]
    return inside and not any(x0 <= other[2] and other[0] <= x1 and y0 <= other[3] and other[1] <= y1 for other in taken)


def _ink(colour: Colour | None) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = colour or (255, 255, 255)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def with_legend(picture: Image.Image, captions: Sequence[Caption]) -> Image.Image:
    """The picture with a white strip below, in which each colour has its text."""
    if len(captions) > _MOST:
        captions = [*captions[:_MOST], Caption(f"and {len(captions) - _MOST} more", None)]
    letters, width = letters_for(picture), max(_LEAST, picture.width)
    line = round(letters.size * 1.5)
    entries = list(_laid_out(captions, letters, width, line))
    height = picture.height + max(y for _, _, y in entries) + line + line // 2
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for caption, x, y in entries:
        _draw_entry(pen, caption, x, picture.height + y, letters)
    return sheet


def _laid_out(captions: Sequence[Caption], letters: ImageFont.FreeTypeFont, width: int, line: int) -> Iterator[tuple[Caption, int, int]]:
    """Each text, cut to the width, and where its entry begins: x, and y below the picture."""
    margin = line // 2
    x, y = margin, margin
    for caption in captions:
        text = fitting(caption.text, width - 2 * margin - line, letters)
        needed = round(letters.getlength(text)) + line * (2 if caption.colour else 1)
        if x > margin and x + needed > width:
            x, y = margin, y + line
        yield Caption(text, caption.colour), x, y
        x += needed


def _draw_entry(pen: ImageDraw.ImageDraw, caption: Caption, x: int, y: int, letters: ImageFont.FreeTypeFont) -> None:
    side = round(letters.size)
    if caption.colour:
        pen.rectangle((x, y + 1, x + side, y + 1 + side), fill=caption.colour, outline="black")
        x += side + side // 3
    pen.text((x, y), caption.text, "black", letters)
