"""DVC as this project uses it: running it, repairing its files after a kill, and the file lists of dvc.yaml."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file
from pipeline.core.params import parse_yaml
from pipeline.core.stage import import_closure

STAGES_WITH_FILES = ("embed", "train")  # they may cost hours, so an unrelated edit must not rerun them


def rewrite_deps(path: Path = Path("dvc.yaml")) -> bool:
    """Let the stages that list files, `embed` and `train`, list exactly what they import; whether anything changed.

    The other stages cost seconds and list whole folders, which a new import seldom changes.
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
    """Run DVC with this Python first on the path, so that its stages run on it too; options as of subprocess.run."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, text=True, check=False, **options)


_WRITE_SECONDS = 0.5  # far more than a DVC that is alive takes to write either file


def mend() -> list[str]:
    """Delete DVC's list of running commands, and bring back dvc.lock from git, where it cannot be read; a line for each.

    Raises PipelineError where dvc.lock holds a conflict of a merge: that is a person's to resolve.
    """
    lines = []
    running, lock = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
    if _is_torn(running, json.loads):
        running.unlink()
        lines.append(f"{running}: was half-written; removed")
    if lock.is_file() and "<<<<<<<" in lock.read_text(encoding="utf-8", errors="replace"):
        raise PipelineError(f"{lock}: holds a conflict of a merge; resolve it, or take one side whole, then run `dvc repro`")
    if _is_torn(lock, _expect_stages):
        shown = subprocess.run(["git", "show", f"HEAD:./{lock}"], capture_output=True, check=False)
        if shown.returncode == 0:
            with atomic_file(lock) as partial:
                partial.write_bytes(shown.stdout)
            lines.append(f"{lock}: was half-written; brought back from git, what ran since comes from DVC's cache")
        else:
            lock.unlink()
            lines.append(f"{lock}: was half-written; removed, all stages run again")
    return lines


def _is_torn(path: Path, parse: Any) -> bool:
    """Whether a file cannot be read, also a moment later: it is not being written just now."""
    for wait in (_WRITE_SECONDS, 0):
        try:
            parse(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
            time.sleep(wait)
        except FileNotFoundError:
            return False
        else:
            return False
    return True


def _expect_stages(text: str) -> None:
    for stage in parse_yaml(text)["stages"].values():
        stage["cmd"]
        [entry["md5"] for entry in (*stage.get("deps", ()), *stage.get("outs", ()))]
