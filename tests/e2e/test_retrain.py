"""A second clone on a schedule: retrain if pictures came in, and report that in one line; and what a third one pulls."""

import json
import shutil

import pytest
import yaml

from tests.checkout import commit, copy, set_params, type_in, write_digits
from tests.repro import read_lock, runs_of, stages_run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def project(fresh, digits, tmp_path_factory):
    """A clone at another path, with the MLflow database of the first one, retrained once: the clone, its pictures, and the line."""
    folder = copy(fresh, tmp_path_factory.mktemp("retrain") / "another place" / "with a longer name")
    shutil.copy(digits[0] / "mlflow.db", folder / "clone")
    return folder / "clone", folder / "pictures", json.loads(type_in(folder / "clone", "pipeline", "retrain"))


@pytest.mark.slow
def test_the_first_retraining_runs_every_stage(project, all_stages):
    assert sorted(project[2]["ran"]) == sorted(all_stages)
    assert sorted(project[2]["models"]) == ["baseline", "finetuned"]


@pytest.mark.slow
def test_a_second_clone_at_another_path_writes_the_same_bytes_and_adds_no_run(project, digits):
    assert (project[0] / "dvc.lock").read_bytes() == (digits[0] / "dvc.lock").read_bytes()
    assert runs_of(project[0]) == runs_of(digits[0])


@pytest.mark.slow
def test_the_next_one_finds_nothing_changed_and_ten_pictures_more_retrain(project):
    clone, pictures, first = project
    second = json.loads(type_in(clone, "pipeline", "retrain"))
    assert (second["summary"], second["changed"], second["ran"]) == ("nothing changed", {}, [])
    write_digits(pictures, range(400, 410))
    third = json.loads(type_in(clone, "pipeline", "retrain"))
    assert list(third["changed"]) == ["download.digest"]
    assert set(first["ran"]) - set(third["ran"]) == {"backbone", "check_names"}
    assert len(third["models"]) == 2


def test_a_wrong_digest_ends_in_one_line_and_leaves_nothing(copy_of_digits):
    clone = copy_of_digits()
    shutil.rmtree(clone / "data/raw")
    found = yaml.safe_load((clone / "params.yaml").read_text())["download"]["digest"]
    set_params(clone, {"download.digest": "0" * 64})
    output = type_in(clone, "dvc", "repro", "download", code=255)
    (line,) = [line for line in output.splitlines() if "0" * 64 in line]
    assert (found in line, "`pipeline data refresh`" in line, "Traceback" in output) == (True, True, False)
    assert not (clone / "data/raw").exists()


def test_a_fresh_clone_pulls_the_outs_and_runs_split_alone(copy_of_digits):
    first = copy_of_digits()
    type_in(first, "dvc", "remote", "add", "--default", "storage", "../storage")
    commit(first, "a remote")
    type_in(first, "dvc", "push")
    second = first.parent / "second"
    type_in(first.parent, "git", "clone", "-q", "clone", "second")
    type_in(second, "dvc", "pull")
    assert stages_run(type_in(second, "dvc", "repro")) == ["split"]
    assert read_lock(second) == read_lock(first)
