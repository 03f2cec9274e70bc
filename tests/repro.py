"""A `dvc repro` that can be watched and killed, and the files that it wrote."""

import os
import re
import signal
import sqlite3
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline.core.files import sha256_of_file
from tests.checkout import user_environment

WAYS = ("SIGKILL to all", "SIGTERM to all", "SIGKILL to dvc alone")


def stages_run(output: str) -> list[str]:
    """The stages that a `dvc repro` ran, in their order."""
    return re.findall(r"^Running stage '(.+)':", output, re.MULTILINE)


class Repro:
    """A `dvc repro` in its own process group. It prints to a file: a pipe would break under a stage that outlives it."""

    def __init__(self, folder: Path, *targets: str) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process may print
        self.process = subprocess.Popen(
            ["dvc", "repro", *targets], cwd=folder, env={**user_environment(folder), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def output(self) -> str:
        """Everything that it and its stages have printed so far."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode()

    def begun(self) -> list[str]:
        """The stages that have begun so far."""
        return stages_run(self.output())

    def is_over(self) -> bool:
        """Whether `dvc` has ended."""
        return self.process.poll() is not None

    def end(self) -> tuple[int, str]:
        """Wait for `dvc` to end, and return its exit code and its output."""
        try:
            code = self.process.wait()
        except BaseException:  # the test was interrupted
            self.kill("SIGKILL to all")
            raise
        with self.log:
            return code, self.output()

    def kill(self, way: str) -> None:
        """Kill it in one of the WAYS. A stage that survives goes on printing."""
        with self.log, suppress(ProcessLookupError):
            if way == "SIGKILL to dvc alone":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGTERM if way == "SIGTERM to all" else signal.SIGKILL)
        self.process.wait()


def read_lock(folder: Path) -> dict[str, dict[str, object]]:
    """The stages of dvc.lock."""
    stages: dict[str, dict[str, object]] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return stages


def outs_of(folder: Path, stage: str) -> list[Path]:
    """The files and folders that a stage writes."""
    return [folder / out["path"] for out in read_lock(folder)[stage]["outs"]]


def sums_of(folder: Path, stage: str) -> set[tuple[str, str]]:
    """The path and the sha256 of each file that a stage wrote."""
    return {(str(file.relative_to(folder)), sha256_of_file(file)) for out in outs_of(folder, stage) for file in files_of(out)}


def files_of(out: Path) -> list[Path]:
    """The files of an out: the out itself or all files in it; none if it is missing."""
    return [file for file in (out, *out.rglob("*")) if file.is_file()]


def runs_of(folder: Path) -> list[tuple[str, str, int]]:
    """The active runs in a clone's MLflow database: each name and status, and their number."""
    if not (folder / "mlflow.db").exists():
        return []
    query = "select name, status, count(*) from runs where lifecycle_stage = 'active' group by name, status"
    with sqlite3.connect(folder / "mlflow.db") as database:
        return database.execute(query).fetchall()


def left_behind(folder: Path) -> list[str]:
    """Half-written outs and checkpoints, which exist only during a run."""
    partial = [path for path in folder.rglob("*.partial*") if ".cache" not in path.parts]
    return [str(path.relative_to(folder)) for path in (*partial, *folder.glob(".cache/checkpoints/*/*"))]
