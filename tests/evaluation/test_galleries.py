"""Which pictures are chosen, worked by hand, and what is written of them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.core.files import read_json
from pipeline.evaluation.galleries import TITLES, choose, likely_mislabelled, write_galleries

LABELS = np.array([0, 0, 0, 1, 1, 1])
PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.45, 0.55], [0.3, 0.7], [0.55, 0.45]])


def test_mistakes_are_the_surest_wrong_answers():
    assert choose(LABELS, PROBS, 0)["mistakes"].tolist() == [2, 5]


def test_the_least_sure_answers_have_the_lowest_top_probability():
    assert choose(LABELS, PROBS, 0)["least_sure"].tolist()[:3] == [3, 5, 1]


def test_a_suspect_is_answered_as_surely_as_pictures_that_are_labelled_so():
    # Pictures labelled 1 get 0.567 for it on average, those labelled 0 get 0.517 for theirs: 0.95 and 0.55 are as much.
    assert likely_mislabelled(LABELS, PROBS).tolist() == [2, 5]
    assert likely_mislabelled(LABELS, np.array([*PROBS[:5], [0.51, 0.49]])).tolist() == [2]


def test_a_class_that_no_picture_is_labelled_makes_no_suspect():
    assert likely_mislabelled(np.array([0, 0]), np.array([[0.9, 0.1], [0.1, 0.9]])).tolist() == []


def test_the_random_draw_takes_the_seed():
    labels, probs = np.zeros(100, int), np.full((100, 2), 0.5)
    draws = [choose(labels, probs, seed)["random"].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == sorted(set(draws[0]))


def test_no_gallery_has_more_than_twelve_pictures():
    labels, probs = np.zeros(100, int), np.tile([[0.2, 0.8]], (100, 1))
    assert [len(numbers) for numbers in choose(labels, probs, 0).values()] == [12, 12, 0, 12]  # no picture is labelled 1


@pytest.fixture
def written(tmp_path):
    """Galleries of three pictures, of which one has a map."""
    names = ("ants/<b>.png", "ants/2.png", "bees/3.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(path)
    rows = [{"image_id": name, "label": name[:4], "predicted": "bees", "prob_ants": "0.250000", "prob_bees": "0.750000"} for name in names]
    chosen = {"mistakes": np.array([1, 0]), "least_sure": np.array([2]), "mislabelled": np.array([], int), "random": np.array([0, 2])}
    write_galleries(tmp_path, chosen, rows, paths, {1: Image.new("RGB", (176, 176), "red")})
    return tmp_path


def test_each_gallery_has_its_sheet(written):
    assert {path.stem for path in written.glob("gallery_*.png")} == {f"gallery_{kind}" for kind in TITLES}


def test_a_map_stands_beside_its_picture(written):
    with Image.open(written / "gallery_mistakes.png") as sheet:
        assert sheet.width == 12 + 3 * 188


def test_what_is_told_of_a_picture_is_what_its_row_says(written):
    facts = read_json(written / "galleries.json")
    assert facts["galleries"]["mistakes"][1] == {
        "image_id": "ants/<b>.png", "label": "ants", "predicted": "bees", "label_probability": 0.25, "probability": 0.75
    }  # fmt: skip


def test_every_picture_is_held_once_with_its_map(written):
    pictures = read_json(written / "galleries.json")["pictures"]
    assert {name: picture["map"] is None for name, picture in pictures.items()} == {
        "ants/<b>.png": True, "ants/2.png": False, "bees/3.png": True
    }  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(pictures["bees/3.png"]["picture"].partition(",")[2]))) as image:
        assert image.size == (176, 88)
