"""DVC as this project uses it: run it, repair its files after a kill, and keep the file lists of dvc.yaml."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file
from pipeline.core.params import parse_yaml
from pipeline.core.stage import import_closure

STAGES_WITH_FILES = ("embed", "train")  # they may take hours, so an unrelated edit must not rerun them
_WRITE_SECONDS = 0.5  # much longer than DVC takes to write either of its files


def rewrite_deps(path: Path = Path("dvc.yaml")) -> bool:
    """Make `embed` and `train` list exactly the files that they import. Returns whether dvc.yaml changed.

    The other stages take seconds and list whole folders.
    """
    text = path.read_text(encoding="utf-8")
    new = text
    for stage in STAGES_WITH_FILES:
        block = re.compile(rf"(?ms)(^  {stage}:\n.*?)((?:^      - pipeline/[^\n]*\.py\n)+)")
        files = "".join(f"      - {file}\n" for file in import_closure(f"pipeline.stages.{stage}"))
        new = block.sub(lambda match, files=files: match[1] + files, new, count=1)  # type: ignore[misc]
    if new == text:
        return False
    with atomic_file(path) as partial:
        partial.write_text(new, encoding="utf-8")
    return True


def run_dvc(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run DVC with this Python first on the path, so that its stages use it, too. Options are those of subprocess.run."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, text=True, check=False, **options)


def mend() -> list[str]:
    """Repair what a killed DVC left half-written: delete its list of running commands, restore dvc.lock from git.

    Returns one line per repair. Raises PipelineError if dvc.lock contains a merge conflict, which only a person can resolve.
    """
    lines = []
    running, lock = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
    if _is_torn(running, json.loads):
        running.unlink()
        lines.append(f"{running}: was half-written; removed")
    if lock.is_file() and "<<<<<<<" in lock.read_text(encoding="utf-8", errors="replace"):
        raise PipelineError(f"{lock}: contains a merge conflict; resolve it, or take one side whole, then run `dvc repro`")
    if _is_torn(lock, _expect_stages):
        committed = subprocess.run(["git", "show", f"HEAD:./{lock}"], capture_output=True, check=False)
        if committed.returncode == 0:
            with atomic_file(lock) as partial:
                partial.write_bytes(committed.stdout)
            lines.append(f"{lock}: was half-written; restored from git. DVC's cache has the results of later runs")
        else:
            lock.unlink()
            lines.append(f"{lock}: was half-written and is not in git; removed, all stages will run again")
    return lines


def _is_torn(path: Path, parse: Callable[[str], object]) -> bool:
    """Whether a file cannot be parsed. A second look after a moment excludes a file that is just being written."""
    for wait in (_WRITE_SECONDS, 0):
        try:
            parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError, AttributeError):
            time.sleep(wait)
        else:
            return False
    return True


def _expect_stages(text: str) -> None:
    """Raise if a dvc.lock lacks a key that every entry has."""
    for stage in parse_yaml(text)["stages"].values():
        stage["cmd"]
        [entry["md5"] for entry in (*stage.get("deps", ()), *stage.get("outs", ()))]
