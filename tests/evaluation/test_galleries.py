"""Which pictures each gallery contains, worked by hand, what is written of them, and the montage of the classes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.core.files import read_json
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.galleries import TITLES, choose, likely_mislabelled, montage, sample_per_class, write_galleries
from pipeline.pictures.manifest import Picture

LABELS = np.array([0, 0, 0, 1, 1, 1])
PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.45, 0.55], [0.3, 0.7], [0.55, 0.45]])
ANSWERS = read_answers(LABELS, PROBS)


def test_mistakes_are_the_most_confident_wrong_answers():
    assert choose(ANSWERS, PROBS, 0)["mistakes"].tolist() == [2, 5]


def test_the_least_confident_answers_have_the_lowest_top_probability():
    assert choose(ANSWERS, PROBS, 0)["least_sure"].tolist()[:3] == [3, 5, 1]


def test_a_suspect_is_as_probable_as_the_pictures_with_the_predicted_label():
    # The mean probability of label 1 is 0.567 on its pictures, that of label 0 is 0.517: 0.95 and 0.55 are at least as high.
    assert likely_mislabelled(ANSWERS, PROBS).tolist() == [2, 5]
    probs = np.array([*PROBS[:5], [0.51, 0.49]])
    assert likely_mislabelled(read_answers(LABELS, probs), probs).tolist() == [2]


def test_a_class_without_pictures_has_no_suspects():
    probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert likely_mislabelled(read_answers(np.array([0, 0]), probs), probs).tolist() == []


def test_the_random_gallery_follows_the_seed():
    labels, probs = np.zeros(100, int), np.full((100, 2), 0.5)
    draws = [choose(read_answers(labels, probs), probs, seed)["random"].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == sorted(set(draws[0]))


def test_no_gallery_has_more_than_twelve_pictures():
    labels, probs = np.zeros(100, int), np.tile([[0.2, 0.8]], (100, 1))
    assert [len(numbers) for numbers in choose(read_answers(labels, probs), probs, 0).values()] == [
        12,
        12,
        0,
        0,
        12,
    ]  # no picture is labelled 1


@pytest.fixture
def written(tmp_path):
    """Galleries of three pictures, one of which has a map."""
    names = ("ants/<b>.png", "ants/2.png", "bees/3.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(path)
    rows = {
        number: {"image_id": name, "label": name[:4], "predicted": "bees", "probability": "0.750000", "label_probability": "0.250000"}
        for number, name in enumerate(names)
    }
    chosen = {"mistakes": np.array([1, 0]), "least_sure": np.array([2]), "mislabelled": np.array([], int), "random": np.array([0, 2])}
    chosen["unfamiliar"] = np.array([2, 1])
    write_galleries(tmp_path, chosen, rows, 3, dict(enumerate(paths)), {1: Image.new("RGB", (176, 176), "red")})
    return tmp_path


def test_each_gallery_has_a_sheet(written):
    assert {path.stem for path in written.glob("gallery_*.png")} == {f"gallery_{kind}" for kind in TITLES}


def test_a_map_is_beside_its_picture(written):
    with Image.open(written / "gallery_mistakes.png") as sheet:
        assert sheet.width == 12 + 3 * 188


def test_a_picture_has_the_probabilities_of_its_row(written):
    facts = read_json(written / "galleries.json")
    assert facts["galleries"]["mistakes"][1] == {
        "image_id": "ants/<b>.png", "label": "ants", "predicted": "bees", "label_probability": 0.25, "probability": 0.75
    }  # fmt: skip


def test_every_picture_is_stored_once_with_its_map(written):
    pictures = read_json(written / "galleries.json")["pictures"]
    assert {name: picture["map"] is None for name, picture in pictures.items()} == {
        "ants/<b>.png": True, "ants/2.png": False, "bees/3.png": True
    }  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(pictures["bees/3.png"]["picture"].partition(",")[2]))) as image:
        assert image.size == (176, 88)


# The montage


def make_pictures(classes, each):
    return [
        Picture(f"{label}/{number}.png", f"{label}/{number}.png", "0" * 64, f"{label:03d}", "train", "", 8, 8)
        for label in range(classes)
        for number in range(each)
    ]


@pytest.mark.parametrize(("classes", "drawn", "each"), [(2, 2, 8), (40, 40, 8), (100, 100, 3), (200, 150, 2)])
def test_the_more_classes_there_are_the_fewer_pictures_of_each(classes, drawn, each):
    sample = sample_per_class(make_pictures(classes, 10), 0)
    assert (len(sample), {len(pictures) for pictures in sample.values()}) == (drawn, {each})


def test_all_pictures_of_a_small_class_are_drawn():
    assert {picture.path for picture in sample_per_class(make_pictures(2, 3), 0)["000"]} == {"0/0.png", "0/1.png", "0/2.png"}


def test_the_seed_decides_which_pictures_are_drawn():
    pictures = make_pictures(2, 100)
    assert sample_per_class(pictures, 0) == sample_per_class(pictures, 0)
    assert sample_per_class(pictures, 0) != sample_per_class(pictures, 1)


def test_the_montage_contains_thumbnails(tmp_path):
    (tmp_path / "0").mkdir()
    Image.new("RGB", (300, 150), "red").save(tmp_path / "0" / "0.png")
    (url,) = montage(make_pictures(1, 1), tmp_path, 0)["000"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.size == (96, 48)
