"""`pipeline schedule`: each scheduler's own checker accepts its files, odd paths are quoted or refused, and the commands in them run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.commands.schedule import Job, Time, find_job, schedule_files
from pipeline.core.errors import PipelineError
from pipeline.promotion.retraining import Outcome
from tests.checkout import ROOT

ODD = "100 % größer; #1 & more"
NIGHTLY = Time(3, 0)
JOB = Job(Path("/srv/pictures"), Path(sys.executable), "somebody")
DECISIONS = (Outcome.DONE, Outcome.HELD, Outcome.REJECTED, Outcome.PENDING)
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
needs_python_elsewhere = pytest.mark.skipif(sys.executable.startswith(("/tmp", "/var/tmp")), reason="this Python is in a temporary folder")


def content(form, job=JOB, at=NIGHTLY, **options):
    """The first file of a form."""
    return next(iter(schedule_files(form, at, job, **options).values()))


def verified(folder, job, is_user):
    """What `systemd-analyze verify` says of the units of a job, and its exit code."""
    files = schedule_files("systemd", NIGHTLY, job, is_user)
    for name, text in files.items():
        (folder / name).write_text(text)
    command = ["systemd-analyze", "--user" if is_user else "--system", "verify", *(folder / name for name in files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)})
    return result.stdout + result.stderr, result.returncode


@pytest.mark.parametrize(
    ("text", "cron", "calendar"),
    [
        ("03:00", "0 3 * * *", "*-*-* 03:00:00"),
        ("4:05", "5 4 * * *", "*-*-* 04:05:00"),
        ("thu,Mon 23:59", "59 23 * * 1,4", "Mon,Thu *-*-* 23:59:00"),
    ],
)
def test_a_time_is_written_as_each_scheduler_reads_it(text, cron, calendar):
    at = Time.parse(text)
    assert (at.cron, at.calendar) == (cron, calendar)
    if shutil.which("systemd-analyze"):
        subprocess.run(["systemd-analyze", "calendar", at.calendar], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("text", ["", "3", "24:00", "3:60", "Foo 03:00", "Mon, 03:00", "03:00\nOnCalendar=x"])
def test_what_is_not_a_time_is_wrong_usage(text, below, ask):
    code, _, stderr = ask("schedule", "--cron", "--at", text)
    assert (code, "write one as 03:00" in stderr) == (2, True)


@needs_systemd
@needs_python_elsewhere
@pytest.mark.parametrize("is_user", [False, True])
def test_systemd_accepts_the_units_without_a_word(is_user, tmp_path):
    assert verified(tmp_path, Job(Path("/srv", ODD), Path(sys.executable), "somebody", (Path("/srv/a remote"),)), is_user) == ("", 0)


@needs_systemd
@pytest.mark.parametrize("is_user", [False, True])
def test_systemd_reads_an_odd_path_as_it_is(is_user, tmp_path):
    python = f"/opt/{ODD}/bin/python"
    said, code = verified(tmp_path, Job(Path("/srv/pictures"), Path(python), "somebody"), is_user)
    assert (f"Command {python} is not executable" in said, code != 0) == (True, True)


def test_a_unit_writes_to_the_project_and_to_a_dvc_remote_elsewhere(below, monkeypatch):
    remotes = "[core]\n    no_scm = true\n[cache]\n    dir = ../../shared\n['remote \"near\"']\n    url = storage\n"
    monkeypatch.chdir(below.parent)
    Path(".dvc").mkdir()
    remotes += "['remote \"far\"']\n    url = ../../a remote\n['remote \"cloud\"']\n    url = s3://bucket/folder\n"
    Path(".dvc/config").write_text(remotes)
    assert find_job().writable == (below.parent.parent / "a remote", below.parent.parent / "shared")
    job = Job(Path("/srv/pictures"), Path("/opt/python"), "somebody", (Path("/srv/a remote"),))
    assert 'ReadWritePaths="/srv/pictures" "-/srv/a remote"\n' in content("systemd", job)


@pytest.mark.parametrize(
    ("form", "folder"),
    [
        *(("systemd", name) for name in ('say "ants"', "it's", "back\\slash", "$HOME", "two\nlines", "at the end ", "\udcff")),
        *(("cron", name) for name in ("back\\slash", "two\nlines", "\udcff")),
        ("systemd", "/tmp/pictures"),
    ],
)
def test_a_path_that_cannot_be_quoted_is_refused_in_one_line(form, folder):
    with pytest.raises(PipelineError, match=r"^[^\n]*; move the project$"):
        schedule_files(form, NIGHTLY, Job(Path("/srv", folder), Path("/opt/python"), "somebody"))


def test_two_projects_have_names_that_every_scheduler_takes():
    folders = ("/srv/Ants_and.bees", "/srv/größer", "/srv/--", "/srv/" + "x" * 300)
    names = [Job(Path(folder), Path("/opt/python"), "somebody").name for folder in folders]
    assert names[:3] == ["retrain-ants-and-bees", "retrain-gr-er", "retrain"]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", name) for name in names)


@pytest.fixture
def odd_project(tmp_path):
    """A project at an odd path. Its `pipeline retrain` prints its arguments, and ends with the exit code in the file `code`."""
    project = tmp_path / f"it's {ODD}"
    (project / "pipeline").mkdir(parents=True)
    script = "import sys\nprint(sys.argv[1:])\nprint('a message', file=sys.stderr)\nsys.exit(int(open('code').read()))\n"
    (project / "pipeline/__main__.py").write_text(script)
    (project / "code").write_text("0")
    return project


def run_crontab(project):
    """Run the command of the crontab as cron does, and return its exit code: `\\%` is `%`, and there are few variables."""
    (line,) = [line for line in content("cron", Job(project, Path(sys.executable), "somebody")).splitlines() if not line.startswith("#")]
    command = line.split(" ", 5)[5]
    assert re.search(r"(?<!\\)%", command) is None
    environment = {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", "HOME": str(project), "LOGNAME": "somebody"}
    return subprocess.run(["/bin/sh", "-c", command.replace("\\%", "%")], env=environment, cwd="/", check=False).returncode


def test_cron_runs_it_in_an_odd_path_keeps_what_it_prints_and_its_exit_code(odd_project):
    assert run_crontab(odd_project) == 0
    (odd_project / "code").write_text("11")
    assert run_crontab(odd_project) == 11
    assert (odd_project / ".cache/retrain.jsonl").read_text() == "['retrain']\n" * 2
    assert (odd_project / ".cache/retrain.log").read_text() == "a message\n" * 2


def test_cron_starts_no_second_one_beside_the_first(odd_project):
    (odd_project / ".cache").mkdir()
    with subprocess.Popen(["flock", odd_project / ".cache/cron.lock", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdin.write(b"held\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"held\n"
        assert run_crontab(odd_project) == Outcome.BUSY
        assert (odd_project / ".cache/retrain.jsonl").read_text() == ""
        first.stdin.close()
    assert run_crontab(odd_project) == 0


def test_the_workflow_of_this_repository_is_the_one_that_is_printed():
    assert content("github") == (ROOT / ".github/workflows/retrain.yml").read_text()


@pytest.mark.parametrize("name", ["retrain.yml", "test.yml"])
def test_the_schema_of_github_accepts_the_workflow(name):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", ROOT / ".github/workflows" / name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
def test_actionlint_accepts_the_workflow():
    result = subprocess.run(["actionlint", ROOT / ".github/workflows/retrain.yml"], capture_output=True, text=True, check=False)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


def stub(folder, name, script):
    """Write a command of a project's environment."""
    path = folder / ".venv/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_workflow_fails_for_what_is_a_failure_and_its_summary_has_the_line(tmp_path):
    (step,) = [step for step in yaml.safe_load(content("github"))["jobs"]["retrain"]["steps"] if step.get("name") == "Retrain"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    stub(tmp_path, "dvc", 'echo "$@" >> dvc.log')
    stub(tmp_path, "python", f'exec {shlex.quote(sys.executable)} "$@"')
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "DVC_REMOTE": "s3://a/b",
    }
    for code in (*Outcome, 2):
        (tmp_path / "summary").unlink(missing_ok=True)
        printed = "" if code == Outcome.FAILURE else """printf '{"options": "%s", "name": "größer"}' "$*"; """
        stub(tmp_path, "pipeline", f"{printed}exit {int(code)}")
        result = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == (0 if code in DECISIONS else code), result.stderr
        outcome = Outcome(code).name.lower().replace("_", " ") if code != 2 else "exit code 2"
        summary = (tmp_path / "summary").read_text()
        assert (f"pipeline retrain: {outcome}\n" in summary, f"::{outcome}\n" in result.stdout) == (True, True)
        assert ('"options": "retrain --skip-ci --push",\n    "name": "größer"' in summary) == bool(printed)
    assert (tmp_path / "dvc.log").read_text().splitlines()[0] == "remote add --local --force --default storage s3://a/b"


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_schema_of_kubernetes_accepts_both_objects(version):
    validator = pytest.importorskip("kubernetes_validate")
    objects = list(yaml.safe_load_all(content("kubernetes", at=Time(3, 0, (1,)))))
    assert [each["kind"] for each in objects] == ["PersistentVolumeClaim", "CronJob"]
    for each in objects:
        validator.validate(each, version, strict=True)


def test_the_cronjob_fails_for_what_is_a_failure(tmp_path):
    cronjob = list(yaml.safe_load_all(content("kubernetes")))[1]
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for code in Outcome:
        stub(tmp_path, "pipeline", f"exit {int(code)}")
        assert subprocess.run(container["command"], cwd=tmp_path, check=False).returncode == (0 if code in DECISIONS else code)


def test_the_cronjob_prepares_its_claim_from_a_clone_and_again(tmp_path, monkeypatch):
    """With git, but a `make` that only notes that it was called: the environment takes minutes."""
    cronjob = list(yaml.safe_load_all(content("kubernetes")))[1]
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"]
    for key in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make` that runs the tests
        monkeypatch.delenv(key, raising=False)
    for key, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "REPOSITORY": str(tmp_path / "origin")}.items():
        monkeypatch.setenv(key, value)
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])

    def commit(text):
        (tmp_path / "origin/Makefile").write_text(f"setup:\n\t@echo {text}\n")
        subprocess.run(["git", "add", "."], cwd=tmp_path / "origin", check=True)
        subprocess.run(["git", "commit", "-qm", text], cwd=tmp_path / "origin", check=True)

    subprocess.run(["git", "init", "-q", tmp_path / "origin"], check=True)
    (tmp_path / "project").mkdir()
    for text in ("first", "second"):
        commit(text)
        prepared = subprocess.run(container["command"], cwd=tmp_path / "project", capture_output=True, text=True, check=False)
        assert (prepared.stdout.splitlines()[-1:], prepared.returncode) == ([text], 0), prepared.stderr


def test_files_go_to_the_folder_that_the_user_names(below, ask):
    code, stdout, stderr = ask("schedule", "--kubernetes", "--output", "files")
    (path,) = map(Path, stdout.splitlines())
    assert (code, stderr, path.parent) == (0, "", below / "files")
    assert yaml.safe_load_all(path.read_text())
    assert ask("schedule", "--cron", "--user") == (1, "", "--user: is for --systemd alone; leave it out\n")


@pytest.mark.parametrize("form", ["systemd", "cron", "github", "kubernetes"])
def test_each_form_is_printed_with_every_value_filled_in_and_options_that_exist(form, capsys):
    for text in schedule_files(form, NIGHTLY, Job(Path("/srv/pictures"), Path("/opt/python"), "somebody", pushes=True)).values():
        assert re.findall(r"@[a-z_]+@", text) == []
        for options in re.findall(r"pipeline retrain((?: --[a-z-]+)+)", text):
            with pytest.raises(SystemExit):
                main(["retrain", "--help"])
            assert set(options.split()) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
