"""A champion's folder: stored once and whole whatever was killed, restored from DVC's cache, a model of the project, or the remote."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import dvc
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table, sha256_of_file
from pipeline.pictures.manifest import read_manifest
from pipeline.promotion.champions import champion_model, restore, store
from pipeline.promotion.journal import Entry, append, champion_dir
from tests.checkout import ROOT
from tests.scored import make_scored, write_scored, write_test_pictures


@pytest.fixture
def sha256(tmp_path, monkeypatch):
    """The sha256 of the model `own` of a project, in which DVC has nothing yet."""
    return make_scored(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A project in which `own` is stored, and its sha256. Copy it."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        sha256 = make_scored(folder, patch)
        store("own")
    return folder, sha256


@pytest.fixture
def in_stored(stored, tmp_path, monkeypatch):
    """A copy of that project, which is the current folder, without models: the sha256 of the champion."""
    shutil.copytree(stored[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "copy"))
    shutil.rmtree("models")
    return stored[1]


def run_dvc(*arguments):
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, text=True).stdout


def sums(folder):
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def count_dvc(monkeypatch):
    """The commands of DVC that run from now on."""
    ran, original = [], dvc.run_dvc
    monkeypatch.setattr(dvc, "run_dvc", lambda *arguments, **options: ran.append(arguments[0]) or original(*arguments, **options))
    return ran


def reign(sha256):
    append(Entry("2026-11-27T03:00:00Z", "PROMOTE", "the first", "own", sha256, None, "key"))


def test_a_stored_champion_is_the_model_its_answers_and_what_they_are_about(stored, monkeypatch):
    folder, sha256 = stored
    monkeypatch.chdir(folder)
    champion = champion_dir(sha256)
    kept = {f"results/{name}": sha256_of_file(Path("results/own") / name) for name in ("predictions.csv", "predictions.npy", "scores.json")}
    found = sums(champion)
    tested = found.pop("results/test.csv")
    assert tested
    assert found == {**sums("models/own"), **kept}
    assert [(row["image_id"], row["sha256"], row["label"], row["group"]) for row in read_table(champion / "results/test.csv")] == [
        (picture.image_id, picture.sha256, picture.label, picture.group) for picture in read_manifest(Path("data/manifest.csv")).pictures
    ]


def test_dvc_knows_the_folder_and_finds_nothing_changed(stored, monkeypatch):
    folder, sha256 = stored
    monkeypatch.chdir(folder)
    assert Path(f"{champion_dir(sha256)}.dvc").is_file()
    assert run_dvc("status", "--json").strip() == "{}"


def test_in_a_git_repository_dvc_sees_the_champion_and_git_its_file_alone(in_stored):
    shutil.copy(ROOT / ".gitignore", ".gitignore")
    (Path(".dvc") / "config").write_text("[core]\n    analytics = false\n")
    subprocess.run(["git", "init", "-q"], check=True)
    Path(f"{champion_dir(in_stored)}.dvc").unlink()
    shutil.copytree(champion_dir(in_stored), "models/own")
    store("own")
    listed = subprocess.run(["git", "ls-files", "-o", "--exclude-standard", "champions"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == [f"{champion_dir(in_stored)}.dvc"]
    shutil.rmtree(champion_dir(in_stored))
    assert "deleted" in run_dvc("status", "--json")


def test_storing_again_runs_no_dvc_and_writes_nothing(in_stored, stored, monkeypatch):
    shutil.copytree(stored[0] / "models", "models")
    before, ran = sums("champions"), count_dvc(monkeypatch)
    assert (store("own"), sums("champions"), ran) == (champion_dir(in_stored), before, [])


@pytest.mark.parametrize("left", ["", "outs:\n- md5: 1a2b", "outs:\n", "outs: [", None])
def test_a_kill_before_dvc_wrote_its_file_is_made_up_for(in_stored, stored, left):
    shutil.copytree(stored[0] / "models", "models")
    pointer = Path(f"{champion_dir(in_stored)}.dvc")
    whole = pointer.read_text()
    pointer.unlink()
    if left is not None:
        pointer.write_text(left)
    store("own")
    assert pointer.read_text() == whole


def test_a_torn_folder_is_written_anew(in_stored, stored):
    shutil.copytree(stored[0] / "models", "models")
    champion, whole = champion_dir(in_stored), sums(champion_dir(in_stored))
    shutil.rmtree(champion / "results")
    store("own")
    assert sums(champion) == whole


def test_results_of_another_model_or_other_test_pictures_are_not_stored(sha256):
    write_test_pictures(range(9))
    with pytest.raises(PipelineError, match=r"^results/own/scores\.json: is not about models/own/model\.onnx and the test pictures"):
        store("own")
    assert not Path("champions").exists()


def test_a_fault_of_dvc_is_one_line(sha256):
    shutil.rmtree(".dvc")
    reason = "cannot be added to DVC: you are not inside of a DVC repository"
    with pytest.raises(PipelineError, match=rf"^champions/{sha256[:16]}: {reason}[^\n]*$"):
        store("own")


@pytest.mark.parametrize("damage", ["the folder", "the model", "model.json", "the results"])
def test_what_is_missing_or_damaged_comes_from_the_cache_of_dvc(in_stored, damage):
    champion, whole = champion_dir(in_stored), sums(champion_dir(in_stored))
    if damage == "the folder":
        shutil.rmtree(champion)
    elif damage == "the results":
        (champion / "results/test.csv").unlink()
    else:
        path = champion / {"the model": "model.onnx"}.get(damage, damage)
        path.unlink()  # it may be a link to the cache
        path.write_text("{")
    assert (restore(in_stored), sums(champion)) == (champion, whole)


def test_without_a_cache_it_comes_from_the_remote(in_stored, tmp_path):
    champion, whole = champion_dir(in_stored), sums(champion_dir(in_stored))
    run_dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    run_dvc("push", "--quiet")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(champion)
    assert (restore(in_stored), sums(champion)) == (champion, whole)


def test_without_a_cache_and_a_remote_it_comes_from_the_same_model_of_the_project(in_stored, stored):
    champion, whole = champion_dir(in_stored), sums(champion_dir(in_stored))
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(champion)
    shutil.copytree(stored[0] / "models", "models")
    assert (restore(in_stored), sums(champion)) == (champion, whole)


def test_a_champion_that_nobody_has_is_one_line_with_the_cure(in_stored):
    champion = champion_dir(in_stored)
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(champion)
    cure = rf"run `git pull` and `dvc pull {champion}\.dvc`"
    with pytest.raises(PipelineError, match=rf"^{champion}: the model {in_stored} is not in DVC's cache, [^\n]*; {cure}[^\n]*$"):
        restore(in_stored)


def test_without_a_journal_there_is_no_champion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert champion_model() is None


def test_the_champion_of_the_journal_is_found_without_dvc(in_stored, monkeypatch):
    reign(in_stored)
    ran = count_dvc(monkeypatch)
    assert (champion_model(), ran) == (champion_dir(in_stored), [])


def test_a_damaged_champion_is_restored_before_it_answers(in_stored):
    reign(in_stored)
    path = champion_dir(in_stored) / "model.onnx"
    path.unlink()
    path.write_bytes(b"damaged")
    assert sha256_of_file(champion_model() / "model.onnx") == in_stored


def test_a_second_champion_is_a_folder_beside_the_first(in_stored):
    shutil.rmtree("results")
    other = write_scored("next", seed=1)
    assert store("next") == champion_dir(other) != champion_dir(in_stored)
    assert sorted(path.name for path in Path("champions").glob("*.dvc")) == sorted([f"{other[:16]}.dvc", f"{in_stored[:16]}.dvc"])
