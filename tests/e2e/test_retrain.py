"""A second clone on a schedule: retrain if pictures came in, and report that in one line; and what a third one pulls."""

import json
import shutil
import subprocess

import pytest
import yaml

from tests.checkout import commit, copy, set_params, type_in, user_environment, write_digits
from tests.repro import read_lock, runs_of, stages_run

pytestmark = pytest.mark.e2e


def retrain(clone, *arguments):
    """The line of `pipeline retrain`, whose exit code is the one that the line states."""
    command = ["pipeline", "retrain", *arguments]
    result = subprocess.run(command, cwd=clone, env=user_environment(clone), capture_output=True, text=True, check=False)
    facts = json.loads(result.stdout)
    assert result.returncode == facts["exit_code"], result.stderr
    assert (facts["undone"], "Traceback" in result.stderr) == ([], False), result.stderr
    return facts


@pytest.fixture(scope="module")
def project(fresh, digits, tmp_path_factory):
    """A clone at another path, with the MLflow database of the first one, retrained once: the clone, its pictures, and the line."""
    folder = copy(fresh, tmp_path_factory.mktemp("retrain") / "another place" / "with a longer name")
    shutil.copy(digits[0] / "mlflow.db", folder / "clone")
    return folder / "clone", folder / "pictures", retrain(folder / "clone")


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
    assert (first["decision"], first["outcome"]) == ("PROMOTE", "DONE")
    second = retrain(clone)
    assert (second["summary"], second["changed"], second["ran"], second["exit_code"]) == ("nothing changed", {}, [], 0)
    write_digits(pictures, range(400, 410))
    third = retrain(clone)
    assert list(third["changed"]) == ["download.digest"]
    assert set(first["ran"]) - set(third["ran"]) == {"backbone", "check_names"}
    assert len(third["models"]) == 2
    history = [json.loads(line) for line in type_in(clone, "pipeline", "history", "--json").splitlines()]
    assert [entry["verdict"] for entry in history] == ["PROMOTE", third["decision"]]
    assert type_in(clone, "git", "status", "--porcelain") == ""


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


@pytest.mark.slow
def test_another_clone_pulls_the_champion_and_agrees_with_the_first(copy_of_digits):
    first = copy_of_digits()
    type_in(first, "dvc", "remote", "add", "--default", "storage", "../storage")
    commit(first, "a remote")
    assert retrain(first)["decision"] == "PROMOTE"
    assert json.loads(type_in(first, "dvc", "data", "status", "--not-in-remote", "--json")).get("not_in_remote", []) == []
    second = first.parent / "second"
    type_in(first.parent, "git", "clone", "-q", "clone", "second")
    type_in(second, "dvc", "pull")
    picture = next((first.parent / "pictures").rglob("*.png"))
    for command in (["champion", "--json"], ["predict", str(picture)], ["history", "--json"]):
        assert type_in(second, "pipeline", *command) == type_in(first, "pipeline", *command)
    (champion,) = [line for line in type_in(second, "pipeline", "verify").splitlines() if "the champion since" in line]
    assert champion in type_in(first, "pipeline", "verify").splitlines()
    assert retrain(second)["summary"] in ("nothing changed", "1 stages ran")
