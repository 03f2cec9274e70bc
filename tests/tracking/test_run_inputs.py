"""The data set is told split by split, with a digest that changes when its pictures do."""

import json
from dataclasses import replace

import pytest

from pipeline.core.files import write_json
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.tracking.contents import run_inputs

SPLITS = ["train", "train", "val", "test"]
PICTURES = [Picture(f"ant/{i}.png", f"ant/{i}.png", str(i) * 64, "ant", split, str(i), 8, 8) for i, split in enumerate(SPLITS)]


@pytest.fixture
def told(tmp_path):
    """The inputs for some pictures, by the name of their split."""

    def tell(pictures=PICTURES, source="insects"):
        write_manifest(tmp_path / "manifest.csv", pictures)
        write_json(tmp_path / "source.json", {"source": source, "licence": "CC0"})
        return {entry.tags[0].value: entry for entry in run_inputs(tmp_path / "manifest.csv", tmp_path / "source.json")}

    return tell


def test_each_split_is_an_input_with_its_count_by_class(told):
    profiles = {split: json.loads(entry.dataset.profile) for split, entry in told().items()}
    assert profiles == {
        "train": {"pictures": 2, "classes": {"ant": 2}},
        "val": {"pictures": 1, "classes": {"ant": 1}},
        "test": {"pictures": 1, "classes": {"ant": 1}},
    }


def test_an_input_is_named_after_the_source(told):
    assert {entry.dataset.name for entry in told().values()} == {"insects"}


def test_an_address_is_told_without_its_password(told):
    dataset = told(source="https://user:word@host/a.zip")["train"].dataset
    assert (dataset.name, json.loads(dataset.source)) == ("https://host/a.zip", {"uri": "https://host/a.zip", "licence": "CC0"})


def test_a_digest_is_short_and_the_same_every_time(told):
    assert [len(entry.dataset.digest) for entry in told().values()] == [16, 16, 16]
    assert told() == told()


@pytest.mark.parametrize("change", [{"sha256": "f" * 64}, {"label": "bee"}, {"image_id": "ant/9.png"}])
def test_a_changed_picture_changes_the_digest_of_its_split_alone(told, change):
    before, after = told(), told([replace(PICTURES[0], **change), *PICTURES[1:]])
    assert [split for split in before if before[split] != after[split]] == ["train"]


def test_a_split_without_pictures_is_no_input(told):
    assert list(told(PICTURES[:3])) == ["train", "val"]
