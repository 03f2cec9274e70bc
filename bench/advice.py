"""Is `pipeline advise` right? Ask it about three data sets, then train by every regime on each, and write docs/advice.md.

    python bench/advice.py ../shared/data/hymenoptera_data.zip

The data sets: the digits, the archive that is named (ants and bees), and pictures far from photographs (bench/automata.py). It is right
where the test accuracy of its favourite lies within the 95 % interval of the best, all on the network that it favours. Time: of the
favourite's stage, as `dvc repro` runs it.
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
from pipeline.core.params import read_section
from pipeline.sources.members import Limits
from pipeline.sources.source import find_source, measure_digest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/advice.md"
DATA = ("digits", "hymenoptera", "automata")
REGIMES = ("frozen", "partial", "gradual", "finetuned", "scratch")
MARK = "<!-- what bench/advice.py found -->\n"


def check(source: str, digest: str, clone: Path) -> dict[str, Any]:
    """What the advice was, what each regime scored, and how long the favourite took, in a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    params = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    params["download"] |= {"source": source, "digest": digest}
    params["models"] = {name: {"regime": name} for name in REGIMES}
    (clone / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    run_dvc("repro", "train_baseline", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    asked = subprocess.run([sys.executable, "-m", "pipeline", "advise", "--json"], cwd=clone, check=True, capture_output=True, text=True)
    advice = json.loads(asked.stdout)
    params["backbone"] |= advice["params"].get("backbone", {})
    (clone / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    run_dvc("repro", "train_baseline", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    begun = time.monotonic()
    run_dvc("repro", "--single-item", f"train@{advice['regime']}", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    seconds = time.monotonic() - begun
    run_dvc("repro", cwd=clone, stdout=subprocess.DEVNULL).check_returncode()
    comparison = json.loads((clone / "metrics/comparison.json").read_text())
    return {"advice": advice, "seconds": seconds, "test_pictures": comparison["test_pictures"], "models": comparison["models"]}


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    advice, models = found["advice"], found["models"]
    favourite, far = advice["regime"], advice["distance"]
    best = max(REGIMES, key=lambda regime: models[regime]["top1_accuracy"])
    is_right = models[favourite]["top1_accuracy"] >= models[best]["top1_accuracy_low"]
    scores = " | ".join(
        f"{'**' * (regime == favourite)}{models[regime]['top1_accuracy']:.3f}{'**' * (regime == favourite)}" for regime in REGIMES
    )
    interval = f"{best}: {models[best]['top1_accuracy_low']:.3f} to {models[best]['top1_accuracy_high']:.3f}"
    told, took = advice["seconds"][favourite], found["seconds"]
    return (
        f"| {name} | {advice['a_class']:g} | {far['remaining']:.2f} | {advice['network']} | {scores} | {interval} "
        f"| {'yes' if is_right else 'no'} | {told:.0f} | {took:.0f} | {told / took:.2f} | {datetime.date.today().isoformat()} |"
    )


def main() -> None:
    """Check the data sets that are asked for, and write their rows into the table below the mark in the page."""
    parser = argparse.ArgumentParser(description="Is `pipeline advise` right? The table is in docs/advice.md.")
    parser.add_argument("archive", help="hymenoptera_data.zip")
    parser.add_argument("--only", nargs="+", choices=DATA, default=DATA, help="leave the rows of the others as they are")
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
