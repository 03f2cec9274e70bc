"""Texts cut to a width."""

from pipeline.evaluation.galleries import fitting, font


def test_a_text_that_fits_stays():
    letters = font(14)
    assert fitting("a bee", round(letters.getlength("a bee")) + 1, letters) == "a bee"


def test_a_longer_one_loses_its_end_or_its_beginning():
    letters = font(14)
    width = round(letters.getlength("a bee…")) + 1
    assert fitting("a bee on a flower", width, letters) == "a bee…"
    assert fitting("a flower, a bee", round(letters.getlength("…a bee")) + 1, letters, keep_end=True) == "…a bee"


def test_nothing_is_left_where_there_is_no_room():
    assert fitting("a bee", 1, font(14)) == ""


def test_letters_of_many_alphabets_are_there():
    letters = font(14)
    unknown = letters.getmask("\U0010fffd").getbbox(), bytes(letters.getmask("\U0010fffd"))
    assert all((letters.getmask(letter).getbbox(), bytes(letters.getmask(letter))) != unknown for letter in "äłжαא")
