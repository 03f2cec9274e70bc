"""`pipeline mend`: put right what DVC leaves half-written where a kill hits it in the middle of its own files."""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError
from pipeline.files import atomic_file
from pipeline.params import parse_yaml

_WRITE_SECONDS = 0.5  # far more than a DVC that is alive takes to write either file


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("mend", help="put right what a killed dvc left half-written; silent where nothing is")
    parser.set_defaults(run=lambda parsed: print("".join(f"{line}\n" for line in mend()), end=""))


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
