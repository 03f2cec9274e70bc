"""Keeping a decision in a repository that is in another state than git's manual has it: what is lost is named, nothing is made worse."""

import re
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.promotion import keep
from pipeline.promotion.by_hand import rollback
from pipeline.promotion.journal import JOURNAL, champion_dir, read_journal
from pipeline.promotion.retraining import locked_journal
from tests.checkout import commit, type_in, user_environment
from tests.promotion.test_keep import draft, kept, log, make
from tests.promotions import install, set_clock


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository without DVC, the current folder, in which `small` is the champion."""
    folder = make(tmp_path / "project")
    for name, value in user_environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    install(monkeypatch)
    Path("champions").mkdir()
    Path(f"{champion_name()}.dvc").write_text("outs: []\n")
    assert kept(draft()).undone == []
    return folder


def champion_name(content=b"one"):
    return champion_dir(draft(content).sha256).as_posix()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_journal_that_was_deleted_or_cut_changes_nothing_and_is_not_committed(project):
    kept(draft(b"two", champion=read_journal()[0].sha256))
    whole = JOURNAL.read_bytes()
    for content in (None, whole.splitlines(keepends=True)[1]):
        JOURNAL.unlink() if content is None else JOURNAL.write_bytes(content)
        lost = 2 if content is None else 1
        with (
            pytest.raises(PipelineError, match=rf"lacks {lost} of the lines that git has; run `git checkout promotions.jsonl`"),
            locked_journal(),
        ):
            pytest.fail("a command changed it")
    type_in(project, "git", "checkout", "-q", "promotions.jsonl")
    with locked_journal():
        assert JOURNAL.read_bytes() == whole


def test_the_deleted_file_of_a_champion_is_restored_and_its_loss_not_committed(project):
    pointer = Path(f"{champion_name()}.dvc")
    pointer.unlink()
    made = kept(draft(b"two"))
    assert f"{pointer}: was deleted; restored from git" in made.done
    assert pointer.read_text() == type_in(project, "git", "show", f"HEAD:{pointer}") == "outs: []\n"


@pytest.mark.parametrize("ignored", ["promotions.jsonl", "*.dvc"])
def test_what_git_ignores_is_named_and_not_called_committed(project, ignored):
    type_in(project, "git", "rm", "-q", "--cached", "promotions.jsonl", f"{champion_name()}.dvc")
    type_in(project, "git", "commit", "-qm", "no longer kept")
    Path(".git/info/exclude").write_text(f"{ignored}\n")
    found = kept(draft(verdict="FORCE")).undone[0]
    assert re.match(r"(promotions.jsonl|champions/.*\.dvc): is ignored by git; `git check-ignore -v", found)
    with pytest.raises(PipelineError, match=r"is ignored by git|is not committed"):
        keep.verify_journal()


def test_a_repository_that_git_refuses_to_read_is_not_taken_for_none(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as where a service runs as another user
    made = kept(draft(b"two"))
    assert "dubious ownership" in made.undone[0]
    assert len(read_journal()) == 1


def test_during_a_merge_with_a_conflict_nothing_is_staged(project):
    branch = type_in(project, "git", "branch", "--show-current").strip()
    Path("metrics").mkdir()
    for name, text in (("other", "1"), (branch, "2")):
        type_in(project, "git", "checkout", "-q", *(["-b", name, "HEAD"] if name == "other" else [name]))
        Path("metrics").mkdir(exist_ok=True)
        Path("metrics/small.json").write_text(text)
        commit(project, name)
    type_in(project, "git", "merge", "other", code=1)
    assert kept(draft(b"two")).undone[0].startswith("metrics/small.json: contains a merge conflict; resolve it")
    assert type_in(project, "git", "ls-files", "--unmerged") != ""
    assert len(read_journal()) == 1


def test_a_merge_without_a_conflict_is_the_users_to_end(project):
    before = log()
    type_in(project, "git", "checkout", "-q", "-b", "other")
    Path("mine").write_text("")
    commit(project, "other")
    type_in(project, "git", "checkout", "-q", "-")
    type_in(project, "git", "merge", "-q", "--no-ff", "--no-commit", "other")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# changed\n")
    assert "during a merge" in kept(draft(b"two")).undone[0]
    assert (log(), len(read_journal())) == (before, 1)


@pytest.mark.parametrize("state", ["detached", "unborn", "worktree"])
def test_a_head_of_any_kind_gets_the_commits(project, state):
    if state == "detached":
        type_in(project, "git", "checkout", "-q", "--detach")
    elif state == "unborn":
        type_in(project, "git", "checkout", "-q", "--orphan", "new")
    else:
        type_in(project, "git", "init", "-q", "--separate-git-dir", "../elsewhere")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# changed\n")
    made = kept(draft(b"two"))
    assert made.undone == []
    assert log()[:2] == ["Journal: PROMOTE small", "Retrain: PROMOTE small"]
    assert type_in(project, "git", "status", "--porcelain", "promotions.jsonl", "params.yaml") == ""


def test_a_hook_of_git_that_waits_is_killed_and_one_that_asks_has_no_terminal(project, monkeypatch):
    monkeypatch.setattr(keep, "_GIT_SECONDS", 1.0)
    hook = project / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    script(hook, "sleep 300 & wait")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# changed\n")
    assert kept(draft(b"two")).undone[0].startswith("git commit: did not end within 1 seconds, and was killed")
    Path(".git/index.lock").unlink(missing_ok=True)
    script(hook, "read answer < /dev/tty || { echo error: asked in vain >&2; exit 1; }")
    assert "asked in vain" in kept(draft(b"two")).undone[0]
    assert len(read_journal()) == 1


def test_the_entry_of_a_clock_that_went_back_is_the_last_one_all_the_same(project, monkeypatch):
    """Another machine, whose clock is ahead, promoted a model; this one takes that back."""
    first = read_journal()[0]
    set_clock(monkeypatch.setattr, "2027-03-02T03:00:00Z")
    assert kept(draft(b"two", champion=first.sha256)).undone == []
    set_clock(monkeypatch.setattr, "2026-03-02T04:00:00Z")
    (Path(champion_name()) / "model.onnx").write_bytes(b"one")
    rollback(None, "worse", keep.Options())
    last = read_journal()[-1]
    assert (last.verdict, last.sha256, last.time) == ("ROLLBACK", first.sha256, "2027-03-02T03:00:00Z")
