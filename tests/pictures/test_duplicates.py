"""Duplicates: equal pixels, or the same photograph encoded again."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates

from pipeline.pictures import likeness
from pipeline.pictures.inspection import Groups, exact_duplicates, inspect, near_duplicates
from pipeline.pictures.likeness import LIKENESS, near_pairs


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


CHANGES = {
    "darker": lambda image: image.point(lambda level: round(level * 0.8)),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "turned by 1.5 degrees": lambda image: image.rotate(1.5, Image.Resampling.BICUBIC),
    "turned back by 1.5 degrees": lambda image: image.rotate(-1.5, Image.Resampling.BICUBIC),
    "cropped by 1 %": lambda image: image.crop((4, 3, 396, 297)),
    "cropped by 4 %": lambda image: image.crop((16, 12, 384, 288)),
    "mirrored and cropped by 4 %": lambda image: ImageOps.mirror(image).crop((16, 12, 384, 288)),
    "a black sign in a corner": lambda image: pasted(image, (0, 0, 0), (0, 0, 60, 45)),
    "a white bar below": lambda image: pasted(image, (255, 255, 255), (0, 258, 400, 300)),
}


def pasted(image, colour, box):
    marked = image.copy()
    marked.paste(colour, box)
    return marked


@pytest.mark.parametrize("number", [10, 11, 12])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_photograph_is_near(change, number):
    original = photograph(number, 400, 300)
    looks = {"a": look(original), "b": look(CHANGES[change](original)), "c": look(photograph(13, 400, 300))}
    assert near_duplicates(looks, 0.95) == [("a", "b")]


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


def test_a_picture_of_few_pixels_and_its_mirror_image_are_not_near():
    tiny = photograph(0, 31, 40)
    assert near_duplicates({"a": look(tiny), "b": look(ImageOps.mirror(tiny))}, 0.9) == []


def test_pictures_of_few_pixels_are_near_only_if_they_hardly_differ():
    pixels = np.asarray(photograph(0, 28, 28), dtype=float)
    noise = np.random.default_rng(0).normal(0, 1, pixels.shape)
    looks = {str(grain): look(Image.fromarray(np.clip(pixels + grain * noise, 0, 255).astype(np.uint8))) for grain in (0, 2, 40)}
    assert near_duplicates(looks, 0.5) == [("0", "2")]


def test_one_shape_in_two_colours_is_alike_to_the_hash_alone():
    red, green = look(disc((255, 0, 0))), look(disc((0, 130, 0)))  # both are of brightness 76
    assert (red.likeness.hashes[0] ^ green.likeness.hashes[0]).bit_count() <= 6


def test_one_shape_in_two_colours_is_not_near():
    assert near_duplicates({"a": look(disc((255, 0, 0))), "b": look(disc((0, 130, 0)))}, 0.5) == []


@pytest.mark.parametrize(("similarity", "expected"), [(0.9, [("a", "b")]), (0.999, [])])
def test_the_similarity_is_what_is_asked_for(similarity, expected):
    pixels = np.asarray(photograph(0), dtype=float)
    grained = pixels + np.random.default_rng(0).normal(0, 12, pixels.shape)
    looks = {"a": look(photograph(0)), "b": look(Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8)))}
    assert near_duplicates(looks, similarity) == expected


def test_a_similarity_is_pearsons_r():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24), dtype=np.uint8)
    # A sample of the centre of 16.8 x 16.8 pixels, by its definition.
    at = 12 + (np.arange(16) + 0.5 - 8) * 16.8 / 16 - 0.5
    one, other = (map_coordinates(picture.astype(float), np.meshgrid(at, at, indexing="ij"), order=1) for picture in pixels)
    (found,) = likeness._correlations(pixels[:1].reshape(1, -1), pixels[1:].reshape(1, -1), 0)
    assert found == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("number", range(4))
def test_a_hash_is_the_sign_of_each_low_frequency(number):
    # A sum of cosine waves with the frequencies of the first bits: (0, 1), (1, 0), (0, 2), (1, 1), (2, 0).
    signs = np.random.default_rng(number).choice([-1, 1], 5)
    step = (np.arange(64) + 0.5) / 64
    place = (step - 0.15) / 0.7  # the waves fit into the centre, of 70 %
    waves = [(0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    shapes = [np.outer(np.cos(np.pi * down * place), np.cos(np.pi * across * place)) for down, across in waves]
    brightness = 128 + sum(20 * sign * shape for sign, shape in zip(signs, shapes, strict=True))
    first = likeness._hashes(brightness)[0].tobytes()[0]
    assert [bool(first >> (7 - bit) & 1) for bit in range(5)] == (signs > 0).tolist()


def test_a_hash_of_a_mirror_image_is_the_mirrored_hash():
    hashes, mirrored = (look(image).likeness.hashes for image in (photograph(0, 64, 64), ImageOps.mirror(photograph(0, 64, 64))))
    assert [(one ^ other).bit_count() <= 2 for one, other in zip(hashes[5:8], mirrored[:3], strict=True)] == [True] * 3


def test_pictures_of_one_colour_are_near_to_none():
    looks = {str(level): look(Image.new("RGB", (40, 40), (level, level, level))) for level in (0, 1, 128, 255)}
    assert near_duplicates(looks, 0.1) == []


def test_pictures_of_nearly_one_colour_are_near_to_none():
    faint = np.asarray(photograph(0)) // 64  # 4 levels
    looks = {str(level): look(Image.fromarray((faint + level).astype(np.uint8))) for level in (100, 150)}
    assert near_duplicates(looks, 0.1) == []


def test_thumbnails_without_any_contrast_do_not_correlate():
    flat = np.full((1, 576), 7, np.uint8)
    assert likeness._correlations(flat, flat, 0) == pytest.approx(0)


def test_of_equal_pictures_the_first_stands_for_all():
    one, other = look(photograph(0)), look(photograph(0), "JPEG")
    assert near_duplicates({"d": one, "b": one, "c": other, "a": other}, 0.9) == [("a", "b")]


def test_as_many_pairs_are_named_as_link_what_is_alike():
    looks = {str(quality): look(photograph(0), "JPEG", quality=quality) for quality in (60, 70, 80, 90)}
    pairs = near_duplicates(looks, 0.9)
    groups = Groups(looks)
    for pair in pairs:
        groups.join(pair)
    assert (len(pairs), {groups.of(name) for name in looks}) == (3, {"60"})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pictures_are_near_whatever_block_they_are_in(size, monkeypatch):
    monkeypatch.setattr(likeness, "_BLOCK", size)
    looks = {f"{number}.png": look(photograph(number)) for number in range(6)}
    looks |= {f"{9 - number}.jpg": look(photograph(number), "JPEG") for number in range(3)}
    assert sorted(near_duplicates(looks, 0.99)) == [("0.png", "9.jpg"), ("1.png", "8.jpg"), ("2.png", "7.jpg")]


def described(hashes):
    """Descriptions of pictures that differ in their first hash alone; no view of them is near another's."""
    grey = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    rows = np.zeros(len(hashes), LIKENESS)
    rows["hashes"], rows["grey"] = 0xFFFFFFFFFFFFFFFF, grey
    rows["hashes"][:, 0] = hashes
    return rows


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_copies_are_found_among_thousands_of_other_pictures(bits):
    generator = np.random.default_rng(bits)
    hashes = generator.integers(0, 1 << 63, 3000, dtype=np.uint64)
    copies = [hashes[number] ^ np.uint64(sum(1 << int(bit) for bit in generator.choice(63, bits, replace=False))) for number in range(40)]
    pairs = near_pairs(described([*hashes, *copies]), 0.9)
    assert sorted(map(sorted, pairs)) == [[number, 3000 + number] for number in range(40)]


def test_a_crowd_of_equal_hashes_is_one_group():
    groups = Groups(range(1500))
    for pair in near_pairs(described([5] * 1500), 0.9):
        groups.join(pair)
    assert {groups.of(number) for number in range(1500)} == {0}


def test_pictures_whose_hashes_are_too_common_are_compared_a_bounded_number_of_times(monkeypatch):
    compared = []
    correlations = likeness._correlations

    def count(greys, others, view):
        compared.append(len(greys))
        return correlations(greys, others, view) - 2

    monkeypatch.setattr(likeness, "_correlations", count)
    assert near_pairs(described([5] * 300), 0.9) == []
    assert sum(compared) <= 300 * (likeness._FAILURES + 1)


def test_the_order_of_the_listing_does_not_matter():
    looks = {str(quality): look(photograph(quality // 20), "JPEG", quality=quality) for quality in range(40, 100, 5)}
    assert near_duplicates(looks, 0.9) == near_duplicates(dict(reversed(looks.items())), 0.9)


@pytest.mark.parametrize("find", [exact_duplicates, lambda looks: near_duplicates(looks, 0.9)])
def test_nothing_is_like_nothing(find):
    assert find({}) == []
