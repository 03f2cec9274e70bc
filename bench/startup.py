"""Measure how long `pipeline --help` takes beside a Python that imports argparse alone, in pairs of fresh processes.

    python bench/startup.py --rounds 15

Writes the case `startup` of `bench/results.json`. Goal: at most 3 times the seconds of `python -c "import argparse"`, plus 0.1 s.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pipeline.core.files import write_json

ROOT = Path(__file__).parent.parent
TIMES, EXTRA_SECONDS = 3, 0.1
COMMANDS = {
    "argparse": [sys.executable, "-c", "import argparse"],
    "pipeline": [str(Path(sys.executable).with_name("pipeline")), "--help"],
}


def seconds_of(command: list[str]) -> float:
    """The seconds from start to end of a process."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(rounds: int) -> list[tuple[float, float]]:
    """The seconds of both commands, in turn, once per round; a first round, which warms the file cache, is dropped."""
    pairs = [(seconds_of(COMMANDS["argparse"]), seconds_of(COMMANDS["pipeline"])) for _ in range(rounds + 1)]
    return pairs[1:]


def main() -> None:
    """Measure, print, write, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="at least 9 (default: %(default)s)")
    pairs = measure(max(parser.parse_args().rounds, 9))
    for bare, whole in pairs:
        print(f"{bare:.3f} s  {whole:.3f} s  ratio {whole / bare:.2f}")
    bare, whole = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    is_met = statistics.median(whole - TIMES * bare for bare, whole in pairs) <= EXTRA_SECONDS
    path = ROOT / "bench/results.json"
    case = {
        "case": "startup",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "rounds": len(pairs),
        "argparse_seconds": round(bare, 3),
        "pipeline_seconds": round(whole, 3),
        "ratio": round(statistics.median(whole / bare for bare, whole in pairs), 2),
        "goal": f"at most {TIMES} times + {EXTRA_SECONDS} s",
        "is_met": is_met,
    }
    write_json(path, {**json.loads(path.read_text()), "startup": case})
    print(f"median {bare:.3f} s and {whole:.3f} s, ratio {case['ratio']}; goal, {case['goal']}: {'met' if is_met else 'missed'}")
    raise SystemExit(not is_met)


if __name__ == "__main__":
    main()
