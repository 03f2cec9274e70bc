"""Compare this pipeline with what else does its work: each case in turn, in fresh processes, and the ratio pair by pair.

    python bench/run.py                                     all cases, on ../shared/data/hymenoptera_data.zip
    python bench/run.py my.zip --case finetuning --rounds 5

Prints a table. It also writes the cases into `bench/results.json` (key `cases`) and `bench/results.md`, unless there were fewer than 3
rounds or `--foreign` allowed more. The exit code is 1 if a goal is missed. A round in which other processes used more than 10 % of the
CPUs is thrown away and taken again.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from cases import CASES, PACKAGES, Case
from projects import ROOT, Projects, environment
from rounds import Contender, Run, take_round, take_rounds
from table import table

from pipeline.core.files import atomic_file, write_json

ARCHIVE = ROOT.parent / "shared/data/hymenoptera_data.zip"
RESULTS, PAGE = ROOT / "bench/results.json", ROOT / "bench/results.md"
LEAST_ROUNDS, MOST_FOREIGN = 3, 0.1
VERSIONS = ("torch", "torchvision", "timm", "onnxruntime", "scikit-learn", "dvc", "mlflow", "transformers", "accelerate", "fastai")
TUNED = {  # for information: glibc keeps what is freed
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def hardware() -> str:
    """The processor, by its name where the system says it, and the number of its CPUs."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {name}, no GPU"


def versions() -> dict[str, str]:
    """The versions of the packages that decide the figures, those in PACKAGES first."""
    found: dict[str, str] = {}
    for each in distributions(path=[str(PACKAGES), *sys.path]):
        found.setdefault(each.name.lower(), each.version)
    return {name: found[name] for name in VERSIONS if name in found}


def ratios_of(case: Case, contenders: Sequence[Contender], rounds: Sequence[Sequence[Run]]) -> dict[str, float]:
    """The median ratio of ours to each other contender, by its name."""
    ours, *others = contenders
    return {
        other.name: round(statistics.median(case.ratio(ours.value(runs[0]), other.value(runs[number])) for runs in rounds), 3)
        for number, other in enumerate(others, start=1)
    }


def summarise(contender: Contender, runs: Sequence[Run]) -> dict[str, Any]:
    """The medians of a contender's runs, and each of its figures."""
    values = [contender.value(run) for run in runs]
    accuracies = [run.figures["accuracy"] for run in runs if "accuracy" in run.figures]
    return {
        "median": round(statistics.median(values), 3),
        "values": [round(value, 3) for value in values],
        "peak_megabytes": round(statistics.median(run.peak_megabytes for run in runs)),
        **({"accuracy": round(statistics.median(accuracies), 6)} if accuracies else {}),
    }


def worst(case: Case, ratios: Mapping[str, float]) -> float:
    """The ratio to the strongest contender."""
    return (max if case.at_most else min)(ratios.values())


def measure(case: Case, projects: Projects, count: int, most_foreign: float, is_tuned: bool) -> dict[str, Any] | None:
    """The results of a case, or None if no round was quiet."""
    print(f"{case.name}:", file=sys.stderr, flush=True)
    contenders, variables = case.contenders(projects), environment()
    if case.is_warm:
        take_round(contenders, variables, 1)
    rounds, thrown = take_rounds(contenders, case.rounds * count, variables, most_foreign)
    if not rounds:
        return None
    ratios = ratios_of(case, contenders, rounds)
    summaries = {each.name: summarise(each, [runs[number] for runs in rounds]) for number, each in enumerate(contenders)}
    for name, ratio in ratios.items():
        summaries[name]["ratio"] = ratio
    ratio = worst(case, ratios)
    results = {
        "case": case.name,
        "work": case.work,
        "against": case.against,
        "ratio": ratio,
        "goal": f"{'at most' if case.at_most else 'at least'} {case.goal:g}",
        "is_met": ratio <= case.goal if case.at_most else ratio >= case.goal,
        "unit": case.unit,
        "contenders": summaries,
        "rounds": len(rounds),
        "thrown_away": thrown,
        "foreign_cpu": round(max(run.foreign for runs in rounds for run in runs), 3),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }
    if is_tuned and case.reruns_tuned:
        rounds, _ = take_rounds(contenders, count, {**variables, **TUNED}, most_foreign)
        tuned = ratios_of(case, contenders, rounds) if rounds else {}
        for name, ratio in tuned.items():
            summaries[name]["ratio_tuned"] = ratio
        results |= {"ratio_tuned": worst(case, tuned)} if tuned else {}
    return results


def page_of(cases: Sequence[dict[str, Any]]) -> str:
    """The text of `bench/results.md`."""
    return f"# Speed, side by side\n\n{table(cases)}\n"


def write(results: Sequence[dict[str, Any]]) -> None:
    """Put the cases in place of those of the same name, in the order of CASES, and write the page anew."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    by_name = {case["case"]: case for case in [*stored.get("cases", []), *results]}
    cases = [by_name[case.name] for case in CASES if case.name in by_name]
    write_json(RESULTS, {**stored, "cases": cases})
    with atomic_file(PAGE) as partial:
        partial.write_text(page_of(cases), encoding="utf-8")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, nargs="?", default=ARCHIVE, help="of labelled pictures (default: %(default)s)")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="short cases take three times as many (default: %(default)s)")
    parser.add_argument(
        "--foreign", type=float, default=MOST_FOREIGN, help="share of the CPUs that others may use in a round (default: %(default)s)"
    )
    parser.add_argument("--tuned", action="store_true", help="fine-tune once more with the allocator tuned, for both")
    parsed = parser.parse_args()
    chosen = [case for case in CASES if case.name in (parsed.case or [each.name for each in CASES])]
    with tempfile.TemporaryDirectory() as folder:
        projects = Projects(Path(folder), parsed.archive)
        results = []
        for case in chosen:
            if result := measure(case, projects, parsed.rounds, parsed.foreign, parsed.tuned):
                results.append(result)
                if min(result["rounds"], parsed.rounds) >= LEAST_ROUNDS and parsed.foreign <= MOST_FOREIGN:
                    write([result])
            else:
                print(f"{case.name}: others were using the CPUs in each round; not measured", file=sys.stderr)
    print(table(results))
    raise SystemExit(len(results) < len(chosen) or not all(case["is_met"] for case in results))


if __name__ == "__main__":
    main()
