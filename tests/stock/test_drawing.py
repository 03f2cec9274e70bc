"""What is drawn over pictures: colours of classes, words on boxes, legends, segments and things."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from pipeline.stock import drawing
from pipeline.stock.drawing import (
    Caption,
    colour_of,
    draw_names,
    draw_segments,
    draw_things,
    is_background,
    palette,
    with_legend,
    with_palette,
)
from pipeline.stock.tasks import Detection

NAMES = ["background", "square", "disc"]
GREY, DARK, BRIGHT = (100, 100, 100), (70, 0, 90), (240, 240, 60)


def test_classes_whose_numbers_are_near_have_colours_that_differ():
    distances = [np.abs(np.subtract(colour_of(one), colour_of(other))).sum() for one, other in combinations(range(1, 9), 2)]
    assert min(distances) >= 100  # of 765


def test_no_two_of_the_classes_of_coco_have_the_same_colour():
    assert len({colour_of(label) for label in range(91)}) == 91


def test_the_background_alone_is_black():
    assert palette(["background", "a", "b"])[0].tolist() == [0, 0, 0]
    assert (palette(["a", "b", "c"]).max(axis=1) > 100).all()


def test_the_background_is_known_by_its_name():
    assert [is_background(name) for name in ("background", "Background", "backgrounds", "person")] == [True, True, False, False]


def test_a_picture_with_a_palette_holds_the_numbers_and_shows_the_colours():
    mask = np.array([[0, 1], [2, 2]], np.uint8)
    picture = with_palette(mask, ["background", "a", "b"])
    assert (picture.mode, np.asarray(picture).tolist()) == ("P", [[0, 1], [2, 2]])
    assert np.asarray(picture.convert("RGB"))[[0, 0, 1], [0, 1, 0]].tolist() == [[0, 0, 0], list(colour_of(1)), list(colour_of(2))]


def test_a_palette_holds_256_classes():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(with_palette(mask, [str(number) for number in range(256)])), mask)


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
    monkeypatch.setattr(drawing, "_draw_entry", lambda _pen, caption, *_: drawn.append(caption.text))
    with_legend(Image.new("RGB", (400, 300)), [Caption(str(number), BRIGHT) for number in range(57)])
    assert (len(drawn), drawn[-2:]) == (41, ["39", "and 17 more"])


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
