"""Clones of this checkout, the commands that a user types in them, and pictures: for tests and for `tests.crash`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent


def make_pictures(folder: Path, count: int, classes: tuple[str, ...] = ("left", "right"), size: int = 24, start: int = 0) -> Path:
    """Write `count` pictures per class into a folder: stripes whose direction and colour depend on the class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            generator = np.random.default_rng([number, index])
            pixels = generator.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[:: 2 + index % 3, :, number % 3] += 150
            Image.fromarray(np.rot90(pixels, number).copy()).save(folder / name / f"{index:03d}.png")
    return folder


def write_digits(folder: Path, numbers: Iterable[int]) -> Path:
    """Write some of scikit-learn's digits below a folder, a PNG each in the folder of its class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in numbers:
        (folder / str(digits.target[number])).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((digits.images[number] * 255 / 16).round().astype(np.uint8))
        picture.save(folder / str(digits.target[number]) / f"{number:04d}.png")
    return folder


# Variables of the caller that a command gets. No other: pytest's own, for one, switches MLflow's telemetry off.
KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "SHELL", "TERM", "TMPDIR", "USER")


def user_environment(folder: Path) -> dict[str, str]:
    """Variables under which a user types commands in a clone: those of a login, this Python first on the path, the clone's own code."""
    git = {
        f"GIT_{who}_{what}": f"tester{'@localhost' * (what == 'EMAIL')}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ}, **git,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # a user installs the clone; the tests' environment has another checkout
    }  # fmt: skip


# Notes each address that Python code looks up or connects to. ONNX Runtime does so in C++, and leaves files in HOME when it does.
_NOTE_ADDRESSES = """
import os, sys
def note(event, arguments, file=os.environ["ADDRESSES"]):
    if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
        return  # a path: a process of this machine
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        with open(file, "a") as notes:
            print(sys.argv, event, arguments, file=notes)
sys.addaudithook(note)
"""


def watched(user: Path, folder: Path) -> dict[str, str]:
    """Variables under which a user who never ran anything types commands in a clone. `user`: a new folder, for what `traces` returns."""
    for name in ("home", "tmp", "code"):
        (user / name).mkdir(parents=True)
    (user / "code/sitecustomize.py").write_text(_NOTE_ADDRESSES)
    homes = {"HOME": str(user / "home"), "TMPDIR": str(user / "tmp"), "ADDRESSES": str(user / "addresses")}
    return {**homes, "PYTHONPATH": f"{user / 'code'}{os.pathsep}{folder}"}


def traces(user: Path) -> list[str]:
    """What watched commands left outside of their clone, and the addresses that they looked up or connected to."""
    left = [str(path.relative_to(user)) for name in ("home", "tmp") for path in sorted((user / name).rglob("*"))]
    return [*left, *((user / "addresses").read_text().splitlines() if (user / "addresses").exists() else [])]


def type_in(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
    """Run a command in a clone and return its stdout, after a failure also its stderr; its exit code must be `code`."""
    result = subprocess.run(command, cwd=folder, env={**user_environment(folder), **variables}, capture_output=True, text=True, check=False)
    assert result.returncode == code, f"{command}: exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout + (result.stderr if code else "")


def set_params(folder: Path, changes: Mapping[str, object]) -> None:
    """Change values of a clone's params.yaml, each named by its path, as `backbone.name`."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        reduce(lambda section, part: section[part], sections, params)[name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def clone(folder: Path) -> Path:
    """Copy the files of this checkout that git does not ignore, as they are now, into a new repository."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    commit(folder, "as it is")
    return folder


def copy(folder: Path, to: Path) -> Path:
    """Another clone, as far as this one: with its outs, its cache and its MLflow database."""
    return Path(shutil.copytree(folder, to, symlinks=True))


def commit(folder: Path, message: str) -> None:
    """Commit all files of a clone, in a new repository if there is none."""
    type_in(folder, "git", "init", "-q")
    type_in(folder, "git", "add", "-A")
    type_in(folder, "git", "commit", "--allow-empty", "-qm", message)
