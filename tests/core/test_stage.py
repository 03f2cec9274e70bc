"""What every stage shares: its main line, exit codes, lock, orderly end, and a full disk."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from filelock import FileLock

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file
from pipeline.core.sections import Section

ROOT = Path(__file__).parent.parent.parent


class Params(Section):
    seed: int
    count: int


@pytest.fixture(autouse=True)
def inside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "in", "out"])
    (tmp_path / "params.yaml").write_text("seed: 1\nembed: {count: 2}\nrecipe: {}\nmodels: {linear: {count: 3}}\n")


def refuse(*_):
    raise PipelineError("data/raw: holds nothing")


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


@pytest.mark.parametrize(("section", "count"), [("embed", 2), ("models.*", 3)])
def test_a_named_model_takes_its_place_in_the_paths(monkeypatch, section, count):
    seen = []
    monkeypatch.setattr(sys, "argv", ["stage", "--model", "linear", "models/{model}", "in", "metrics/{model}.json"])
    stage.main(section, Params, lambda *arguments: seen.append(arguments))
    assert seen == [(Params(seed=1, count=count), Path("models/linear"), Path("in"), Path("metrics/linear.json"))]


def test_a_stage_that_ends_well_prints_nothing(capsys):
    stage.main("embed", Params, lambda *_: None)
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_the_user_is_one_line_on_stderr(capsys):
    exit_code_of(refuse)
    assert capsys.readouterr() == ("", "data/raw: holds nothing\n")


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


class Releases(io.StringIO):
    """A stderr that releases the lock as soon as something is printed."""

    def __init__(self, lock):
        super().__init__()
        self.lock = lock

    def write(self, text):
        self.lock.release()
        return super().write(text)


def run_while_held(monkeypatch, pid=None):
    """Run a stage whose lock is taken until the stage has printed something; return what it printed."""
    locks = Path(".cache/locks")
    locks.mkdir(parents=True)
    lock = FileLock(locks / "out.lock")
    lock.acquire()
    if pid is not None:
        (locks / "out.pid").write_text(pid)
    monkeypatch.setattr(sys, "stderr", Releases(lock))
    seen = []
    stage.main("embed", Params, lambda *_: seen.append(sys.stderr.getvalue()))
    assert seen == [sys.stderr.getvalue()]  # it ran after it had printed
    return seen[0]


def test_a_stage_waits_for_the_process_that_writes_its_out_and_names_it(monkeypatch):
    pid = os.getppid()
    expected = f"out: process {pid} is writing it; waiting (stop it with: kill {pid})\n"
    assert run_while_held(monkeypatch, str(pid)) == expected


@pytest.mark.parametrize("pid", [None, "", "4711 is no number", "2147483646"])
def test_a_stage_waits_for_a_process_whose_number_is_not_known(monkeypatch, pid):
    assert run_while_held(monkeypatch, pid) == "out: another process is writing it; waiting\n"


def hold(*code):
    """A process that runs a stage on the same out; it has begun."""
    lines = "import os, sys, time", "from pipeline.core import stage", "from pipeline.core.sections import Section", *code
    lines = *lines, "stage.main('embed', type('Params', (Section,), {'__annotations__': {'seed': int, 'count': int}}), run)"
    holder = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), "in", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "begun\n"
    return holder


SLEEPY = "def run(*_): print('begun', flush=True); time.sleep(600)"


def test_the_waiting_stage_continues_if_the_user_stops_the_other_process_as_printed(monkeypatch):
    class Obeys(io.StringIO):
        def write(self, text):
            if "kill" in text:
                subprocess.run(["bash", "-c", text.partition("stop it with: ")[2].rstrip(")\n")], check=True)
            return super().write(text)

    with hold(SLEEPY) as holder:
        monkeypatch.setattr(sys, "stderr", Obeys())
        seen = []
        stage.main("embed", Params, lambda *_: seen.append(1))
    assert (seen, holder.returncode) == ([1], 143)
    assert sys.stderr.getvalue() == f"out: process {holder.pid} is writing it; waiting (stop it with: kill {holder.pid})\n"


def test_another_stage_runs_beside_it(monkeypatch):
    seen = []

    def run_another(*_):
        monkeypatch.setattr(sys, "argv", ["stage", "in", "another"])
        stage.main("models.linear", Params, lambda *_: seen.append(1))

    stage.main("embed", Params, run_another)
    assert seen == [1]


def test_the_lock_is_named_after_the_last_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage", "in", "results/linear", "metrics/linear.json"])
    seen = []
    stage.main("embed", Params, lambda *_: seen.extend(path.name for path in Path(".cache/locks").iterdir()))
    assert sorted(seen) == ["metrics_linear.json.lock", "metrics_linear.json.pid"]


def test_the_number_of_the_process_is_beside_the_lock():
    seen = []
    stage.main("embed", Params, lambda *_: seen.append(Path(".cache/locks/out.pid").read_text()))
    assert seen == [str(os.getpid())]


def test_the_number_of_the_process_is_gone_with_it():
    stage.main("embed", Params, lambda *_: None)
    assert not Path(".cache/locks/out.pid").exists()


@pytest.mark.parametrize("fault", [PipelineError, ZeroDivisionError, KeyboardInterrupt])
def test_the_lock_is_free_again_after_a_fault(fault):
    def stop(*_):
        raise fault

    seen = []
    with pytest.raises((SystemExit, ZeroDivisionError, KeyboardInterrupt)):
        stage.main("embed", Params, stop)
    stage.main("embed", Params, lambda *_: seen.append(1))
    assert seen == [1]


def end_by(number):
    """A stage that gets a signal while it writes a file."""

    def run(*_):
        with atomic_file(Path("out")) as partial:
            partial.touch()
            os.kill(os.getpid(), number)

    return run


@pytest.fixture
def signals_as_in_a_terminal():
    """The shell that started the tests may ignore hang-ups."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_stage_in_order(number, code):
    assert exit_code_of(end_by(number)) == code
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "params.yaml"]


def test_a_second_signal_kills_at_once():
    stubborn = "def run(*_):", " try: print('begun', flush=True); time.sleep(600)", " finally: print('ends', flush=True); time.sleep(600)"
    with hold(*stubborn) as holder:
        holder.terminate()
        assert holder.stdout.readline() == "ends\n"
        holder.terminate()
    assert holder.returncode == -signal.SIGTERM


def test_a_hangup_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = []
    try:
        stage.main("embed", Params, lambda *_: (os.kill(os.getpid(), signal.SIGHUP), seen.append(1)))
        assert (seen, signal.getsignal(signal.SIGHUP)) == ([1], signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_a_stage_signals_do_what_they_did():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    stage.main("embed", Params, lambda *_: None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def write_to_a_full_disk(write):
    """A stage whose writes are cut off after a thousand bytes, with EFBIG instead of ENOSPC."""

    def run(*_):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with atomic_file(Path("out")) as partial:
                write(partial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return run


def save_with_torch(path):
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(5000)}, file)


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(5000)),
    "safetensors": lambda path: safetensors.numpy.save_file({"a": np.zeros(5000)}, path),
    "torch": save_with_torch,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_finds_no_room_is_one_line_and_exit_code_1(name, capsys):
    code = exit_code_of(write_to_a_full_disk(WRITERS[name]))
    assert (code, capsys.readouterr().err) == (
        1,
        "out: File too large; free some space and run `dvc repro` again; it continues from there\n",
    )


def test_a_file_that_finds_no_room_is_not_there_in_part():
    exit_code_of(write_to_a_full_disk(WRITERS["python"]))
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "params.yaml"]


def test_numpys_short_write_is_one_line_and_exit_code_1(capsys):
    code = exit_code_of(write_to_a_full_disk(np.zeros(5000).tofile))
    assert (code, capsys.readouterr().err) == (
        1,
        "out: No space left on device; free some space and run `dvc repro` again; it continues from there\n",
    )


def raising(*errors):
    """A stage that raises the last error, from the one before it, and so on."""

    def run(*_):
        cause = None
        for error in errors:
            error.__cause__ = cause
            cause = error
        raise cause

    return run


@pytest.mark.parametrize(
    "errors, reason",
    [
        ([OSError(errno.ENOSPC, "No space left on device")], "No space left on device"),
        ([OSError(errno.EDQUOT, "Disk quota exceeded")], "Disk quota exceeded"),
        ([OSError(errno.EFBIG, "File too large")], "File too large"),
        ([OSError(errno.ENOSPC, "cannot write")], "No space left on device"),
        ([RuntimeError("I/O error: No space left on device (os error 28)")], "No space left on device"),
        ([OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")], "No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_and_exit_code_1(errors, reason, capsys):
    code = exit_code_of(raising(*errors))
    assert (code, capsys.readouterr().err) == (1, f"out: {reason}; free some space and run `dvc repro` again; it continues from there\n")


def test_another_fault_of_the_system_stays_an_exception():
    with pytest.raises(PermissionError):
        stage.main("embed", Params, raising(PermissionError(errno.EACCES, "Permission denied")))
