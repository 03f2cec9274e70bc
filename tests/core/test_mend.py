"""DVC's own files that a kill left half-written are repaired; whole files are left alone."""

import json
import subprocess

import pytest

from pipeline.core import dvc
from pipeline.core.dvc import mend
from pipeline.core.errors import PipelineError

LOCK = "schema: '2.0'\nstages:\n  split:\n    cmd: python\n    deps:\n    - path: a\n      md5: b\n    outs:\n    - path: c\n      md5: d\n"
RUNNING = json.dumps({"write": {}, "read": {"a": [{"pid": 1, "cmd": "dvc repro"}]}})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose DVC wrote its files whole, and whose dvc.lock git knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "_WRITE_SECONDS", 0)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(RUNNING)
    (tmp_path / "dvc.lock").write_text(LOCK)
    for arguments in (["init", "-q"], ["add", "dvc.lock"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "a"]):
        subprocess.run(["git", *arguments], check=True)
    return tmp_path


def test_whole_files_are_left_alone(root):
    assert mend() == []
    assert ((root / "dvc.lock").read_text(), (root / ".dvc/tmp/rwlock").read_text()) == (LOCK, RUNNING)


def test_nothing_is_torn_if_dvc_never_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mend() == []


@pytest.mark.parametrize("length", [0, 1, 20, len(RUNNING) - 1])
def test_a_torn_list_of_running_commands_is_removed(root, length):
    (root / ".dvc/tmp/rwlock").write_text(RUNNING[:length])
    [line] = mend()
    assert line.startswith(".dvc/tmp/rwlock: ")
    assert not (root / ".dvc/tmp/rwlock").exists()


@pytest.mark.parametrize(
    "end", ["", "schema: '2.0'\n", "schema: '2.0'\nstages:\n", LOCK[: LOCK.index("    deps")] + "    de", LOCK[:-9], "a: [\n"]
)
def test_a_torn_lock_is_restored_from_git(root, end):
    (root / "dvc.lock").write_text(end)
    [line] = mend()
    assert line.startswith("dvc.lock: ")
    assert (root / "dvc.lock").read_text() == LOCK


def test_a_torn_lock_that_git_does_not_know_is_removed(root):
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "b"], check=True)
    (root / "dvc.lock").write_text("stages: [")
    [line] = mend()
    assert line.startswith("dvc.lock: ")
    assert not (root / "dvc.lock").exists()


def test_a_merge_conflict_is_left_to_a_person(root):
    torn = LOCK.replace("      md5: d\n", "<<<<<<< HEAD\n      md5: d\n=======\n      md5: e\n>>>>>>> other\n")
    (root / "dvc.lock").write_text(torn)
    with pytest.raises(PipelineError, match=r"^dvc\.lock: .*conflict"):
        mend()
    assert (root / "dvc.lock").read_text() == torn


def test_a_file_that_is_whole_a_moment_later_was_only_being_written(root, monkeypatch):
    (root / "dvc.lock").write_text("stages: [")
    monkeypatch.setattr(dvc.time, "sleep", lambda seconds: (root / "dvc.lock").write_text(LOCK))
    assert mend() == []
