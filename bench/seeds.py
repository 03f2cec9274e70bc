"""Run the whole pipeline for several seeds and data sets, each in a fresh clone, and print mean ± std of the test scores.

    python bench/seeds.py 0 1 2 --data digits ../shared/data/hymenoptera_data.zip

Writes `bench/results.json`, which the README's table is checked against. Every seed also deals the splits anew.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.commands.dvc import run_dvc
from pipeline.data.limits import Limits
from pipeline.data.sources import find_source, measure_digest
from pipeline.evaluation.seeds import spread
from pipeline.files import write_json
from pipeline.params import read_section

ROOT = Path(__file__).parent.parent
MODELS = ("baseline", "finetuned")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "scikit-learn", "dvc", "mlflow")


def run_once(source: str, digest: str, seed: int) -> dict[str, Any]:
    """The test scores of each model, and the seconds that `dvc exp run` took."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        settings = {"seed": seed, "download.source": source, "download.digest": digest}
        begun = time.monotonic()
        values = [f"-S{key}={value}" for key, value in settings.items()]
        run_dvc("exp", "run", *values, cwd=folder, stdout=subprocess.DEVNULL).check_returncode()
        seconds = time.monotonic() - begun
        comparison = json.loads((Path(folder) / "metrics/comparison.json").read_text())
    scores = {name: comparison["models"][name]["top1_accuracy"] for name in MODELS}
    return {"seed": seed, "seconds": round(seconds), "test_pictures": comparison["test_pictures"], **scores}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of each model's top-1 accuracy over the seeds."""
    return {name: spread([run[name] for run in runs]) for name in MODELS}


def table(results: dict[str, Any]) -> str:
    """The results as the README quotes them."""
    lines = ["| data | test pictures | baseline | finetuned | seconds a run |", "| --- | --- | --- | --- | --- |"]
    for name, facts in results["data"].items():
        scores = " | ".join(f"{facts[model]['mean']:.3f} ± {facts[model]['std']:.3f}" for model in MODELS)
        seconds = statistics.median(run["seconds"] for run in facts["runs"])
        lines.append(f"| {name} | {facts['runs'][0]['test_pictures']} | {scores} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--data", nargs="+", default=["digits"], help="what download.source may say")
    parsed = parser.parse_args()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in PACKAGES},
        "data": {},
    }
    limits = read_section("download.limits", Limits, ROOT / "params.yaml")
    for text in parsed.data:
        source = find_source(text)
        digest = measure_digest(source, (), limits)
        runs = [run_once(str(source.path) if source.path else text, digest, seed) for seed in parsed.seeds]
        results["data"][source.title.removesuffix("_data.zip")] = {"runs": runs, **summarise(runs)}
    write_json(ROOT / "bench/results.json", results)
    print(table(results))


if __name__ == "__main__":
    main()
