"""Measure all fits of `train_baseline`, ours and by scikit-learn: six penalties, and five folds with the best of them.

    python bench/head.py 244x1280x2 1258x1280x10 42500x1280x10
    python bench/head.py --alone 1000000x1280x10     # without scikit-learn, which copies the features: 5 GB

A case is pictures x features x classes; one in seven pictures is val. The features are drawn: their variances fall as 1 / rank, and the
first axes tell the classes best. Both read them from a memory map, each in a fresh process, whose peak memory is given. The objective is
the mean cross entropy and the penalty, in nats; its difference is ours less scikit-learn's, the largest of all penalties.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.training import head
from pipeline.training.logistic import Array, Axes, fit_logistic, over_blocks

ROOT = Path(__file__).parent.parent
THREADS, FOLDS, BLOCK = 2, 5, 10_000
L2_GRID: list[float] = yaml.safe_load((ROOT / "params.yaml").read_text())["train_baseline"]["l2_grid"]


def draw(case: str, folder: Path) -> None:
    """Write features.npy and labels.npy."""
    count, width, classes = map(int, case.split("x"))
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    ranks = np.arange(1.0, width + 1)
    centres = generator.normal(size=(classes, width)) * ranks**-0.5
    rotation = np.linalg.qr(generator.normal(size=(width, width)))[0] * ranks[:, None] ** -0.5
    offset = np.abs(generator.normal(size=width))
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (count, width))
    for start in range(0, count, BLOCK):
        of_block = labels[start : start + BLOCK]
        noise = generator.standard_normal((len(of_block), width), np.float32)
        features[start : start + BLOCK] = (noise + centres[of_block].astype(np.float32)) @ rotation.astype(np.float32) + offset
    features.flush()
    np.save(folder / "labels.npy", labels)


def by_scikit_learn(features: Array, labels: Array, used: Array, l2: Sequence[float], _: Axes, threads: int) -> list[tuple[Array, Array]]:
    """Fit as `fit_logistic` does, one problem after the other."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    fitted = []
    for rows, penalty in zip(used, l2, strict=True):
        of_rows = features if rows.all() else features[rows]
        mean, deviation = of_rows.mean(axis=0), of_rows.std()
        # For two classes scikit-learn fits the difference of their logits, whose weight has twice the squared norm of the two weights.
        factor = 2 if labels.max() == 1 else 1
        model = LogisticRegression(C=factor / (penalty * len(of_rows)), max_iter=2000, tol=1e-4)
        with threadpool_limits(threads):
            model.fit((of_rows - mean) / deviation, labels[rows])
        weight, bias = model.coef_ / deviation, model.intercept_
        if factor == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        fitted.append((np.asarray(weight, np.float32), np.asarray(bias - weight @ mean, np.float32)))
    return fitted


def run(folder: Path, *, ours: bool) -> dict[str, Any]:
    """Time `fit_baseline`. Returns seconds, those of the CPU, peak memory, losses, and the objective of each penalty."""
    fitted: list[tuple[Array, Array]] = []
    fit = fit_logistic if ours else by_scikit_learn

    def fit_and_keep(*arguments: Any) -> list[tuple[Array, Array]]:
        found = fit(*arguments)
        fitted.extend(found)
        return found

    vars(head)["fit_logistic"] = fit_and_keep
    features, labels = np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    examples, count = head.Examples(features, labels), len(labels) * 6 // 7
    begun, cpu_begun = time.perf_counter(), time.process_time()
    halves = np.arange(len(labels) - count) % 2 == 0
    _, history, probs = head.fit_baseline(examples, count, np.arange(len(labels)) % FOLDS, halves, L2_GRID, THREADS)
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu_begun,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "val_loss": min(row["val_loss"] for row in history),
        "out_of_fold_loss": float(head.losses_of(probs, labels).mean()),
        "objectives": objectives(features[:count], [row["train_loss"] for row in history], fitted[: len(L2_GRID)]),
    }


def objectives(features: Array, losses: Sequence[float], fitted: Sequence[tuple[Array, Array]]) -> list[float]:
    """Each loss and its penalty on the weight, of features scaled by their deviation."""

    def moments(part: slice) -> Array:
        rows = features[part].astype(np.float64)
        return np.array([rows.sum(), (rows**2).sum()]) / features.size

    mean, square = sum(over_blocks(features, THREADS, moments), np.zeros(2))
    norms = [(weight.astype(np.float64) ** 2).sum() * (square - mean**2) for weight, _ in fitted]
    return [loss + l2 / 2 * float(norm) for loss, l2, norm in zip(losses, L2_GRID, norms, strict=True)]


def in_process(folder: str, case: str, work: str) -> Any:
    """Draw, or `run`, in a fresh process. A process that has drawn hands its peak memory on to its children."""
    output = subprocess.run([sys.executable, __file__, "--child", work, folder, case], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def main() -> None:
    """Print a row per case, and the losses below."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="as 42500x1280x10")
    parser.add_argument("--alone", action="store_true", help="without scikit-learn")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts (default: %(default)s)")
    parser.add_argument("--child", choices=["draw", "ours", "scikit-learn"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, case = arguments.cases
        if arguments.child == "draw":
            draw(case, Path(folder))
        found_here = None if arguments.child == "draw" else run(Path(folder), ours=arguments.child == "ours")
        print(json.dumps(found_here))
        return
    print(f"{os.cpu_count()} cores, {THREADS} threads")
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            in_process(folder, case, "draw")
            rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for _ in range(arguments.rounds):
                for who in ["ours"] if arguments.alone else ["ours", "scikit-learn"]:
                    rounds[who].append(in_process(folder, case, who))
        print_case(case, {who: min(rows, key=lambda row: float(row["seconds"])) for who, rows in rounds.items()})


def print_case(case: str, found: dict[str, dict[str, Any]]) -> None:
    """One line per method, and how they compare."""
    for who, row in found.items():
        losses = f"val loss {row['val_loss']:.5f}, out-of-fold loss {row['out_of_fold_loss']:.5f}"
        print(
            f"{case:>16} {who:>12}: {row['seconds']:8.2f} s, {row['cpu_seconds']:8.2f} s of CPU, {row['megabytes']:5.0f} MB, {losses}",
            flush=True,
        )
    if "scikit-learn" in found:
        ours, other = found["ours"], found["scikit-learn"]
        differences = [one - two for one, two in zip(ours["objectives"], other["objectives"], strict=True)]
        furthest = max(differences, key=abs)
        print(
            f"{case:>16} {other['seconds'] / ours['seconds']:12.1f} times as fast; objectives differ by at most {furthest:+.1e}", flush=True
        )


if __name__ == "__main__":
    main()
