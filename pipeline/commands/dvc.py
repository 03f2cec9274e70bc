"""DVC, as the commands run it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_dvc(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run DVC with this Python first on the path, so that its stages run on it too; options as of subprocess.run."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, text=True, check=False, **options)
