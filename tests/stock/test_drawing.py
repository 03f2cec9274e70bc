"""What is drawn over pictures: at a size that can be seen, in the colours of the classes, the same bytes for the same picture."""

import numpy as np
import pytest
from PIL import Image

from pipeline.stock.drawing import colour_of, draw_segments, draw_things
from pipeline.stock.tasks import Detection

NAMES = ["background", "square", "disc"]
GREY = (100, 100, 100)


def found(box=(10, 20, 60, 90), label=1, score=0.9, mask=None):
    return Detection(NAMES[label], label, score, box, mask)


def half(width, height):
    """A mask whose right half is of class 1."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return mask


def test_a_segment_has_the_colour_of_its_class_and_the_background_stays():
    drawn = draw_segments(Image.new("RGB", (600, 400), GREY), half(600, 400), NAMES)
    assert drawn.getpixel((100, 200)) == GREY
    assert drawn.getpixel((500, 200)) == pytest.approx([(100 + part) / 2 for part in colour_of(1)], abs=1)


def test_a_class_has_one_colour_on_things_of_any_colour():
    picture = Image.new("RGB", (600, 400), (200, 30, 30))
    grey = picture.convert("L").getpixel((0, 0))
    drawn = draw_segments(picture, half(600, 400), NAMES)
    assert drawn.getpixel((500, 200)) == pytest.approx([(grey + part) / 2 for part in colour_of(1)], abs=1)


def test_the_edge_of_a_segment_is_white():
    drawn = draw_segments(Image.new("RGB", (600, 400), GREY), half(600, 400), NAMES)
    assert [drawn.getpixel((x, 200)) == (255, 255, 255) for x in range(297, 303)] == [False, False, True, True, False, False]


def test_the_legend_shows_the_classes_that_are_there_with_their_colours():
    picture, mask = Image.new("RGB", (600, 400), GREY), half(600, 400)
    legend = draw_segments(picture, mask, NAMES).crop((0, 400, 600, 500))
    colours = {colour for _, colour in legend.getcolors(100_000)}
    assert colour_of(1) in colours
    assert colour_of(2) not in colours


def test_a_box_is_drawn_in_its_colour_where_it_is():
    drawn = draw_things(Image.new("RGB", (600, 400), GREY), [found((100, 50, 300, 250))])
    assert [drawn.getpixel(place) for place in ((100, 150), (299, 150), (200, 249))] == [colour_of(1)] * 3
    assert [drawn.getpixel(place) for place in ((200, 150), (400, 150))] == [GREY] * 2


def test_a_box_of_a_small_picture_grows_with_it():
    drawn = draw_things(Image.new("RGB", (60, 40), GREY), [found((10, 5, 30, 25))])
    assert drawn.crop((0, 0, 540, 360)).getpixel((10 * 9, 15 * 9)) == colour_of(1)


def test_a_mask_is_drawn_in_the_colour_of_its_class_whatever_its_size():
    mask = half(60, 40) > 0
    drawn = draw_things(Image.new("RGB", (600, 400), GREY), [found((300, 0, 599, 399), mask=mask)])
    assert drawn.getpixel((450, 200)) == pytest.approx([(100 + part) / 2 for part in colour_of(1)], abs=1)
    assert drawn.getpixel((150, 200)) == GREY


def test_the_surest_lies_on_top():
    drawn = draw_things(Image.new("RGB", (600, 400), GREY), [found((100, 50, 300, 250), 1, 0.9), found((100, 50, 300, 250), 2, 0.6)])
    assert drawn.getpixel((100, 200)) == colour_of(1)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((600, 400), (600, 400)), ((100, 50), (600, 300)), ((511, 511), (1022, 1022)), ((4096, 2048), (2048, 1024)), ((5000, 1), (2048, 1))],
)
def test_a_picture_is_drawn_at_a_size_at_which_it_can_be_seen(size, drawn):
    sheet = draw_things(Image.new("RGB", size, GREY), [])
    assert sheet.width == drawn[0]
    assert sheet.crop((0, 0, *drawn)).getcolors() == [(drawn[0] * drawn[1], GREY)]
    assert sheet.height > drawn[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2), (24, 24)])
def test_a_picture_of_any_size_can_be_drawn(size):
    picture = Image.new("RGB", size, GREY)
    box = (0, 0, size[0], size[1])
    assert draw_things(picture, [found(box, mask=np.ones((1, 1), bool))]).width >= 320
    assert draw_segments(picture, np.ones(size[::-1], np.uint8), NAMES).width >= 320


def test_the_same_picture_is_drawn_the_same():
    picture, mask = Image.new("RGB", (60, 40), GREY), half(60, 40)
    assert draw_segments(picture, mask, NAMES).tobytes() == draw_segments(picture, mask, NAMES).tobytes()
