"""Run the whole pipeline for several seeds, datasets and backbones, each in a fresh clone, and print mean ± std of the test scores.

    python bench/seeds.py 0 1 2 --data digits ../shared/data/hymenoptera_data.zip
    python bench/seeds.py 0 1 2 --data FILE --table regimes --model 'scratch={regime: scratch, epochs: 25, patience: 25}'
    python bench/seeds.py 0 1 2 --data FILE --table backbones --backbones tf_efficientnet_lite0 tf_efficientnet_lite1

Writes a table of `bench/results.json`; a test compares the quoted tables with it. The split and the training both vary with the seed.
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

from pipeline.core.dvc import run_dvc
from pipeline.core.files import write_json
from pipeline.core.sections import read_section
from pipeline.search.seeds import spread
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "scikit-learn", "dvc", "mlflow")


def run_once(settings: dict[str, Any], models: dict[str, str]) -> dict[str, Any]:
    """The test scores of each model, also of those added to params.yaml, and the seconds of `dvc exp run`."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        begun = time.monotonic()
        values = [f"-S{key}={value}" for key, value in settings.items()]
        values += [f"-S+models.{name}={entry}" for name, entry in models.items()]
        run_dvc("exp", "run", *values, cwd=folder, stdout=subprocess.DEVNULL).check_returncode()
        seconds = time.monotonic() - begun
        comparison = json.loads((Path(folder) / "metrics/comparison.json").read_text())
    scores = {name: figures["top1_accuracy"] for name, figures in comparison["models"].items()}
    return {"seed": settings["seed"], "seconds": round(seconds), "test_pictures": comparison["test_pictures"], "scores": scores}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs, and mean and sample standard deviation of each model's top-1 accuracy over them."""
    return {"runs": runs, "models": {name: spread([run["scores"][name] for run in runs]) for name in runs[0]["scores"]}}


def table(facts: dict[str, Any]) -> str:
    """A table of the results in Markdown."""
    rows = facts["rows"]
    models = list(next(iter(rows.values()))["models"])
    lines = [f"| {facts['of']} | test pictures | {' | '.join(models)} | seconds per run |", "| --- " * (len(models) + 3) + "|"]
    for name, row in rows.items():
        scores = " | ".join(f"{row['models'][model]['mean']:.3f} ± {row['models'][model]['std']:.3f}" for model in models)
        seconds = statistics.median(run["seconds"] for run in row["runs"])
        lines.append(f"| {name} | {row['runs'][0]['test_pictures']} | {scores} | {seconds:.0f} |")
    return "\n".join(lines)


def run_all(seeds: list[int], data: list[str], backbones: list[str], models: dict[str, str]) -> dict[str, Any]:
    """A row per dataset, or per backbone if there are several."""
    limits = read_section("download.limits", Limits, ROOT / "params.yaml")
    rows = {}
    for text in data:
        source = find_source(text)
        pinned = {"download.source": str(source.path) if source.path else text, "download.digest": measure_digest(source, (), limits)}
        for backbone in backbones or [""]:
            settings: dict[str, Any] = {**pinned, **({"backbone.name": backbone} if backbone else {})}
            runs = [run_once({"seed": seed, **settings}, models) for seed in seeds]
            rows[backbone or source.title.removesuffix("_data.zip")] = summarise(runs)
    return rows


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--data", nargs="+", default=["digits"], help="values of download.source")
    parser.add_argument("--backbones", nargs="+", default=[], help="values of backbone.name, all with packaged weights")
    parser.add_argument("--model", action="append", default=[], metavar="NAME={…}", help="one more entry of `models`")
    parser.add_argument("--table", default="data", help="its key in bench/results.json (default: %(default)s)")
    parsed = parser.parse_args()
    path = ROOT / "bench/results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[parsed.table] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in PACKAGES},
        "of": "backbone" if parsed.backbones else "data",
        "rows": run_all(parsed.seeds, parsed.data, parsed.backbones, dict(text.split("=", 1) for text in parsed.model)),
    }
    write_json(path, results)
    print(table(results[parsed.table]))


if __name__ == "__main__":
    main()
