"""The manifest comes back as it was written, sorted."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.files import Slice
from pipeline.pictures.manifest import Manifest, Picture, read_manifest, record_of, recorded, sha256_of_pictures, write_manifest

CAT = Picture(
    "a/cats/2.png", "cats/2.png", "0" * 64, "cats", "train", "a/cats/1.png", 8, 6, "../../raw/pictures-01.tar", 512, 99, 101.3, 7.125
)
DOG = Picture("a/dogs/1.gif", "dogs/1.gif.png", "1" * 64, "dogs", "test", "a/dogs/1.gif", 3, 4)


def test_a_manifest_comes_back_as_it_was_sorted_by_image_id(tmp_path):
    write_manifest(tmp_path / "m.csv", [DOG, CAT])
    assert read_manifest(tmp_path / "m.csv").pictures == [CAT, DOG]


def test_a_manifest_is_plain_csv(tmp_path):
    write_manifest(tmp_path / "m.csv", [DOG])
    columns = "image_id,path,sha256,label,split,group,width,height,shard,offset,size,brightness,sharpness"
    assert (
        tmp_path / "m.csv"
    ).read_text() == f"{columns}\na/dogs/1.gif,dogs/1.gif.png,{'1' * 64},dogs,test,a/dogs/1.gif,3,4,,0,0,0.0,0.0\n"


def test_a_picture_is_a_file_of_its_tree_or_a_part_of_a_shard():
    assert DOG.source(Path("data/splits/test")) == Path("data/splits/test/dogs/1.gif.png")
    assert CAT.source(Path("data/splits/train")) == Slice(Path("data/raw/pictures-01.tar"), 512, 99)


@pytest.mark.parametrize(("split", "expected"), [("train", [CAT]), ("val", []), ("test", [DOG])])
def test_one_split_can_be_read_alone(tmp_path, split, expected):
    write_manifest(tmp_path / "m.csv", [CAT, DOG])
    assert read_manifest(tmp_path / "m.csv").split(split) == expected


@pytest.mark.parametrize("label", ["a,b", 'a"b', "ä 猫", " a ", "None", "1"])
def test_an_odd_class_comes_back(tmp_path, label):
    write_manifest(tmp_path / "m.csv", [replace(CAT, label=label)])
    assert read_manifest(tmp_path / "m.csv").pictures[0].label == label


@pytest.mark.parametrize("image_id", ["a\nb", "a\r\nb", "\r", 'a"b', "-a", "a. ", "<script>", "\U0001f408"])
def test_an_odd_name_comes_back(tmp_path, image_id):
    odd = replace(CAT, image_id=image_id, path=image_id, group=image_id)
    write_manifest(tmp_path / "m.csv", [odd])
    assert read_manifest(tmp_path / "m.csv").pictures == [odd]


def test_the_classes_are_those_of_train_sorted_and_their_numbers_the_labels():
    owl, ant = replace(CAT, label="owls"), replace(CAT, label="ants")
    manifest = Manifest([owl, CAT, ant, DOG, owl])
    assert (manifest.class_names, manifest.labels([owl, CAT, ant])) == (["ants", "cats", "owls"], [2, 1, 0])


def of_sums(*sums):
    return [Picture(str(number), str(number), each * 64, "ants", "train", "", 8, 8) for number, each in enumerate(sums)]


def test_a_record_knows_its_pictures_by_their_bytes_and_those_of_the_record_before():
    record = record_of(of_sums("a", "b"), record_of(of_sums("c", "a")))
    assert record_of(of_sums("c", "b", "a")) == record
    assert [picture.sha256[0] for picture in recorded(of_sums("a", "d", "c", "a"), record)] == ["a", "c", "a"]
    assert recorded(of_sums("a"), record_of([])) == []


def test_the_order_of_pictures_does_not_change_the_sum_of_their_set():
    assert sha256_of_pictures(of_sums("a", "b")) == sha256_of_pictures(of_sums("b", "a")) != sha256_of_pictures(of_sums("a", "c"))
