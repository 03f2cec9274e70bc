"""The workflow that `pipeline schedule --github` prints, its commands in order: in a fresh clone, and in that of the next night."""

import json
import sys

import pytest
import yaml

from pipeline.commands.schedule import Job, Time, schedule_files
from tests.checkout import ROOT, copy, type_in
from tests.repro import read_lock

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COMMANDS = {"dvc": "-m dvc", "pipeline": "-m pipeline", "python": ""}


def run_workflow(clone, remote):
    """Run the commands after `make setup`, in whose place the clone gets this Python. Returns the summary and the JSON line."""
    for name, module in COMMANDS.items():
        command = clone / ".venv/bin" / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(0o755)
    text = schedule_files("github", Time(3, 0), Job(clone, ROOT, "runner"))["retrain.yml"]
    setup, *steps = [step["run"] for step in yaml.safe_load(text)["jobs"]["retrain"]["steps"] if "run" in step]
    assert (setup, len(steps)) == ("make setup", 1)
    summary = clone.parent / "summary.md"
    for step in steps:
        type_in(clone, "bash", "-e", "-c", step, DVC_REMOTE=str(remote), GITHUB_STEP_SUMMARY=str(summary))
    return summary.read_text(), json.loads((clone / "decision.json").read_text())


def test_the_first_night_promotes_and_pushes_and_the_next_one_restores_and_does_nothing(fresh, tmp_path):
    first = copy(fresh, tmp_path / "first") / "clone"
    origin, remote = tmp_path / "origin.git", tmp_path / "storage"
    type_in(tmp_path, "git", "init", "-q", "--bare", "-b", "main", str(origin))
    type_in(first, "git", "branch", "-M", "main")
    type_in(first, "git", "remote", "add", "origin", str(origin))
    type_in(first, "git", "push", "-q", "-u", "origin", "main")
    summary, line = run_workflow(first, remote)
    assert summary.startswith("### pipeline retrain: done\n```json\n{\n")
    assert (line["outcome"], line["undone"]) == ("DONE", [])
    messages = type_in(origin, "git", "log", "--format=%s", "main").splitlines()
    made = messages[: -len(type_in(fresh / "clone", "git", "log", "--format=%s").splitlines())]
    assert len(made) == 2
    assert [message for message in made if not message.endswith("[skip ci]")] == []

    (tmp_path / "second").mkdir()
    for name in ("pictures", "test_resnet.safetensors"):
        (tmp_path / "second" / name).symlink_to(fresh / name)
    second = tmp_path / "second/clone"
    type_in(tmp_path, "git", "clone", "-q", str(origin), str(second))
    _, line = run_workflow(second, remote)
    assert (line["outcome"] in ("DONE", "HELD"), line["undone"], set(line["ran"]) <= {"split"}) == (True, [], True)
    assert read_lock(second) == read_lock(first)
    assert type_in(origin, "git", "log", "--format=%s", "main").splitlines() == messages
