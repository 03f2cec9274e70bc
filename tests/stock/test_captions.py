"""Words in drawn pictures: inside the picture, never on one another, readable on their colour."""

import numpy as np
import pytest
from PIL import Image

from pipeline.stock import drawing as captions
from pipeline.stock.drawing import Caption, draw_names, with_legend

DARK, BRIGHT = (70, 0, 90), (240, 240, 60)


def written(size, *items):
    """Where the colours of captions are in a white picture: the bounding box of each, or None where it was left out."""
    canvas = Image.new("RGB", size, "white")
    draw_names(canvas, items)
    return [box_of(canvas, caption.colour) for caption, _ in items]


def box_of(canvas, colour):
    """The smallest box (x0, y0, x1, y1) around the pixels of a colour."""
    return Image.fromarray((np.asarray(canvas) == colour).all(axis=2)).getbbox()


def test_a_name_stands_above_its_box():
    [(x0, _, _, y1)] = written((400, 300), (Caption("bee", BRIGHT), (50, 100, 200, 200)))
    assert x0 == pytest.approx(50, abs=2)
    assert y1 == pytest.approx(100, abs=2)


def test_where_there_is_no_room_above_it_stands_in_the_box():
    [(_, y0, _, y1)] = written((400, 300), (Caption("bee", BRIGHT), (50, 4, 200, 200)))
    assert y0 == pytest.approx(4, abs=2)
    assert y1 < 30


def test_at_the_right_end_it_ends_with_its_box():
    [(_, _, x1, _)] = written((400, 300), (Caption("a long name", BRIGHT), (380, 100, 399, 200)))
    assert x1 == pytest.approx(399, abs=2)


def test_two_names_of_one_box_do_not_hide_each_other():
    box = (50, 100, 200, 200)
    first, second = written((400, 300), (Caption("bee", BRIGHT), box), (Caption("ant", DARK), box))
    assert first[3] < second[1] or second[3] < first[1]


def test_a_name_without_a_free_place_is_left_out():
    names = [(Caption("bee", (200 - number, 250, 90)), (2, 2, 60, 30)) for number in range(8)]
    places = written((64, 32), *names)
    assert places[0] is not None
    assert places[-1] is None


@pytest.mark.parametrize(("colour", "ink"), [(BRIGHT, (0, 0, 0)), (DARK, (255, 255, 255))])
def test_letters_are_black_on_bright_and_white_on_dark(colour, ink):
    canvas = Image.new("RGB", (400, 300), (128, 128, 128))
    draw_names(canvas, [(Caption("MMM", colour), (50, 100, 200, 200))])
    x0, y0, x1, y1 = box_of(canvas, colour)
    inside = canvas.crop((x0 + 1, y0 + 1, x1 - 1, y1 - 1))
    assert ink in {pixel for _, pixel in inside.getcolors(10_000)}


def test_a_legend_stands_below_the_picture():
    sheet = with_legend(Image.new("RGB", (400, 300), DARK), [Caption("bee", BRIGHT)])
    assert sheet.size[0] == 400
    assert sheet.crop((0, 0, 400, 300)).getcolors() == [(400 * 300, DARK)]
    assert box_of(sheet, BRIGHT)[1] > 300


def test_a_legend_grows_with_its_entries():
    picture = Image.new("RGB", (400, 300))
    heights = [with_legend(picture, [Caption("a class", BRIGHT)] * count).height for count in (1, 3, 12)]
    assert heights[0] == heights[1] < heights[2]


def test_a_legend_of_a_narrow_picture_is_wide_enough_to_be_read():
    sheet = with_legend(Image.new("RGB", (3, 500), DARK), [Caption("bee", BRIGHT)])
    assert sheet.width == 320
    assert box_of(sheet, DARK)[:3] == (158, 0, 161)


def test_an_entry_that_is_too_long_is_cut():
    sheet = with_legend(Image.new("RGB", (400, 300), "white"), [Caption("M" * 500, BRIGHT)])
    assert sheet.size == with_legend(Image.new("RGB", (400, 300), "white"), [Caption("M", BRIGHT)]).size


def test_of_very_many_entries_the_rest_is_counted(monkeypatch):
    drawn = []
    monkeypatch.setattr(captions, "_draw_entry", lambda _pen, caption, *_: drawn.append(caption.text))
    with_legend(Image.new("RGB", (400, 300)), [Caption(str(number), BRIGHT) for number in range(57)])
    assert (len(drawn), drawn[-2:]) == (41, ["39", "and 17 more"])
