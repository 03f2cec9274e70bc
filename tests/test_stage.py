"""What every stage shares: its main line, its exit codes, its lock."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline import stage
from pipeline.errors import PipelineError
from pipeline.params import Section


class Params(Section):
    seed: int
    count: int


@pytest.fixture(autouse=True)
def inside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "in", "out"])
    (tmp_path / "params.yaml").write_text("seed: 1\nembed: {count: 2}\nmodels: {linear: {count: 3}}\n")


def refuse(*_):
    raise PipelineError("data/raw.zip: holds nothing")


def exit_code_of(run, section="embed"):
    with pytest.raises(SystemExit) as caught:
        stage.main(section, Params, run)
    return caught.value.code


def test_a_stage_gets_its_params_and_its_paths():
    seen = []
    stage.main("embed", Params, lambda *arguments: seen.append(arguments))
    assert seen == [(Params(seed=1, count=2), Path("in"), Path("out"))]


def test_a_section_with_a_star_takes_its_last_key_from_the_first_argument(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["stage", "linear", "in"])
    stage.main("models.*", Params, lambda *arguments: seen.append(arguments))
    assert seen == [(Params(seed=1, count=3), Path("in"))]


def test_a_stage_that_ends_well_prints_nothing(capsys):
    stage.main("embed", Params, lambda *_: None)
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_the_user_is_one_line_on_stderr(capsys):
    exit_code_of(refuse)
    assert capsys.readouterr() == ("", "data/raw.zip: holds nothing\n")


def test_a_fault_of_the_user_is_exit_code_1():
    assert exit_code_of(refuse) == 1


def test_a_fault_in_params_is_one_line_on_stderr(capsys):
    code = exit_code_of(refuse, "split")
    assert (code, capsys.readouterr().err) == (1, "params.yaml: split: is missing\n")


def test_an_unexpected_exception_stays_an_exception():
    def divide(*_):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        stage.main("embed", Params, divide)


def test_a_second_holder_of_the_lock_is_refused(capsys, tmp_path):
    folder = tmp_path / ".cache" / "locks"
    folder.mkdir(parents=True)
    with FileLock(folder / "embed.lock"):
        code = exit_code_of(refuse)
    expected = "embed: another process is running this stage; wait for it or stop it\n"
    assert (code, capsys.readouterr().err) == (1, expected)


def test_a_second_process_is_refused(capsys):
    code = "from filelock import FileLock; lock = FileLock('.cache/locks/embed.lock'); lock.acquire(); print('held', flush=True); input()"
    Path(".cache/locks").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        exit_code_of(refuse)
        holder.communicate("\n")
    assert capsys.readouterr().err == "embed: another process is running this stage; wait for it or stop it\n"


def test_another_stage_runs_beside_it():
    seen = []
    stage.main("embed", Params, lambda *_: stage.main("models.linear", Params, lambda *_: seen.append(1)))
    assert seen == [1]


@pytest.mark.parametrize("fault", [PipelineError, ZeroDivisionError])
def test_the_lock_is_free_again_after_a_fault(fault):
    def stop(*_):
        raise fault

    seen = []
    with pytest.raises((SystemExit, ZeroDivisionError)):
        stage.main("embed", Params, stop)
    stage.main("embed", Params, lambda *_: seen.append(1))
    assert seen == [1]
