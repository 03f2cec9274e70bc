"""Measure commands in turn, each in a fresh process: seconds, peak memory, and how much of the CPUs other processes used meanwhile."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

SAMPLE_SECONDS = 0.5
TRIES = 3  # rounds begun per round wanted
ERROR_LINES = 15
Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run of a command. `foreign`: the share of all CPUs that other processes used. `figures`: what the command reported of itself."""

    seconds: float
    foreign: float
    peak_megabytes: float
    figures: Figures


def last_line(stdout: str) -> Figures:
    """The JSON object in the last line of a command's output."""
    figures: Figures = json.loads(stdout.rstrip().rpartition("\n")[2])
    return figures


@dataclass(frozen=True)
class Contender:
    """A command to measure in a folder. `value`: the figure to compare. `prepare`: runs before each run, unmeasured; `read`: after it."""

    name: str
    command: Sequence[str]
    folder: Path
    value: Callable[[Run], float] = lambda run: run.seconds
    prepare: Callable[[], object] = lambda: None
    read: Callable[[str], Figures] = lambda stdout: {}
    environment: Mapping[str, str] | None = None


def busy_seconds() -> float:
    """CPU time of all processes since the machine started, stolen time included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def proportional_memory(pid: int) -> int:
    """The bytes of a process and its descendants; what several share is counted once (PSS)."""
    total = 0
    with suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def run_once(contender: Contender, environment: Mapping[str, str]) -> Run:
    """Run a command once. Raises RuntimeError, with the end of what it printed, if it fails."""
    contender.prepare()
    with tempfile.TemporaryDirectory() as folder:
        out, err, report = (Path(folder, name) for name in ("out", "err", "report"))
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(report), *contender.command]
        busy, own, begun = busy_seconds(), own_seconds(), time.perf_counter()
        with out.open("w") as stdout, err.open("w") as stderr:
            usage, peak = watch(command, contender.folder, {**environment, **(contender.environment or {})}, stdout, stderr)
        used = usage.ru_utime + usage.ru_stime + own_seconds() - own
        foreign = max(0.0, busy_seconds() - busy - used) / ((time.perf_counter() - begun) * (os.cpu_count() or 1))
        measured = json.loads(report.read_text()) if report.exists() else {}
        if measured.get("exit_code") != 0:
            end = "\n".join((out.read_text() + err.read_text()).splitlines()[-ERROR_LINES:])
            raise RuntimeError(f"{contender.name}: exit code {measured.get('exit_code')}\n{end}")
        peak = max(peak, 1024 * measured["kilobytes"])  # a short run ends before the first sample
        return Run(measured["seconds"], foreign, peak / 1e6, contender.read(out.read_text()))


def watch(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], stdout: IO[str], stderr: IO[str]
) -> tuple[resource.struct_rusage, int]:
    """Run a command in a process group of its own. Returns what it and its descendants used, and the most memory they had together."""
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, start_new_session=True
    )
    peaks, is_over = [0], threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            peaks.append(proportional_memory(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)  # it waits for its own children, so their usage is in its own
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        is_over.set()
        sampler.join()
    return usage, max(peaks)


def take_round(contenders: Sequence[Contender], environment: Mapping[str, str], most_foreign: float) -> list[Run] | None:
    """A run of each contender, in turn; None as soon as other processes used more than that share of the CPUs."""
    runs = []
    for contender in contenders:
        run = run_once(contender, environment)
        print(
            f"  {contender.name}: {contender.value(run):.3g} ({run.seconds:.1f} s, {run.foreign:.0%} foreign CPU)",
            file=sys.stderr,
            flush=True,
        )
        if run.foreign > most_foreign:
            return None
        runs.append(run)
    return runs


def take_rounds(
    contenders: Sequence[Contender], count: int, environment: Mapping[str, str], most_foreign: float
) -> tuple[list[list[Run]], int]:
    """That many quiet rounds, or fewer if too many were disturbed, and how many were thrown away."""
    rounds: list[list[Run]] = []
    thrown = 0
    while len(rounds) < count and len(rounds) + thrown < TRIES * count:
        if runs := take_round(contenders, environment, most_foreign):
            rounds.append(runs)
        else:
            thrown += 1
    return rounds, thrown
