"""Every command of the README does what it says, and every figure in it was printed by one."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests

from pipeline.commands.show import show_results
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if "$ " not in block or line.startswith("$ ")
]
ELSEWHERE = {
    "git clone <this repository> pipeline && cd pipeline": "the fixture clones",
    "make run": "runs `dvc repro` and `pipeline results`, as the fixture and a test below do",
    "pipeline ui": "a server: a test below starts and stops it",
}


@pytest.fixture(scope="module")
def clone_of_digits(digits, tmp_path_factory, clone, type_in):
    """A clone of its own with the outs of the default run, committed."""
    folder = tmp_path_factory.mktemp("readme")
    project = clone(folder / "pipeline")
    shutil.copy(digits[0] / "dvc.lock", project)
    type_in(project, "dvc", "config", "cache.dir", str(digits[0] / ".dvc/cache"))
    type_in(project, "dvc", "repro")
    type_in(project, "git", "add", "-A")
    type_in(project, "git", "commit", "-qm", "ran")
    return project


@pytest.mark.e2e
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ELSEWHERE])
def test_a_command_of_the_readme_ends_well(clone_of_digits, type_in, command):
    if "hymenoptera" in command:
        pytest.skip("test_hymenoptera runs it, where the archive is there")
    type_in(clone_of_digits, "bash", "-euc", command)


@pytest.mark.e2e
def test_the_page_of_mlflow_is_served_to_this_machine_alone(clone_of_digits, environment):
    server = subprocess.Popen(["pipeline", "ui", "--port", "5765"], cwd=clone_of_digits, env=environment, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        assert server.stdout.readline() == "MLflow's page: http://127.0.0.1:5765 (Ctrl-C ends it)\n"
        assert answers("http://127.0.0.1:5765/health") == 200
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        server.stdout.close()


def answers(url: str, patience_seconds: float = 60) -> int | None:
    """The status of a page once its server answers."""
    give_up = time.monotonic() + patience_seconds
    while time.monotonic() < give_up:
        try:
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.5)
    return None


def test_the_table_of_the_readme_is_what_the_committed_metrics_say():
    assert f"```text\n{show_results(ROOT / 'metrics/comparison.json')}\n```" in README


def test_the_results_of_the_readme_are_those_of_the_benchmark():
    import importlib.util

    spec = importlib.util.spec_from_file_location("seeds", ROOT / "bench/seeds.py")
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    for name, results in json.loads((ROOT / "bench/results.json").read_text()).items():
        if name == "startup":  # not a table of scores
            continue
        assert seeds.table(results) in README
        assert f"{results['hardware']}, {results['date']}" in README


@pytest.mark.parametrize("path", re.findall(r"!\[.*?\]\((.+?)\)", README))
def test_a_picture_of_the_readme_is_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", re.findall(r"^\| `((?:pipeline|bench|tests)/[\w/]*)`", README, re.MULTILINE))
def test_a_room_that_the_readme_names_is_there(path):
    assert Path(ROOT / path).is_dir()
