"""DVC's own files that a kill left half-written are repaired; whole files are left alone."""

import json
import subprocess
import sys
from pathlib import Path

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
    assert [path.read_text() for path in (root / ".cache/mended").iterdir()] == [RUNNING[:length]]


@pytest.mark.parametrize("torn", ["", "schema", LOCK[: LOCK.index("    deps")] + "    de", "a: [\n", "- a\n", "a: b: c\n"])
def test_a_torn_lock_is_restored_from_git_and_a_copy_is_kept(root, torn):
    (root / "dvc.lock").write_text(torn)
    [line] = mend()
    assert line.startswith("dvc.lock: was half-written; restored from git, a copy is .cache/mended/dvc.lock.")
    assert (root / "dvc.lock").read_text() == LOCK
    assert [path.read_text() for path in (root / ".cache/mended").iterdir()] == [torn]


HTTP = "stages:\n  fetch:\n    cmd: cp\n    deps:\n    - path: https://host/a.zip\n      {}: '123'\n      size: 5\n    outs: []\n"


@pytest.mark.parametrize(
    "whole",
    [HTTP.format("checksum"), HTTP.format("etag"), "schema: '9.0'\nnodes: {}\n", LOCK.replace("python", "'<<<<<<< HEAD'"), "{}"],
)
def test_a_lock_that_parses_is_not_judged(root, whole):
    (root / "dvc.lock").write_text(whole)
    assert (mend(), (root / "dvc.lock").read_text()) == ([], whole)


def commit(root, text=None):
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], check=True)
    if text is not None:
        (root / "dvc.lock").write_text(text)
        subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "b"], check=True)


@pytest.mark.parametrize("committed", [None, "stages: [1,"])
def test_a_torn_lock_that_git_does_not_know_whole_is_removed_and_a_copy_is_kept(root, committed):
    commit(root, committed)
    (root / "dvc.lock").write_text("stages: [")
    [line] = mend()
    assert line.startswith("dvc.lock: ")
    assert not (root / "dvc.lock").exists()
    assert [path.read_text() for path in (root / ".cache/mended").iterdir()] == ["stages: ["]


def test_a_torn_lock_is_removed_if_git_is_not_installed(root, monkeypatch):
    monkeypatch.setenv("PATH", str(root))
    (root / "dvc.lock").write_text("stages: [")
    assert len(mend()) == 1
    assert not (root / "dvc.lock").exists()


# Without git


def test_a_source_archive_works_without_git_until_there_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    status = [sys.executable, "-m", "dvc", "status", "--quiet"]
    assert subprocess.run(status, capture_output=True, check=False).returncode == 255
    [line] = mend()
    assert line == ".dvc/config.local: there is no git repository; DVC works without one"
    assert (mend(), subprocess.run(status, check=False).returncode) == ([], 0)
    subprocess.run(["git", "init", "-q"], check=True)
    [line] = mend()
    assert line == ".dvc/config.local: there is a git repository now; DVC uses it"
    assert (mend(), "no_scm" in (tmp_path / ".dvc/config.local").read_text()) == ([], False)


@pytest.mark.parametrize("git", ["a folder", "a file"])
def test_a_project_below_the_root_of_a_repository_uses_its_git(tmp_path, monkeypatch, git):
    (tmp_path / "project/.dvc").mkdir(parents=True)
    (tmp_path / "project/.dvc/config").touch()
    (tmp_path / ".git").mkdir() if git == "a folder" else (tmp_path / ".git").write_text("gitdir: elsewhere\n")  # a worktree, a submodule
    monkeypatch.chdir(tmp_path / "project")
    assert mend() == []


# A service


@pytest.mark.parametrize("variables", [{"SHELL": "/usr/sbin/nologin", "PATH": "/usr/bin:/bin"}, {}])
def test_dvc_runs_in_a_shell_of_its_own_whatever_the_caller_has(tmp_path, monkeypatch, variables):
    for name in ("SHELL", "PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  which:\n    cmd: command -v python > found\n    outs: [found]\n")
    assert dvc.run_dvc("repro", "--quiet").returncode == 0
    assert (tmp_path / "found").read_text() == f"{Path(sys.executable).parent}/python\n"


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
