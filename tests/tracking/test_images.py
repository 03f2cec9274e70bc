"""Figures are named as MLflow's charts read them, the same way every time."""

import re

from PIL import Image

from pipeline.tracking.contents import image_names, write_images


def draw(folder, name, size=(1600, 800)):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, "red").save(folder / name)


def test_a_name_holds_key_step_and_time_between_plus_signs(tmp_path):
    draw(tmp_path, "mistakes.png")
    (name,) = image_names(tmp_path, 17).values()
    assert re.fullmatch(r"mistakes\+step\+0\+timestamp\+17\+[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)


def test_the_names_are_the_same_every_time(tmp_path):
    draw(tmp_path, "mistakes.png")
    assert image_names(tmp_path, 17) == image_names(tmp_path, 17)


def test_characters_that_mlflow_does_not_take_are_replaced_and_names_stay_apart(tmp_path):
    draw(tmp_path, "a+b.png")
    draw(tmp_path, "a_b.png")
    names = list(image_names(tmp_path, 17).values())
    assert [name.split("+")[0] for name in names] == ["a_b", "a_b"]
    assert names[0] != names[1]


def test_only_png_files_are_figures(tmp_path):
    (tmp_path / "predictions.csv").touch()
    assert image_names(tmp_path, 17) == {}


def test_the_small_picture_keeps_the_shape_and_the_large_one_its_bytes(tmp_path):
    draw(tmp_path / "results", "mistakes.png")
    write_images(tmp_path / "images", tmp_path / "results", 17)
    (small,), (large,) = (tmp_path / "images").glob("*+compressed.webp"), (tmp_path / "images").glob("*.png")
    with Image.open(small) as image:
        assert image.size == (768, 384)
    assert large.read_bytes() == (tmp_path / "results/mistakes.png").read_bytes()
