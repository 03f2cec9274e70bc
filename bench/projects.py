"""The folders in which the cases run: clones of this checkout, the same pictures as folders for the others, and empty stages."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.sections import read_section
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

ROOT = Path(__file__).parent.parent
IMAGE_SIZE, PREPARED_EPOCHS = 224, 1
# Everything else is left out of the environment, as in a new login: OMP_… and MALLOC_… variables decide the speed.
KEPT = ("HOME", "LANG", "LC_ALL", "LOGNAME", "TMPDIR", "USER")


def environment() -> dict[str, str]:
    """The variables of each measured process: this Python first on the path, no telemetry, no network for Hugging Face's packages."""
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SHELL": "/bin/sh",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
    }


def dvc(*arguments: str) -> list[str]:
    """A command line of DVC."""
    return [sys.executable, "-m", "dvc", *arguments]


def of_project(project: Path) -> dict[str, str]:
    """The variables of a project's own processes: its code comes first."""
    return {"PYTHONPATH": str(project)}


def stage_command(project: Path, stage: str, model: str) -> list[str]:
    """The command line of a stage for a model, as dvc.yaml has it."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [sys.executable, *shlex.split(stages[stage]["cmd"].replace("${item}", f"--model {model}"))[1:]]


def accuracy_of(project: Path, model: str) -> dict[str, float]:
    """The test accuracy that the stage `evaluate` wrote."""
    metrics = json.loads((project / f"metrics/{model}.json").read_text(encoding="utf-8"))
    return {"accuracy": metrics[model]["top1_accuracy"]}


def call(command: list[str], folder: Path) -> None:
    """Run a command of a project, unmeasured; its stdout goes to stderr."""
    subprocess.run(command, cwd=folder, env={**environment(), **of_project(folder)}, check=True, stdout=sys.stderr)


class Projects:
    """Projects in a folder that classify the pictures of an archive at 224 pixels, each made when it is first asked for."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.folder, self.archive = folder, archive.resolve()
        self.digest = measure_digest(find_source(str(self.archive)), (), read_section("download.limits", Limits, ROOT / "params.yaml"))

    def clone(self, name: str, recipe: Mapping[str, Any] | None = None, image_size: int = IMAGE_SIZE) -> Path:
        """A fresh clone, in place of an earlier one of that name, with changes of its section `recipe`."""
        project = self.folder / name
        shutil.rmtree(project, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        params["download"] |= {"source": str(self.archive), "digest": self.digest}
        params["embed"]["image_size"] = image_size
        params["recipe"] |= recipe or {}
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        return project

    def copy(self, name: str, recipe: Mapping[str, Any]) -> Path:
        """A copy of the prepared project with changes of its section `recipe`."""
        project = Path(shutil.copytree(self.prepared, self.folder / name, symlinks=True))
        params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        params["recipe"] |= recipe
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        return project

    @cached_property
    def prepared(self) -> Path:
        """A project in which every stage up to the baseline's evaluation has run."""
        project = self.clone("prepared", {"epochs": PREPARED_EPOCHS})
        call(dvc("repro", "evaluate_baseline@baseline", "check_names"), project)
        return project

    @cached_property
    def whole(self) -> Path:
        """A project in which every stage has run."""
        project = self.copy("whole", {"epochs": PREPARED_EPOCHS})
        call(dvc("repro"), project)
        return project

    @cached_property
    def bare(self) -> Path:
        """A repository with as many stages as the pipeline has, each of which makes an empty file of the one before it."""
        count = len(yaml.safe_load((self.whole / "dvc.lock").read_text(encoding="utf-8"))["stages"])
        project = self.folder / "bare"
        project.mkdir()
        stages = {f"s{number}": {"cmd": f"touch out{number}", "outs": [f"out{number}"]} for number in range(count)}
        for number in range(1, count):
            stages[f"s{number}"]["deps"] = [f"out{number - 1}"]
        (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
        for command in (["git", "init", "--quiet"], dvc("init", "--quiet"), dvc("repro")):
            call(command, project)
        return project

    @cached_property
    def folders(self) -> Path:
        """The pictures as the tutorial has them: `train` has the pipeline's train and val pictures, `val` its test pictures, as links."""
        folders, splits = self.folder / "folders", self.prepared / "data/splits"
        for split, name in {"train": "train", "val": "train", "test": "val"}.items():
            for path in sorted(path for path in (splits / split).rglob("*") if path.is_file()):
                label, *_, file = path.relative_to(splits / split).parts
                (folders / name / label).mkdir(parents=True, exist_ok=True)
                (folders / name / label / f"{split}_{file}").symlink_to(path)
        return folders

    @property
    def weights(self) -> Path:
        """The pretrained weights of the network, as safetensors."""
        return self.prepared / "models/backbone/weights.safetensors"
