"""Clones of this checkout, what a user types in them, and generated pictures: for tests and for what runs without pytest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent


def make_pictures(folder: Path, count: int, classes: tuple[str, ...] = ("left", "right"), size: int = 24, start: int = 0) -> Path:
    """Write `count` pictures a class below a folder: stripes whose direction and colour tell the class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            generator = np.random.default_rng([number, index])
            pixels = generator.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[:: 2 + index % 3, :, number % 3] += 150
            Image.fromarray(np.rot90(pixels, number).copy()).save(folder / name / f"{index:03d}.png")
    return folder


def user_environment() -> dict[str, str]:
    """Variables under which a user types commands in a clone: this Python first on the path, nothing else of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "PYTHON"))}
    git = {
        f"GIT_{who}_{what}": f"tester{'@localhost' * (what == 'EMAIL')}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return {
        **kept, **git,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip


def type_in(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
    """Run a command in a clone, and return its stdout; its exit code must be as told."""
    result = subprocess.run(command, cwd=folder, env={**user_environment(), **variables}, capture_output=True, text=True, check=False)
    assert result.returncode == code, f"{command}: exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout + (result.stderr if code else "")


def clone(folder: Path) -> Path:
    """Copy what git knows of this checkout, as it is now, into a fresh repository."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    commit(folder, "as it is")
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit all that lies in a clone, in a new repository where there is none."""
    type_in(folder, "git", "init", "-q")
    type_in(folder, "git", "add", "-A")
    type_in(folder, "git", "commit", "-qm", message)
