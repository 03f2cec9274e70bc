"""Does speed cost accuracy? Train as usual, on smaller crops, and as a plain loop in fp32, on three datasets and for several seeds.

    python bench/accuracy.py 0 1 2 3 4

The datasets: an archive, by default of ants and bees, digits, and cellular automata (bench/automata.py). The latter two have pictures of
less than 160 pixels, for which `train_image_size: auto` changes nothing. A seed varies split and training. Prints mean ± std of the test
accuracy, and the mean difference to the plain loop with its paired 95 % interval over the seeds (Student's t). Writes the key `accuracy`
of bench/results.json after each seed, and a seed that is there is not run again.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import automata
import yaml
from projects import ROOT, accuracy_of, call, dvc, environment, of_project, stage_command
from run import ARCHIVE, RESULTS, hardware, versions
from scipy.stats import t

from pipeline.core.files import write_json
from pipeline.core.sections import read_section
from pipeline.search.seeds import spread
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

PLAIN = "plain"
MODELS = {
    "as usual": {"regime": "finetuned"},
    "smaller crops": {"regime": "finetuned", "train_image_size": "auto"},
    PLAIN: {"regime": "finetuned", "precision": "fp32"},
}
SMALL = ("digits", "automata")  # sets of small pictures


def run_seed(source: str, titles: Sequence[str], seed: int, folder: Path) -> dict[str, float]:
    """The test accuracy of each model, by its title, in a fresh clone."""
    names = {title: title.replace(" ", "_") for title in titles}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    digest = measure_digest(find_source(source), (), read_section("download.limits", Limits, ROOT / "params.yaml"))
    params["seed"] = seed
    params["download"] |= {"source": source, "digest": digest}
    params["models"] = {name: MODELS[title] for title, name in names.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    call(dvc("repro", "train_baseline", "check_names"), folder)
    for title, name in names.items():
        command = stage_command(folder, "train", name)
        if title == PLAIN:
            command[1:3] = [str(ROOT / "bench/plain_training.py")]
        for each in (command, stage_command(folder, "evaluate", name)):
            subprocess.run(each, cwd=folder, env={**environment(), **of_project(folder)}, check=True, stdout=sys.stderr)
    return {title: accuracy_of(folder, name)["accuracy"] for title, name in names.items()}


def difference(runs: Mapping[str, Mapping[str, float]], title: str) -> dict[str, float]:
    """Mean difference of the accuracy to that of the plain loop, and the ends of its paired 95 % interval over the seeds."""
    differences = [run[title] - run[PLAIN] for run in runs.values()]
    mean = statistics.mean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return {"value": mean, "low": mean - half, "high": mean + half}


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The results in Markdown, of at least two seeds each."""
    lines = [f"| data | seeds | {' | '.join(MODELS)} | as usual − plain | smaller crops − plain |", "| --- " * (len(MODELS) + 4) + "|"]
    for name, runs in rows.items():
        cells = []
        for title in MODELS:
            values = [run[title] for run in runs.values() if title in run]
            cells.append("{mean:.3f} ± {std:.3f}".format(**spread(values)) if values else "as usual")
        for title in (title for title in MODELS if title != PLAIN):
            is_there = all(title in run for run in runs.values())
            cells.append("{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**difference(runs, title)) if is_there else "")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="of labelled pictures (default: %(default)s)")
    parser.add_argument("--data", nargs="+", default=["hymenoptera", "digits", "automata"], choices=["hymenoptera", "digits", "automata"])
    parsed = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")).get("accuracy", {}).get("rows", {})
    with tempfile.TemporaryDirectory() as folder:
        automata.write(Path(folder) / "automata")
        sources = {"hymenoptera": str(parsed.archive.resolve()), "digits": "digits", "automata": f"{folder}/automata"}
        for seed in parsed.seeds:
            for name in parsed.data:
                runs = rows.setdefault(name, {})
                if str(seed) in runs:
                    continue
                titles = [title for title in MODELS if name not in SMALL or "train_image_size" not in MODELS[title]]
                runs[str(seed)] = run_seed(sources[name], titles, seed, Path(folder) / f"{name}-{seed}")
                facts = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions()}
                stored = json.loads(RESULTS.read_text(encoding="utf-8"))
                write_json(RESULTS, {**stored, "accuracy": {**facts, "rows": rows}})
    print(table(rows))


if __name__ == "__main__":
    main()
