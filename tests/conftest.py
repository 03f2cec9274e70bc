"""What tests of several rooms share: generated pictures, clones of this project, and no network but loopback."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera_data.zip"


@pytest.fixture(autouse=True)
def no_network_but_loopback(monkeypatch):
    """Connections to any other machine fail at once."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test reached for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def make_pictures():
    """Write `count` pictures a class below a folder: stripes whose direction and colour tell the class."""

    def make(folder: Path, count: int, classes: tuple[str, ...] = ("left", "right"), size: int = 24, start: int = 0) -> Path:
        for number, name in enumerate(classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index in range(start, start + count):
                generator = np.random.default_rng([number, index])
                pixels = generator.integers(0, 90, (size, size, 3), dtype=np.uint8)
                pixels[:: 2 + index % 3, :, number % 3] += 150
                Image.fromarray(np.rot90(pixels, number).copy()).save(folder / name / f"{index:03d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
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


@pytest.fixture(scope="session")
def type_in(environment):
    """Run a command in a clone, and return its stdout; its exit code must be as told."""

    def run(folder: Path, *command: str, code: int = 0, **variables: str) -> str:
        result = subprocess.run(command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True, check=False)
        assert result.returncode == code, f"{command}: exit {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout + (result.stderr if code else "")

    return run


@pytest.fixture(scope="session")
def clone(type_in):
    """Copy what git knows of this checkout, as it is now, into a fresh repository."""

    def make(folder: Path) -> Path:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        type_in(folder, "git", "init", "-q")
        type_in(folder, "git", "add", "-A")
        type_in(folder, "git", "commit", "-qm", "as it is")
        return folder

    return make
