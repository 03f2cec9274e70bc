"""Draw segments, boxes, masks and legends over pictures."""

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.evaluation.galleries import fitting, font
from pipeline.pictures.images import Array
from pipeline.stock.tasks import Detection, shrunk

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
_TURN = 0.618034  # of the circle of hues from a class to the next: by the golden section, neighbours differ
_TONES = ((0.85, 1.0), (0.55, 0.95), (1.0, 0.72))  # saturation and value, in turn
_LEGEND_WIDTH = 320  # pixels, at least
_LEGEND_ENTRIES = 40  # at most
_SMALLEST, _LARGEST = 512, 2048  # pixels of the longer side of a drawn picture
_OPACITY = 0.5


def colour_of(label: int) -> Colour:
    """The colour of a class: red, green and blue from 0 to 255."""
    saturation, value = _TONES[label % len(_TONES)]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * _TURN % 1, saturation, value))
    return red, green, blue


def is_background(name: str) -> bool:
    """Whether a class is the background, which has no colour."""
    return name.lower() == "background"


def palette(class_names: Sequence[str]) -> Array:
    """The colours of the classes, uint8 (classes, 3); the background is black."""
    return np.array([(0, 0, 0) if is_background(name) else colour_of(label) for label, name in enumerate(class_names)], np.uint8)


def with_palette(mask: Array, class_names: Sequence[str]) -> Image.Image:
    """A palette picture of a mask, uint8 (H, W): its pixels are the labels, shown in the colours of the classes."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette(class_names).tobytes())
    return picture


@dataclass(frozen=True)
class Caption:
    """A text on a box or in a legend, and its colour; without one, a legend shows the text alone."""

    text: str
    colour: Colour | None


def _letters_for(canvas: Image.Image) -> ImageFont.FreeTypeFont:
    """Letters that are readable when the whole picture is on the screen."""
    return font(max(14, max(canvas.size) // 50))


def draw_names(canvas: Image.Image, captions: Sequence[tuple[Caption, Box]]) -> None:
    """Write each text at its box, in the given order. A text that would hide another moves to another corner or is left out."""
    pen, letters = ImageDraw.Draw(canvas), _letters_for(canvas)
    taken: list[Box] = []
    for caption, box in captions:
        size = (letters.getlength(caption.text) + letters.size * 0.5, letters.size * 1.4)
        free = (place for place in _places(box, size) if _is_free(place, canvas.size, taken))
        if place := next(free, None):
            taken.append(place)
            pen.rectangle(place, fill=caption.colour, outline="black")
            pen.text((place[0] + letters.size * 0.25, place[1] + letters.size * 0.1), caption.text, _ink(caption.colour), letters)


def _places(box: Box, size: tuple[float, float]) -> Iterator[Box]:
    """Possible places of a text of that width and height: above the box, in it, below it; at its left side, then its right."""
    x0, y0, x1, y1 = box
    for x in (x0, x1 - size[0]):
        for y in (y0 - size[1], y0, y1, y1 - size[1]):
            yield x, y, x + size[0], y + size[1]


def _is_free(place: Box, size: tuple[int, int], taken: Sequence[Box]) -> bool:
    x0, y0, x1, y1 = place
    inside = x0 >= 0 and y0 >= 0 and x1 < size[0] and y1 < size[1]
    return inside and not any(x0 <= other[2] and other[0] <= x1 and y0 <= other[3] and other[1] <= y1 for other in taken)


def _ink(colour: Colour | None) -> str:
    """Black or white, whichever is more readable on a colour."""
    red, green, blue = colour or (255, 255, 255)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def with_legend(picture: Image.Image, captions: Sequence[Caption]) -> Image.Image:
    """The picture with a white strip below that shows each colour with its text."""
    if len(captions) > _LEGEND_ENTRIES:
        captions = [*captions[:_LEGEND_ENTRIES], Caption(f"and {len(captions) - _LEGEND_ENTRIES} more", None)]
    letters, width = _letters_for(picture), max(_LEGEND_WIDTH, picture.width)
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
    """Each text, cut to the width, with the x and y of its entry; y starts below the picture."""
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


def draw_segments(image: Image.Image, mask: Array, class_names: Sequence[str]) -> Image.Image:
    """The picture with its segments in colours, edged in white; the legend shows the share of pixels per class.

    `mask`: the labels, uint8 (H, W) of the picture.
    """
    canvas = _canvas(image)
    resized = Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST)
    labels = np.asarray(resized)
    has_colour = np.array([not is_background(name) for name in class_names])[labels]
    drawn = _tint(canvas, has_colour, Image.fromarray(palette(class_names)[labels]))
    drawn.paste("white", mask=_edges(resized))
    return with_legend(drawn, _shares(mask, class_names))


def draw_things(image: Image.Image, things: Sequence[Detection]) -> Image.Image:
    """The picture with a box and a name per thing, the first things on top, and masks in colours; the legend counts each class.

    If names would hide each other, those of the later things are left out.
    """
    canvas = _canvas(image)
    for thing in reversed(things):
        if thing.mask is not None:
            canvas = _draw_mask(canvas, thing.mask, colour_of(thing.label))
    across, down = canvas.width / image.width, canvas.height / image.height
    boxes = [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in (thing.box for thing in things)]
    pen = ImageDraw.Draw(canvas)
    for thing, box in zip(reversed(things), reversed(boxes), strict=True):
        _draw_box(pen, box, colour_of(thing.label), width=max(2, max(canvas.size) // 300))
    captions = [Caption(f"{thing.name} {thing.score:.2f}", colour_of(thing.label)) for thing in things]
    draw_names(canvas, list(zip(captions, boxes, strict=True)))
    counts = Counter((thing.label, thing.name) for thing in things).most_common()
    legend = [Caption(f"{name}: {count}", colour_of(label)) for (label, name), count in counts]
    return with_legend(canvas, legend or [Caption("nothing found", None)])


def _canvas(image: Image.Image) -> Image.Image:
    """The picture at a size that shows lines and letters: a large one shrunk, a small one enlarged by a whole factor."""
    factor = max(1, -(-_SMALLEST // max(image.size)))
    return shrunk(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), _LARGEST)


def _shares(mask: Array, class_names: Sequence[str]) -> list[Caption]:
    """The classes in a mask, the largest first, with their shares of the pixels."""
    counts = np.bincount(mask.ravel(), minlength=len(class_names))
    return [
        Caption(f"{class_names[label]} {counts[label] / mask.size:.1%}", None if is_background(class_names[label]) else colour_of(label))
        for label in np.argsort(-counts, kind="stable").tolist()
        if counts[label]
    ]


def _edges(labels: Image.Image) -> Image.Image:
    """The borders between classes, two pixels wide: 0 or 255."""
    differs = np.asarray(labels.filter(ImageFilter.MaxFilter(3))) != np.asarray(labels.filter(ImageFilter.MinFilter(3)))
    return Image.fromarray(255 * differs.astype(np.uint8))


def _draw_mask(canvas: Image.Image, mask: Array, colour: Colour) -> Image.Image:
    """The canvas with a mask, bool (h, w) of any size, in a colour, edged in white."""
    resized = Image.fromarray(mask.astype(np.uint8)).resize(canvas.size, Image.Resampling.NEAREST)
    canvas = _tint(canvas, np.asarray(resized) > 0, Image.new("RGB", canvas.size, colour))
    canvas.paste("white", mask=_edges(resized))
    return canvas


def _tint(canvas: Image.Image, mask: Array, colours: Image.Image) -> Image.Image:
    """The canvas; within the mask, bool (H, W), it is grey under half-transparent colours."""
    tinted = Image.blend(canvas.convert("L").convert("RGB"), colours, _OPACITY)
    return Image.composite(tinted, canvas, Image.fromarray(255 * mask.astype(np.uint8)))


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """A coloured line within a black one, visible on any picture."""
    x0, y0, x1, y1 = box
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=width + 2)
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
