"""Duplicates: equal pixels, or the same photograph encoded again."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import inspection as duplicates
from pipeline.pictures.inspection import Groups, exact_duplicates, inspect, near_duplicates


def photograph(number, width=120, height=90):
    """A picture like a photograph's: smooth random fields, the finer the fainter."""
    generator = np.random.default_rng(number)
    field = np.zeros((height, width, 3))
    for power in range(1, 6):
        grid = Image.fromarray(generator.integers(0, 256, (2**power, 2**power, 3), dtype=np.uint8))
        field += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / 2**power
    return Image.fromarray(field.astype(np.uint8))


def look(image, kind="PNG", **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return inspect(file.getvalue()).info


def disc(colour, radius=20):
    y, x = np.mgrid[0:64, 0:64]
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[(x - 25) ** 2 + (y - 35) ** 2 < radius**2] = colour
    return Image.fromarray(pixels)


def test_a_group_is_called_by_its_first_name():
    groups = Groups("abc")
    groups.join(["c", "b"])
    assert [groups.of(name) for name in "abc"] == ["a", "b", "b"]


def test_groups_with_a_name_in_common_are_one():
    groups = Groups("abcde")
    for names in ("de", "cd", "bc"):
        groups.join(names)
    assert [groups.of(name) for name in "abcde"] == ["a", "b", "b", "b", "b"]


def test_two_large_groups_become_one():
    groups = Groups("abcdef")
    for names in ("abc", "def", "cf"):
        groups.join(names)
    assert {groups.of(name) for name in "abcdef"} == {"a"}


def test_equal_pictures_stand_in_the_order_of_their_names():
    one, other = look(photograph(0)), look(photograph(1))
    assert exact_duplicates({"d": one, "c": other, "b": one, "a": other, "e": one}) == [["a", "c"], ["b", "d", "e"]]


@pytest.mark.parametrize("number", range(4))
def test_a_photograph_saved_as_a_worse_jpeg_is_near(number):
    looks = {"a": look(photograph(number)), "b": look(photograph(number), "JPEG", quality=60)}
    assert near_duplicates(looks, 0.99) == [("a", "b")]


@pytest.mark.parametrize("number", range(4))
def test_a_photograph_of_half_the_size_is_near(number):
    looks = {"a": look(photograph(number)), "b": look(photograph(number).resize((60, 45), Image.Resampling.LANCZOS))}
    assert near_duplicates(looks, 0.99) == [("a", "b")]


def test_a_small_mark_in_a_corner_leaves_a_photograph_near():
    marked = photograph(0)
    marked.paste((255, 255, 255), (0, 0, 4, 3))
    assert near_duplicates({"a": look(photograph(0)), "b": look(marked)}, 0.99) == [("a", "b")]


def test_different_photographs_are_not_near():
    assert near_duplicates({str(number): look(photograph(number)) for number in range(40)}, 0.9) == []


def test_a_photograph_and_its_mirror_image_are_not_near():
    assert near_duplicates({"a": look(photograph(0)), "b": look(photograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))}, 0.9) == []


def test_one_shape_in_two_colours_is_alike_to_the_hash_alone():
    red, green = look(disc((255, 0, 0))), look(disc((0, 130, 0)))  # both are of brightness 76
    assert (red.perceptual_hash ^ green.perceptual_hash).bit_count() <= 6


def test_one_shape_in_two_colours_is_not_near():
    assert near_duplicates({"a": look(disc((255, 0, 0))), "b": look(disc((0, 130, 0)))}, 0.5) == []


@pytest.mark.parametrize(("similarity", "expected"), [(0.9, [("a", "b")]), (0.999, [])])
def test_the_similarity_is_what_is_asked_for(similarity, expected):
    pixels = np.asarray(photograph(0), dtype=float)
    grained = pixels + np.random.default_rng(0).normal(0, 30, pixels.shape)
    looks = {"a": look(photograph(0)), "b": look(Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8)))}
    assert near_duplicates(looks, similarity) == expected


def test_a_similarity_is_pearsons_r():
    one, other = (look(photograph(number)).thumbnail for number in range(2))
    assert duplicates._correlation(one, other) == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_pictures_of_one_colour_are_near_to_none():
    looks = {str(level): look(Image.new("RGB", (40, 40), (level, level, level))) for level in (0, 1, 128, 255)}
    assert near_duplicates(looks, 0.1) == []


def test_pictures_of_nearly_one_colour_are_near_to_none():
    faint = np.asarray(photograph(0)) // 64  # 4 levels
    looks = {str(level): look(Image.fromarray((faint + level).astype(np.uint8))) for level in (100, 150)}
    assert near_duplicates(looks, 0.1) == []


def test_thumbnails_without_any_contrast_do_not_correlate():
    flat = np.full((32, 32, 3), 7, np.uint8)
    assert duplicates._correlation(flat, flat) == 0


def test_of_equal_pictures_the_first_stands_for_all():
    one, other = look(photograph(0)), look(photograph(0), "JPEG")
    assert near_duplicates({"d": one, "b": one, "c": other, "a": other}, 0.9) == [("a", "b")]


def test_as_many_pairs_are_named_as_link_what_is_alike():
    looks = {str(quality): look(photograph(0), "JPEG", quality=quality) for quality in (60, 70, 80, 90)}
    assert near_duplicates(looks, 0.9) == [("60", "70"), ("60", "80"), ("60", "90")]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_pictures_are_near_whatever_block_they_lie_in(rows, monkeypatch):
    monkeypatch.setattr(duplicates, "_ROWS", rows)
    looks = {f"{number}.png": look(photograph(number)) for number in range(6)}
    looks |= {f"{9 - number}.jpg": look(photograph(number), "JPEG") for number in range(3)}
    assert sorted(near_duplicates(looks, 0.99)) == [("0.png", "9.jpg"), ("1.png", "8.jpg"), ("2.png", "7.jpg")]


def test_the_order_of_the_listing_does_not_matter():
    looks = {str(quality): look(photograph(quality // 20), "JPEG", quality=quality) for quality in range(40, 100, 5)}
    assert near_duplicates(looks, 0.9) == near_duplicates(dict(reversed(looks.items())), 0.9)


@pytest.mark.parametrize("find", [exact_duplicates, lambda looks: near_duplicates(looks, 0.9)])
def test_nothing_is_like_nothing(find):
    assert find({}) == []
