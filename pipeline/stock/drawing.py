"""What networks saw, drawn over the pictures: segments, boxes and masks in the colours of their classes, and a legend."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.loading import Array
from pipeline.stock.captions import Box, Caption, draw_names, with_legend
from pipeline.stock.colours import Colour, colour_of, is_background, palette
from pipeline.stock.detect import Found
from pipeline.stock.sizes import shrunk

_SMALLEST, _LARGEST = 512, 2048  # pixels of the longer side of what is drawn
_OPACITY = 0.5


def draw_segments(image: Image.Image, mask: Array, class_names: Sequence[str]) -> Image.Image:
    """The picture with its segments in colours, edged in white; below, each class that is there with its share of the pixels.

    `mask`: the numbers of the classes, uint8 (H, W) of the picture.
    """
    canvas = _canvas(image)
    numbers = Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST)
    labels = np.asarray(numbers)
    has_colour = np.array([not is_background(name) for name in class_names])[labels]
    drawn = _tint(canvas, has_colour, Image.fromarray(palette(class_names)[labels]))
    drawn.paste("white", mask=_edges(numbers))
    return with_legend(drawn, _shares(mask, class_names))


def draw_things(image: Image.Image, things: Sequence[Found]) -> Image.Image:
    """The picture with a box and a name for each thing, the surest on top, masks in colours; below, how many there are of each class.

    Where names would hide each other, those of the less sure are left out.
    """
    canvas = _canvas(image)
    for thing in reversed(things):
        if thing.mask is not None:
            canvas = _draw_mask(canvas, thing.mask, colour_of(thing.label))
    boxes = [_on_canvas(thing.box, canvas.width / image.width, canvas.height / image.height) for thing in things]
    pen = ImageDraw.Draw(canvas)
    for thing, box in zip(reversed(things), reversed(boxes), strict=True):
        _draw_box(pen, box, colour_of(thing.label), width=max(2, max(canvas.size) // 300))
    captions = [Caption(f"{thing.name} {thing.score:.2f}", colour_of(thing.label)) for thing in things]
    draw_names(canvas, list(zip(captions, boxes, strict=True)))
    counts = Counter((thing.label, thing.name) for thing in things).most_common()
    legend = [Caption(f"{name}: {count}", colour_of(label)) for (label, name), count in counts]
    return with_legend(canvas, legend or [Caption("nothing found", None)])


def _canvas(image: Image.Image) -> Image.Image:
    """The picture in a size at which lines and letters can be seen: large ones shrunk, small ones enlarged pixel by pixel."""
    factor = max(1, -(-_SMALLEST // max(image.size)))
    return shrunk(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), _LARGEST)


def _shares(mask: Array, class_names: Sequence[str]) -> list[Caption]:
    """The classes of a mask, the largest first, with their shares."""
    counts = np.bincount(mask.ravel(), minlength=len(class_names))
    present = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label]]
    return [
        Caption(f"{name} {counts[label] / mask.size:.1%}", None if is_background(name) else colour_of(label))
        for label, name in ((label, class_names[label]) for label in present)
    ]


def _edges(numbers: Image.Image) -> Image.Image:
    """Where a class ends and another begins, two pixels wide: 0 or 255."""
    differs = np.asarray(numbers.filter(ImageFilter.MaxFilter(3))) != np.asarray(numbers.filter(ImageFilter.MinFilter(3)))
    return Image.fromarray(255 * differs.astype(np.uint8))


def _draw_mask(canvas: Image.Image, mask: Array, colour: Colour) -> Image.Image:
    """The canvas with a mask, bool (h, w) of any size, in a colour, edged in white."""
    places = Image.fromarray(mask.astype(np.uint8)).resize(canvas.size, Image.Resampling.NEAREST)
    canvas = _tint(canvas, np.asarray(places) > 0, Image.new("RGB", canvas.size, colour))
    canvas.paste("white", mask=_edges(places))
    return canvas


def _tint(canvas: Image.Image, places: Array, colours: Image.Image) -> Image.Image:
    """The canvas with colours laid over a grey picture of it where `places`, bool (H, W), says so."""
    tinted = Image.blend(canvas.convert("L").convert("RGB"), colours, _OPACITY)
    return Image.composite(tinted, canvas, Image.fromarray(255 * places.astype(np.uint8)))


def _on_canvas(box: Box, across: float, down: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 * across, y0 * down, x1 * across, y1 * down


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """A line in a colour within a black one, so that it is seen on any picture."""
    x0, y0, x1, y1 = box
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=width + 2)
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
