"""A folder of one's own on a schedule: retrain when pictures came in, and say so in one line."""

import json

import pytest
import yaml

from tests.test_pipeline import PARAMS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def project(tmp_path_factory, clone, type_in, make_pictures):
    """A clone that points at a folder of generated pictures, retrained once: the clone, the folder, and the line."""
    folder = tmp_path_factory.mktemp("retrain")
    make_pictures(folder / "pictures", 12)
    project = clone(folder / "clone")
    params = {**PARAMS, "download": {**PARAMS["download"], "source": "../pictures", "digest": None}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    return project, folder / "pictures", json.loads(type_in(project, "pipeline", "retrain"))


def test_the_first_retraining_runs_every_stage(project):
    assert len(project[2]["ran"]) == 9
    assert sorted(project[2]["models"]) == ["baseline", "finetuned"]


def test_the_second_says_that_nothing_changed_and_ten_pictures_more_retrain(project, type_in, make_pictures):
    clone, pictures, first = project
    second = json.loads(type_in(clone, "pipeline", "retrain"))
    assert (second["summary"], second["changed"], second["ran"]) == ("nothing changed", {}, [])
    make_pictures(pictures, 5, start=100)
    third = json.loads(type_in(clone, "pipeline", "retrain"))
    assert third["changed"]["download.digest"][0] == first["changed"]["download.digest"][1]
    assert third["ran"] == [
        "download",
        "split",
        "embed",
        "train_baseline",
        "train@finetuned",
        "evaluate@finetuned",
        "evaluate_baseline@baseline",
        "report",
    ]
    assert len(third["models"]) == 2


def test_a_wrong_digest_ends_in_one_line_and_leaves_nothing(project, type_in):
    clone = project[0]
    (clone / "data/raw.zip").unlink()
    kept = (clone / "params.yaml").read_text()
    params = yaml.safe_load(kept)
    params["download"]["digest"], found = "0" * 64, params["download"]["digest"]
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    output = type_in(clone, "dvc", "repro", "download", code=255)
    assert (
        f"pictures: its digest is {found}, params.yaml pins download.digest {'0' * 64}; "
        "if the change is meant, run `pipeline data refresh`\n"
    ) in output
    assert not (clone / "data/raw.zip").exists()
    (clone / "params.yaml").write_text(kept)
