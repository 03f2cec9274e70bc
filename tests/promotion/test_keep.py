"""Keeping a decision: each step after those before it, only what is not done yet, and the same end after a kill at any point."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.promotion.journal import JOURNAL, Entry, append, champion_dir, read_journal
from pipeline.promotion.keep import STEPS, Keeping, Options, aliases, begun, call_hook, keep, verify_journal
from tests.checkout import ROOT, commit, type_in, user_environment
from tests.promotions import TIME, install, write_candidate, write_gate

DATES = {"GIT_AUTHOR_DATE": TIME, "GIT_COMMITTER_DATE": TIME}  # so that equal commits have equal ids
POINTS = [*map(str, range(len(STEPS))), "append", "git commit"]
QUICK = ("4", "append", "8")


def make(folder, has_dvc=False):
    """A repository with a model, and with a DVC remote beside it if asked for."""
    folder.mkdir(parents=True)
    write_gate(folder)
    (folder / ".gitignore").write_text("/models/\n/results/\n/.cache/\n/registry.json\n/decisions/\n/verdict\n/mlflow_away\n")
    commit(folder, "begin")
    if has_dvc:
        type_in(folder, "dvc", "init", "-q")
        type_in(folder, "dvc", "remote", "add", "-q", "--default", "storage", "../storage")
        commit(folder, "dvc")
    write_candidate("small", b"one", folder)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository without DVC, the current folder, with fakes of the other rooms."""
    folder = make(tmp_path / "project")
    for name, value in {**user_environment(folder), **DATES}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    install(monkeypatch)
    return folder


def draft(content=b"one", verdict="PROMOTE", champion=None, model="small", **fields):
    sha256 = write_candidate(model, content)
    return Entry("", verdict, "why", model, sha256, champion, f"key of {content}", **{"judgement": {"counts": True}, **fields})


def kept(entry, stores=True, **options):
    return keep(Keeping(entry, f"{entry.verdict} {entry.model}", Options(**options), stores))


def log(folder=Path()):
    return type_in(folder, "git", "log", "--format=%s").splitlines()


def test_a_promotion_is_committed_entered_and_registered_and_done_once(project):
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    first = kept(draft())
    assert first.undone == []
    assert log() == ["Journal: PROMOTE small", "Retrain: PROMOTE small", "begin"]
    (entry,) = read_journal()
    assert entry.commit == type_in(project, "git", "rev-parse", "HEAD~1").strip()
    assert (entry.time, entry.lock_sha256 is not None) == (TIME, True)
    assert read_json(Path("registry.json")) == {
        "versions": {
            entry.sha256: {
                "sha256": entry.sha256,
                "commit": entry.commit,
                "lock_sha256": entry.lock_sha256,
                "decision": "PROMOTE",
                "decision_reason": "why",
            }
        },
        "aliases": {"champion": entry.sha256, "challenger": entry.sha256, "previous": None},
    }
    again = kept(draft())
    assert (again.done, again.undone, len(read_journal()), len(log()), begun()) == ([], [], 1, 3, None)


def test_nothing_else_of_the_users_index_and_folder_is_committed(project):
    (project / "mine.txt").write_text("staged")
    type_in(project, "git", "add", "mine.txt")
    (project / "other.txt").write_text("untracked")
    (project / "metrics").mkdir()
    (project / "metrics/small.json").write_text("{}")
    kept(draft(), skips_ci=True)
    assert log()[0] == "Journal: PROMOTE small [skip ci]"
    assert type_in(project, "git", "show", "--format=", "--name-only", "HEAD~1").split() == ["metrics/small.json"]
    assert type_in(project, "git", "status", "--porcelain").splitlines() == ["A  mine.txt", "?? champions/", "?? other.txt"]


def test_files_with_any_name_below_a_folder_of_a_repository_are_committed_and_deletions_too(tmp_path, monkeypatch):
    folder = make(tmp_path / "whole/über dir")
    shutil.rmtree(folder / ".git")
    (folder / "metrics").mkdir()
    (folder / "metrics/old.json").write_text("{}")
    commit(tmp_path / "whole", "begin")
    for name, value in {**user_environment(folder), **DATES}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    install(monkeypatch)
    (folder / "metrics/old.json").unlink()
    (folder / "metrics/a*b ü.json").write_text("{}")
    assert kept(draft(), stores=False).undone == []
    shown = type_in(
        tmp_path / "whole", "git", "-c", "core.quotepath=off", "show", "--format=", "--name-status", "--no-renames", "HEAD~1"
    ).splitlines()
    assert shown == ["A\tüber dir/metrics/a*b ü.json", "D\tüber dir/metrics/old.json"]
    assert type_in(folder, "git", "status", "--porcelain", "metrics", str(JOURNAL)) == ""


def test_without_git_the_journal_is_written_all_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "plain"
    folder.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(folder)
    install(monkeypatch)
    result = kept(draft())
    assert result.undone == []
    assert "git: this is no repository, so nothing is committed" in result.done
    assert [(entry.verdict, entry.commit) for entry in read_journal()] == [("PROMOTE", None)]
    assert verify_journal()[1] == "git: this is no repository; what was decided is in this folder alone"


def test_where_git_refuses_nothing_is_entered_and_the_next_run_makes_up_for_it(project):
    write_gate(looks=3)
    hook = project / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    hook.chmod(0o755)
    refused = kept(draft())
    assert refused.undone[0] == "git commit: no; mend that, and run the command again"
    assert refused.undone[1].startswith("so these were left: the entry in promotions.jsonl, ")
    assert (read_journal(), refused.is_entered) == ([], False)
    hook.unlink()
    assert kept(draft()).undone == []
    assert log()[:2] == ["Journal: PROMOTE small", "Retrain: PROMOTE small"]


def test_an_mlflow_that_is_away_is_named_and_made_up_for_without_a_second_entry(project):
    (project / "mlflow_away").touch()
    away = kept(draft())
    assert (away.undone, away.is_entered) == (["MLflow: cannot be reached; start the server"], True)
    assert begun() == read_journal()[0]
    (project / "mlflow_away").unlink()
    assert keep(Keeping(None, "HOLD small")).undone == []
    assert (len(read_journal()), begun(), Path("registry.json").is_file()) == (1, None, True)


def test_pushing_needs_an_upstream_and_then_pushes_once(project, tmp_path):
    assert kept(draft(), pushes=True).undone[0].startswith("git rev-list: fatal: no upstream")
    type_in(tmp_path, "git", "init", "-q", "--bare", "origin")
    type_in(project, "git", "remote", "add", "origin", str(tmp_path / "origin"))
    type_in(project, "git", "push", "-q", "-u", "origin", "HEAD")
    assert kept(draft(), pushes=True).done == ["versions: changed", "aliases: changed"]
    assert "git: pushed" in kept(draft(b"two", champion="0" * 64), pushes=True).done
    assert type_in(project, "git", "rev-list", "--count", "@{upstream}..HEAD").strip() == "0"


def test_the_hook_gets_the_decision_once(project):
    script = project / "hook.py"
    script.write_text("import sys; open('heard', 'a').write(sys.stdin.read() + '\\n'); print('loud')")
    command = f"{sys.executable} hook.py"
    for _ in range(2):
        kept(draft(), hook=command)
    heard = [json.loads(line) for line in Path("heard").read_text().splitlines()]
    assert [(one["verdict"], one["sha256"]) for one in heard] == [("PROMOTE", draft().sha256)]


def test_a_hook_that_a_kill_prevented_is_run_by_the_next_run(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        steps = [(name, step) if name != "the hook" else (name, interrupt) for name, step in STEPS]
        patch.setattr("pipeline.promotion.keep.STEPS", steps)
        kept(draft())
    script = "import sys; open('heard', 'a').write(sys.stdin.read())"
    Path("hook.py").write_text(script)
    keep(Keeping(None, "HOLD small", Options(hook=f"{sys.executable} hook.py")))
    assert json.loads(Path("heard").read_text())["model"] == "small"


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("no-such-command", "no-such-command: cannot be run"),
        ("unclosed 'quote", "unclosed 'quote: cannot be run"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "exit code 3"),
        (f"{sys.executable} -c 'import time; time.sleep(60)'", "did not end within 1 seconds, and was killed"),
    ],
)
def test_a_hook_that_fails_is_one_sentence(command, fault):
    start = time.monotonic()
    assert fault in call_hook(command, Entry("t", "HOLD", "why", "small", "0" * 64, None, "key"), 1.0)
    assert time.monotonic() - start < 30


def test_aliases_follow_the_journal():
    entries = [
        Entry(f"t{number}", verdict, "", "m", sha256, None, str(number), judgement)
        for number, (verdict, sha256, judgement) in enumerate(
            [("PROMOTE", "a", {}), ("PROMOTE", "b", {}), ("HOLD", "c", {}), ("ROLLBACK", "a", None), ("FORCE", "a", None)]
        )
    ]
    assert aliases(entries[:1]) == {"champion": "a", "challenger": "a", "previous": None}
    assert aliases(entries[:3]) == {"champion": "b", "challenger": "c", "previous": "a"}
    assert aliases(entries) == {"champion": "a", "challenger": "c", "previous": "b"}
    assert aliases([]) == {"champion": None, "challenger": None, "previous": None}


def verified(project):
    """A champion whose .dvc and journal are in git."""
    write_gate(looks=3)
    entry = draft()
    (project / "champions").mkdir()
    Path(f"{champion_dir(entry.sha256)}.dvc").write_text("outs: []\n")
    (project / "champions/.gitignore").write_text(f"/{champion_dir(entry.sha256).name}\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    kept(entry)
    return entry


def test_verify_follows_the_champion_and_mends_the_aliases(project):
    entry = verified(project)
    lines = verify_journal()
    assert lines[0].startswith(f"{entry.sha256}  {champion_dir(entry.sha256)}/model.onnx: the champion since {TIME}")
    assert "with the dvc.lock of commit" in lines[1]
    assert lines[2:] == ["MLflow: champion, challenger and previous: as the journal says, and with the champion's model.onnx"]
    Path("registry.json").unlink()
    assert verify_journal()[2:4] == ["mended: versions: changed", "mended: aliases: changed"]
    Path("mlflow_away").touch()
    assert verify_journal()[2] == "MLflow: cannot be reached; start the server; its aliases were not checked"


@pytest.mark.parametrize("damage", ["scores", "model", "not in git", "journal changed", "another lock"])
def test_verify_names_each_difference(project, damage):
    entry = verified(project)
    folder = champion_dir(entry.sha256)
    if damage == "scores":
        (folder / "results/scores.json").write_text('{"model_sha256": "0"}')
    elif damage == "model":
        (folder / "model.onnx").write_bytes(b"other")
    elif damage == "not in git":
        type_in(project, "git", "rm", "-q", "--cached", f"{folder}.dvc")
    else:
        other = replace(
            entry, verdict="FORCE", key="by hand", lock_sha256="0" * 64, commit=read_journal()[0].commit, time="2027-01-01T00:00:00Z"
        )
        append(other)
        if damage == "another lock":
            commit(project, "journal")
    with pytest.raises(
        PipelineError, match={"scores": "is about 0", "model": "would use it", "another lock": "its dvc.lock"}.get(damage, "git")
    ):
        verify_journal()


def prepare(folder, has_dvc):
    """A project, with DVC's remote beside it, and the end that an undisturbed run reaches. Copy it before you change it."""
    project = make(folder / "begin/project", has_dvc)
    write_gate(project, looks=3)  # something to commit
    shutil.copytree(folder / "begin", folder / "end", symlinks=True)
    assert run(folder / "end/project", "retrain").returncode == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("plain"), has_dvc=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("kill"), has_dvc=True)


def run(project, *arguments):
    environment = {**user_environment(ROOT), **DATES}
    command = [sys.executable, "-m", "tests.promotions", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def end_of(project):
    """Everything that must be the same: the journal, git, champions, the registry, and what the remote lacks."""
    files = {path.relative_to(project).as_posix(): path.read_bytes() for path in (project / "champions").rglob("*") if path.is_file()}
    return {
        "journal": (project / JOURNAL).read_text(),
        "git": type_in(project, "git", "log", "--format=%H %s"),
        "status": type_in(project, "git", "status", "--porcelain"),
        "champions": files,
        "registry": read_json(project / "registry.json"),
        "remote": sorted(path.relative_to(project.parent).as_posix() for path in (project.parent / "storage").rglob("*")),
        "begun": (project / ".cache/promotion/begun.json").exists(),
    }


@pytest.mark.parametrize("point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in POINTS])
def test_a_run_that_is_killed_and_repeated_ends_as_one_that_is_not(plain, tmp_path, point):
    check_kill(plain, tmp_path, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_with_a_remote_it_ends_so_too(prepared, tmp_path, point):
    check_kill(prepared, tmp_path, point)


def check_kill(prepared, tmp_path, point):
    shutil.copytree(prepared / "begin", tmp_path / "killed", symlinks=True)
    project = tmp_path / "killed/project"
    assert run(project, "retrain", point).returncode == -9
    again = run(project, "retrain")
    assert again.returncode == 0, again.stderr + again.stdout
    assert end_of(project) == end_of(prepared / "end/project")


@pytest.mark.slow
def test_an_undisturbed_run_leaves_nothing_to_push_or_commit(prepared):
    end = end_of(prepared / "end/project")
    assert end["status"] == ""
    assert len(end["git"].splitlines()) == 4
    assert json.loads(type_in(prepared / "end/project", "dvc", "data", "status", "--not-in-remote", "--json")) == {}


@pytest.mark.slow
def test_while_the_remote_is_away_nobody_becomes_champion(prepared, tmp_path):
    shutil.copytree(prepared / "begin", tmp_path / "away", symlinks=True)
    project = tmp_path / "away/project"
    (tmp_path / "away/storage").write_text("not a folder")
    away = run(project, "retrain")
    facts = json.loads(away.stdout)
    assert (away.returncode, facts["outcome"], facts["decision"]) == (15, "UNFINISHED", "PROMOTE")
    assert facts["undone"][0].startswith("DVC remote storage: ERROR")
    assert not (project / JOURNAL).exists()
    (tmp_path / "away/storage").unlink()
    assert run(project, "retrain").returncode == 0
    assert end_of(project) == end_of(prepared / "end/project")


@pytest.mark.slow
@pytest.mark.parametrize("point", [*POINTS[4:-2], "append", "git commit"])
def test_a_rollback_that_is_killed_and_repeated_rolls_back_once(prepared, tmp_path, point):
    shutil.copytree(prepared / "end", tmp_path / "back", symlinks=True)
    project = tmp_path / "back/project"
    first = read_journal(project / JOURNAL)[0].sha256
    second = write_candidate("small", b"two", project)
    assert run(project, "retrain").returncode == 0
    assert run(project, "rollback", point).returncode == -9
    assert run(project, "rollback").returncode == 0
    assert [(entry.verdict, entry.sha256) for entry in read_journal(project / JOURNAL)] == [
        ("PROMOTE", first), ("PROMOTE", second), ("ROLLBACK", first),
    ]  # fmt: skip
    assert read_json(project / "registry.json")["aliases"] == {"champion": first, "challenger": second, "previous": second}
