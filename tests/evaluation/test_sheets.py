"""The contact sheet: pictures in rows of six, broken ones crossed out, texts cut to fit, equal bytes for equal pictures."""

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.galleries import Cell, draw_sheet, fitting, font, thumbnail

STEP, TOP, ROW = 188, 44, 228  # pixels from a picture to the next, to the first row, from row to row


@pytest.fixture
def red(tmp_path):
    """A red picture, wider than high."""
    Image.new("RGB", (400, 200), (255, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def draw(tmp_path, *cells, title="finetuned: 1 picture"):
    draw_sheet(tmp_path / "sheet.png", cells, title)
    with Image.open(tmp_path / "sheet.png") as image:
        return np.asarray(image.convert("RGB"))


def cell(path, name="red.png", words="bees (0.98)", outcome="answered"):
    return Cell(thumbnail(path), name, words, outcome)


@pytest.mark.parametrize(("count", "size"), [(0, (576, 44)), (1, (576, 272)), (6, (1140, 272)), (7, (1140, 500)), (100, (1140, 3920))])
def test_pictures_are_in_rows_of_six(red, tmp_path, count, size):
    pixels = draw(tmp_path, *[cell(red)] * count)
    assert pixels.shape == (size[1], size[0], 3)


def test_a_picture_is_shown_whole_in_its_square(red, tmp_path):
    square = draw(tmp_path, cell(red))[TOP : TOP + 176, 12:188]
    assert np.flatnonzero((square == (255, 0, 0)).all(axis=(1, 2))).tolist() == list(range(44, 132))


def test_a_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), (255, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    square = draw(tmp_path, cell(tmp_path / "turned.jpg"))[TOP : TOP + 176, 12:188]
    assert np.flatnonzero((square[..., 1] < 128).all(axis=0)).tolist() == list(range(44, 132))


def test_a_tiny_picture_is_enlarged_without_smoothing(tmp_path):
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(tmp_path / "tiny.png")
    square = draw(tmp_path, cell(tmp_path / "tiny.png"))[TOP : TOP + 176, 12:188, 0]
    assert np.unique(square).tolist() == [0, 255]


@pytest.mark.parametrize(("outcome", "colour"), [("abstained", (0xB3, 0x5C, 0)), ("broken", (0xB0, 0, 0x20))])
def test_a_picture_without_an_answer_has_a_frame(red, tmp_path, outcome, colour):
    assert tuple(draw(tmp_path, cell(red, outcome=outcome))[TOP, 12]) == colour


def test_an_answered_picture_has_no_frame(red, tmp_path):
    assert tuple(draw(tmp_path, cell(red))[TOP, 12]) == (0xF2, 0xF2, 0xF2)


def test_a_broken_picture_is_a_crossed_square(tmp_path):
    square = draw(tmp_path, Cell(None, "a.png", "broken", "broken"))[TOP : TOP + 176, 12:188]
    assert tuple(square[88, 88]) == (0xC8, 0xC8, 0xC8)
    assert tuple(square[20, 88]) == (0xF2, 0xF2, 0xF2)


def test_texts_do_not_run_into_the_next_picture(red, tmp_path):
    pixels = draw(tmp_path, cell(red, "x" * 3000, "y" * 3000, "answered"), title="z" * 3000)
    assert (pixels[TOP + 176 : TOP + 216, 188:] == 255).all()
    assert (pixels[:TOP, -11:] == 255).all()


def test_a_long_name_keeps_its_end_and_long_words_their_beginning(red, tmp_path):
    first = draw(tmp_path, cell(red, f"{'a' * 90}.png", f"bees{'e' * 90}"))
    second = draw(tmp_path, cell(red, f"{'b' * 30}{'a' * 60}.png", f"bees{'e' * 60}{'f' * 30}"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["Käfer.png", "пчела.png", "🐝.png", "蜂.png", "$\\frac$.png", "", "ا ب.png"])
def test_a_name_of_any_alphabet_is_drawn(red, tmp_path, name):
    assert draw(tmp_path, cell(red, name)).size


def test_equal_pictures_give_equal_bytes(red, tmp_path):
    for name in ("first.png", "second.png"):
        draw_sheet(tmp_path / name, [cell(red), Cell(None, "a.png", "broken", "broken")], "title")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


# Texts


def test_a_text_that_fits_is_unchanged():
    letters = font(14)
    assert fitting("a bee", round(letters.getlength("a bee")) + 1, letters) == "a bee"


def test_a_longer_text_loses_its_end_or_its_beginning():
    letters = font(14)
    width = round(letters.getlength("a bee…")) + 1
    assert fitting("a bee on a flower", width, letters) == "a bee…"
    assert fitting("a flower, a bee", round(letters.getlength("…a bee")) + 1, letters, keep_end=True) == "…a bee"


def test_a_text_without_room_is_empty():
    assert fitting("a bee", 1, font(14)) == ""


def test_the_font_covers_many_alphabets():
    letters = font(14)
    unknown = letters.getmask("\U0010fffd").getbbox(), bytes(letters.getmask("\U0010fffd"))
    assert all((letters.getmask(letter).getbbox(), bytes(letters.getmask(letter))) != unknown for letter in "äłжαא")
