"""What is compared with what: for each case the commands, the figure and the goal. Hymenoptera, lite0, 224 pixels."""

import importlib.machinery
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from projects import ROOT, Projects, accuracy_of, call, dvc, of_project, stage_command
from rounds import Contender, Figures, Run, last_line

PACKAGES = ROOT / ".cache/bench"  # where `make bench` installs the extra `bench`
OURS, EPOCHS, COLD_EPOCHS = "this pipeline", 2, 3
FROZEN_EPOCHS, FROZEN_MEASURED = 25, 3
HEAD = "42500x1280x10"
SPEED, SECONDS = "pictures/s", "s"


@dataclass(frozen=True)
class Case:
    """A comparison. `contenders`: ours first. `goal`: of the ratio; it says how many times faster ours is, or if `at_most` how many times
    slower. `rounds`: per round that is asked for; short runs take more. `is_warm`: a first round is dropped, which warms the file cache.
    """

    name: str
    work: str
    against: str
    unit: str
    goal: float
    contenders: Callable[[Projects], list[Contender]]
    at_most: bool = False
    rounds: int = 1
    is_warm: bool = False
    reruns_tuned: bool = False

    def ratio(self, ours: float, other: float) -> float:
        """The ratio of a pair of figures."""
        return ours / other if (self.unit == SPEED) != self.at_most else other / ours


def speed(run: Run) -> float:
    """Pictures per second, as the command reports them."""
    return float(run.figures["pictures_per_second"])


def scaled(run: Run) -> float:
    """The seconds of all epochs of the frozen loop, from those of the measured ones."""
    epochs = sorted(run.figures["epoch_seconds"])
    return run.seconds + (FROZEN_EPOCHS - len(epochs)) * float(epochs[len(epochs) // 2])


def peer(projects: Projects, name: str, script: str, work: str, epochs: int = EPOCHS, value: Callable[[Run], float] = speed) -> Contender:
    """One of the others: a script beside this one."""
    command = [sys.executable, str(ROOT / "bench" / script), work, str(projects.weights), str(projects.folders), f"--epochs={epochs}"]
    return Contender(name, command, projects.folder, value, read=last_line, environment={"PYTHONPATH": str(PACKAGES)})


def frameworks(projects: Projects, work: str) -> list[Contender]:
    """The tutorial's loop, and of Trainer and fastai what is installed."""
    candidates = [("tutorial", "tutorial.py", "torch"), ("Trainer", "trainer.py", "transformers"), ("fastai", "learner.py", "fastai")]
    path = [str(PACKAGES), *sys.path]
    found = [
        peer(projects, name, script, work)
        for name, script, package in candidates
        if importlib.machinery.PathFinder.find_spec(package, path)
    ]
    if missing := {name for name, *_ in candidates} - {contender.name for contender in found}:
        print(f"not installed: {', '.join(sorted(missing))}; install the extra `bench`", file=sys.stderr)
    return found


def finetuning(size: str | int, projects: Projects) -> list[Contender]:
    """Whole-network training at that size of the training crops: the stage's own loop, and the others'."""
    project = projects.copy(f"finetuning-{size}", {"epochs": EPOCHS, "train_image_size": size})
    command = stage_command(project, "train", "finetuned")
    command[1:3] = [str(ROOT / "bench/own_training.py")]

    def read(stdout: str) -> Figures:
        call(stage_command(project, "evaluate", "finetuned"), project)
        return {**last_line(stdout), **accuracy_of(project, "finetuned")}

    ours = Contender(OURS, command, project, speed, read=read, environment=of_project(project))
    return [ours, *frameworks(projects, "whole")]


def frozen(projects: Projects) -> Contender:
    """The three stages of the baseline, as DVC runs them, with no features kept from before."""
    project = projects.prepared
    command = dvc("repro", "--force", "--single-item", "embed", "train_baseline", "evaluate_baseline@baseline")

    def prepare() -> None:
        shutil.rmtree(project / ".cache/features")

    def read(_: str) -> Figures:
        return accuracy_of(project, "baseline")

    return Contender(OURS, command, project, prepare=prepare, read=read, environment=of_project(project))


def against_frozen_loop(projects: Projects) -> list[Contender]:
    """The baseline, and the tutorial's frozen loop."""
    return [frozen(projects), peer(projects, "tutorial, frozen", "tutorial.py", "frozen", FROZEN_MEASURED, scaled)]


def against_features(projects: Projects) -> list[Contender]:
    """The baseline, and features computed once for scikit-learn."""
    return [frozen(projects), peer(projects, "scikit-learn", "eager.py", "features", value=lambda run: run.seconds)]


def evaluation(projects: Projects) -> list[Contender]:
    """The stage's own figure: from files to probabilities."""
    project = projects.prepared

    def read(_: str) -> Figures:
        scores = json.loads((project / "results/baseline/scores.json").read_text(encoding="utf-8"))
        timing: dict[str, Any] = json.loads((project / f".cache/timings/{scores['model_sha256']}.json").read_text(encoding="utf-8"))
        return {**timing, **accuracy_of(project, "baseline")}

    command = stage_command(project, "evaluate", "baseline")
    return [Contender(OURS, command, project, speed, read=read, environment=of_project(project)), *frameworks(projects, "evaluate")]


def prediction(projects: Projects) -> list[Contender]:
    """One picture, in a fresh process."""
    project = projects.prepared
    picture = str(min(path for path in projects.folders.rglob("*") if path.is_file()).resolve())
    command = [sys.executable, "-m", "pipeline", "predict", "--model", "baseline", picture]
    other = [sys.executable, str(ROOT / "bench/eager.py"), "predict", str(projects.weights), picture]
    return [Contender(OURS, command, project, environment=of_project(project)), Contender("torch + timm", other, project)]


def cold(projects: Projects) -> list[Contender]:
    """Every stage in a fresh clone, and both loops of the tutorial in one process."""
    folder = projects.folder / "cold"
    prepare = partial(projects.clone, "cold", {"epochs": COLD_EPOCHS})

    def read(_: str) -> Figures:
        return accuracy_of(folder, "finetuned")

    ours = Contender(OURS, dvc("repro"), folder, prepare=prepare, read=read, environment=of_project(folder))
    return [ours, peer(projects, "tutorial, both loops", "tutorial.py", "both", COLD_EPOCHS, lambda run: run.seconds)]


def nothing_to_do(projects: Projects) -> list[Contender]:
    """`dvc repro` where nothing has changed."""
    ours = Contender(OURS, dvc("repro"), projects.whole, environment=of_project(projects.whole))
    return [ours, Contender("empty stages", dvc("repro"), projects.bare)]


def head(projects: Projects) -> list[Contender]:
    """All fits of `train_baseline`, on features that are drawn."""
    folder = projects.folder / "head"
    folder.mkdir()
    script = [sys.executable, str(ROOT / "bench/head.py"), "--child"]
    call([*script, "draw", str(folder), HEAD], folder)

    def of(name: str, who: str) -> Contender:
        return Contender(name, [*script, who, str(folder), HEAD], folder, lambda run: float(run.figures["seconds"]), read=last_line)

    return [of(OURS, "ours"), of("scikit-learn", "scikit-learn")]


FASTEST = "the fastest of the tutorial's loop, Trainer and fastai"
CASES = (
    Case("finetuning", "fine-tuning the whole network at 224 px", FASTEST, SPEED, 3.5, partial(finetuning, 224), reruns_tuned=True),
    Case("finetuning-auto", "fine-tuning, train_image_size: auto", FASTEST, SPEED, 6, partial(finetuning, "auto"), reruns_tuned=True),
    Case(
        "frozen",
        "embed, train_baseline, evaluate@baseline by dvc repro, the export given",
        f"the tutorial's frozen loop, {FROZEN_EPOCHS} epochs, scaled from {FROZEN_MEASURED}",
        SECONDS,
        45,
        against_frozen_loop,
    ),
    Case("features", "the same", "features once + scikit-learn, eager fp32", SECONDS, 2.5, against_features),
    Case("predict", "pipeline predict of one picture, cold", "torch + timm, eager", SECONDS, 10, prediction, rounds=3, is_warm=True),
    Case("no-op", "dvc repro, nothing to do", "as many empty stages", SECONDS, 1.15, nothing_to_do, at_most=True, rounds=3, is_warm=True),
    Case("head", f"all fits of the head on features of {HEAD} (pictures, width, classes)", "the same by scikit-learn", SECONDS, 10, head),
    Case("evaluation", "evaluation from JPEG files, fp32", FASTEST, SPEED, 3.5, evaluation),
    Case("cold", f"whole cold dvc repro, {COLD_EPOCHS} epochs", "the tutorial's two loops", SECONDS, 3, cold),
)
