"""The README as a new user follows it: its commands end well, its figures are those that they print, its links lead somewhere."""

import importlib.util
import json
import re
import shutil

import pytest

from pipeline.commands.show import show_results
from tests.checkout import commit
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCS = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
ELSEWHERE = {
    r"git clone |make ": "the fixture does it",
    r"source |pip install": "the environment is active, and is also that of the tests",
    r"pipeline ui": "a server: test_mlflow_page starts and stops it",
    r"pipeline serve|curl |\{ printf ": "a server, and what is sent to it: tests/server starts and asks one",
    r"docker ": "needs Docker's service: tests/server/test_docker tests what it builds",
    r".*--on ray": "needs a cluster: tests/serving/test_remote starts one",
    r"pipeline schedule --systemd": "refused in a temporary folder: tests/commands/test_schedule tests it",
    r".*hymenoptera": "test_hymenoptera runs it",
    r"pipeline (segment|detect) ": "needs a photograph and published weights; tests/stock tests them on others",
}


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """The commands in the console blocks of a text, each with the lines that the text says it prints."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ ") or not re.search(r"^\$ ", block, re.MULTILINE):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line.rstrip())
    return [(command, printed) for command, printed in found if not any(re.match(pattern, command) for pattern in ELSEWHERE)]


def without_numbers(line: str) -> str:
    """A line with # for each number, and one space for several."""
    return re.sub(r"[-+]?\d+(\.\d+)?(e-\d+)?", "#", " ".join(line.split()))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory, clone, type_in):
    """A fresh clone in which `make run` ran, except for the installation, and what it printed."""
    folder = clone(tmp_path_factory.mktemp("readme") / "pipeline")
    printed = type_in(folder, "make", "--old-file", ".venv/.ready", "run")
    commit(folder, "ran")
    shutil.copytree(folder / "data/splits/val", folder / "new-pictures")
    return folder, printed


@pytest.fixture(scope="module")
def small_run(copy_of_digits):
    """The clone of the other tests, in which the pipeline ran on 400 digits."""
    return copy_of_digits()


@pytest.mark.e2e
@pytest.mark.slow
def test_make_run_prints_the_table_of_the_readme_but_for_what_the_processor_changes(default_run):
    (quoted,) = re.findall(r"```text\n(model .*?)```", README, re.DOTALL)
    printed = default_run[1][default_run[1].index("\nmodel ") + 1 :]  # the commands of the stages contain `--model`
    assert [without_numbers(line) for line in printed.splitlines()] == [without_numbers(line) for line in quoted.splitlines()]
    # Trained bytes differ between processors, so a figure may move, but not beyond the interval that the README states.
    figure = re.compile(r"(\d\.\d+) \[(\d\.\d+), (\d\.\d+)\]")
    for (value, _, _), (_, low, high) in zip(figure.findall(printed), figure.findall(quoted), strict=True):
        assert float(low) <= float(value) <= float(high)


@pytest.mark.e2e
@pytest.mark.slow
def test_the_report_on_the_digits_is_under_five_megabytes(default_run):
    assert (default_run[0] / "report/index.html").stat().st_size < 5e6


@pytest.mark.e2e
@pytest.mark.parametrize("command", dict.fromkeys(command for command, _ in commands_in(README)))  # the second `dvc repro`: test_digits
def test_a_command_of_the_readme_ends_well(small_run, type_in, command):
    type_in(small_run, "bash", "-euc", command)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), commands_in(README))
def test_a_command_of_the_readme_prints_what_is_quoted(default_run, type_in, command, printed):
    lines = [without_numbers(line) for line in type_in(default_run[0], "bash", "-euc", command).splitlines()]
    assert [line for line in printed if without_numbers(line) not in lines] == []


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command, _ in commands_in(DOCS)])
def test_a_command_of_the_other_pages_ends_well(default_run, type_in, command):
    type_in(default_run[0], "bash", "-euc", command)


def test_the_table_of_the_readme_is_what_the_committed_metrics_say():
    assert f"```text\n{show_results(ROOT / 'metrics/comparison.json')}\n```" in README


def test_the_results_are_those_of_the_benchmark():
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "bench/seeds.py")
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    for results in json.loads((ROOT / "bench/results.json").read_text()).values():
        if "of" in results:  # a table of scores
            assert seeds.table(results) in README + DOCS
            assert f"{results['hardware']}, {results['date']}" in README + DOCS


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:|#)([^)#]+)", README))
def test_a_file_that_the_readme_links_to_is_there(path):
    assert (ROOT / path).exists()
