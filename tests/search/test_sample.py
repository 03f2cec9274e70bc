"""A sample holds of each class as many pictures as of the others."""

from collections import Counter

from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.search.probing import draw_sample, read_sample

COUNTS = {"ant": 50, "bee": 5}
PICTURES = [Picture(f"{name}/{number:03d}.png", "", "", name, "train", "", 8, 8) for name in COUNTS for number in range(COUNTS[name])]


def test_a_rare_class_is_drawn_whole_before_another_is_drawn_more_often():
    assert Counter(picture.label for picture in draw_sample(PICTURES, 20, 0)) == {"ant": 15, "bee": 5}
    assert Counter(picture.label for picture in draw_sample(PICTURES, 6, 0)) == {"ant": 3, "bee": 3}


def test_it_keeps_their_order_and_draws_none_twice():
    sample = draw_sample(PICTURES, 30, 0)
    assert sample == [picture for picture in PICTURES if picture in sample]
    assert len(sample) == 30


def test_it_is_all_of_them_where_there_are_no_more():
    assert draw_sample(PICTURES, 1000, 0) == PICTURES


def test_the_seed_draws_it():
    assert draw_sample(PICTURES, 10, 0) == draw_sample(PICTURES, 10, 0) != draw_sample(PICTURES, 10, 1)


def test_of_many_classes_two_pictures_each_are_looked_at(tmp_path):
    pictures = [
        Picture(f"{label:04d}/{split}{number}.png", "", "", f"{label:04d}", split, "", 8, 8)
        for label in range(600) for split in ("train", "val") for number in range(3)
    ]  # fmt: skip
    write_manifest(tmp_path / "manifest.csv", pictures)
    sample = read_sample(tmp_path / "manifest.csv", 0)
    assert set(Counter(picture.label for picture in sample.train).values()) == {2}
    assert set(Counter(picture.label for picture in sample.val).values()) == {2}
    assert sample.manifest.labels(sample.val[:3]) == [0, 0, 1]
