"""Seconds per epoch of `train` in one process and in two, on as many cores: what `processes` gains or costs without a GPU.

    python bench/processes.py

An epoch takes a quarter of the difference between a run of five epochs and one of one, val included, whole network, at 224 pixels. The
layouts run in turn. Prints the median of each, and writes the key `processes` of bench/results.json.
"""

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from projects import Projects, call, dvc, environment, of_project, stage_command
from run import ARCHIVE, RESULTS, hardware, versions

from pipeline.core.files import write_json

LAYOUTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
EPOCHS = (1, 5)


def seconds_of(project: Path, processes: int, threads: int, epochs: int) -> float:
    """How long the stage takes, from its start."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params |= {"processes": processes, "threads": threads, "recipe": {**params["recipe"], "epochs": epochs}}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for place in ("models/finetuned", ".cache/checkpoints"):
        shutil.rmtree(project / place, ignore_errors=True)
    begun = time.perf_counter()
    command = stage_command(project, "train", "finetuned")
    subprocess.run(command, cwd=project, env={**environment(), **of_project(project)}, check=True, stdout=sys.stderr)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="of labelled pictures (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    found: dict[str, list[float]] = {title: [] for title in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        project = Projects(Path(folder), parsed.archive).clone("project", {"patience": EPOCHS[1]})
        call(dvc("repro", "train_baseline", "check_names"), project)
        for processes, threads in LAYOUTS.values():  # what a first run caches
            seconds_of(project, processes, threads, EPOCHS[0])
        for _ in range(parsed.rounds):
            for title, layout in LAYOUTS.items():
                few, many = (seconds_of(project, *layout, epochs) for epochs in EPOCHS)
                found[title].append(round((many - few) / (EPOCHS[1] - EPOCHS[0]), 2))
    facts = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(), "seconds_per_epoch": found}
    write_json(RESULTS, {**json.loads(RESULTS.read_text(encoding="utf-8")), "processes": facts})
    for title, seconds in found.items():
        print(f"{title}: {statistics.median(seconds):.1f} s per epoch")


if __name__ == "__main__":
    main()
