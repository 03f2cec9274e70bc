"""Is `pipeline advise` right? Run it on three datasets, train by every regime on each, and write the table of docs/advice.md.

    python bench/advice.py ../shared/data/hymenoptera_data.zip

The datasets: the digits, the archive in the argument (ants and bees), and pictures far from photographs (bench/automata.py). The advice is
right if the test accuracy of the recommended regime is within the 95 % interval of the best, all on the recommended network. The seconds
are those of the stage `train` of that regime, run by `dvc repro`.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import automata
import yaml

from pipeline.core.dvc import run_dvc
from pipeline.core.files import atomic_file
from pipeline.core.sections import read_section
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/advice.md"
DATA = ("digits", "hymenoptera", "automata")
REGIMES = ("frozen", "partial", "gradual", "finetuned", "scratch")
MARK = "<!-- what bench/advice.py found -->\n"


def check(source: str, digest: str, clone: Path) -> dict[str, Any]:
    """In a fresh clone: the advice, the scores of each regime, and the seconds of the recommended one."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    params = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    params["download"] |= {"source": source, "digest": digest}
    params["models"] = {name: {"regime": name} for name in REGIMES}
    (clone / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    run_dvc("repro", "train_baseline", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    process = subprocess.run([sys.executable, "-m", "pipeline", "advise", "--json"], cwd=clone, check=True, capture_output=True, text=True)
    advice = json.loads(process.stdout)
    params["backbone"] |= advice["params"].get("backbone", {})
    (clone / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    run_dvc("repro", "train_baseline", "check_names", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    begun = time.monotonic()
    run_dvc("repro", "--single-item", f"train@{advice['regime']}", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    seconds = time.monotonic() - begun
    run_dvc("repro", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    comparison = json.loads((clone / "metrics/comparison.json").read_text())
    return {"advice": advice, "seconds": seconds, "test_pictures": comparison["test_pictures"], "models": comparison["models"]}


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table, from the result of `check`."""
    advice, models = result["advice"], result["models"]
    favourite, far = advice["regime"], advice["distance"]
    best = max(REGIMES, key=lambda regime: models[regime]["top1_accuracy"])
    is_right = models[favourite]["top1_accuracy"] >= models[best]["top1_accuracy_low"]
    scores = " | ".join(
        f"{'**' * (regime == favourite)}{models[regime]['top1_accuracy']:.3f}{'**' * (regime == favourite)}" for regime in REGIMES
    )
    interval = f"{best}: {models[best]['top1_accuracy_low']:.3f} to {models[best]['top1_accuracy_high']:.3f}"
    estimated, measured = advice["seconds"][favourite], result["seconds"]
    times = f"{estimated:.0f} | {measured:.0f} | {estimated / measured:.2f}"
    return (
        f"| {name} | {advice['a_class']:g} | {far['remaining']:.2f} | {advice['network']} | {scores} | {interval} "
        f"| {'yes' if is_right else 'no'} | {times} | {datetime.date.today().isoformat()} |"
    )


def main() -> None:
    """Check the datasets, and write their rows into the table below the mark in the page."""
    parser = argparse.ArgumentParser(description="Is `pipeline advise` right? The table is in docs/advice.md.")
    parser.add_argument("archive", help="hymenoptera_data.zip")
    parser.add_argument("--only", nargs="+", choices=DATA, default=DATA, help="keep the rows of the others")
    parsed = parser.parse_args()
    limits = read_section("download.limits", Limits, ROOT / "params.yaml")
    before, _, below = PAGE.read_text(encoding="utf-8").partition(MARK)
    table = {line.split(" | ")[0].removeprefix("| "): line for line in below.splitlines()}
    with tempfile.TemporaryDirectory() as folder:
        automata.write(Path(folder, "pictures"))
        for name in parsed.only:
            text = {"hymenoptera": parsed.archive, "automata": f"{folder}/pictures"}.get(name, name)
            source = find_source(text)
            where = str(source.path.resolve()) if source.path else text
            table[name] = row(name, check(where, measure_digest(source, (), limits), Path(folder, name, "clone")))
            print(table[name], flush=True)
    head = [
        "data",
        "of a class",
        "errors that remain",
        "network",
        *REGIMES,
        "interval of the best",
        "right",
        "seconds told",
        "seconds taken",
        "ratio",
        "measured",
    ]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(table[name] for name in DATA if name in table)]
    with atomic_file(PAGE) as partial:
        partial.write_text("\n".join([before + MARK, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
