"""Colours of classes: the same everywhere, and unlike each other."""

from itertools import combinations

import numpy as np

from pipeline.stock.drawing import colour_of, is_background, palette, with_palette


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
