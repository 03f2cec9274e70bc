"""Report: compare the models on the same pictures, make the page, and tell MLflow."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import stage
from pipeline.errors import PipelineError
from pipeline.evaluation import page
from pipeline.evaluation.statistics import mcnemar_p, paired_difference
from pipeline.files import read_json, read_table, write_json
from pipeline.params import Section, read_params
from pipeline.tracking.publish import publish

BASELINE = "baseline"


class Params(Section):  # section `evaluate` of params.yaml
    seed: int
    threads: int
    confidence: float


def compare(first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]], params: Params) -> dict[str, float | str]:
    """How the second model's predictions differ from the first's on the same pictures, and whether that is shown.

    Raises PipelineError where they are not of the same pictures.
    """
    if [row["image_id"] for row in first] != [row["image_id"] for row in second]:
        raise PipelineError("results: the models were tested on different pictures; run `dvc repro`")
    first_right, second_right = (np.array([row["predicted"] == row["label"] for row in rows]) for rows in (first, second))
    difference, (low, high) = paired_difference(first_right, second_right, params.confidence, params.seed)
    return {
        "top1_accuracy_difference": round(difference, 6),
        "top1_accuracy_difference_low": round(low, 6),
        "top1_accuracy_difference_high": round(high, 6),
        "only_first_right": int((first_right & ~second_right).sum()),
        "only_second_right": int((second_right & ~first_right).sum()),
        "mcnemar_p": float(f"{mcnemar_p(first_right, second_right):.6g}"),
    }


def verdict(name: str, comparison: Mapping[str, Any], count: int) -> str:
    """The comparison in a sentence."""
    difference, low, high = (100 * comparison[f"top1_accuracy_difference{end}"] for end in ("", "_low", "_high"))
    word = "better" if difference > 0 else "worse"
    if difference == 0:
        return f"{name} and {BASELINE} are right equally often on these {count} pictures (interval {low:+.1f} to {high:+.1f} points)."
    shown = "shown" if low > 0 or high < 0 else "not shown"
    return f"{name} is {word} by {abs(difference):.1f} points, interval {low:+.1f} to {high:+.1f}: {shown} by these {count} pictures."


def best_epoch(history: Sequence[Mapping[str, str]]) -> int:
    """The epoch whose weights were kept, that of the lowest val loss; 0 is the start."""
    return int(min(history, key=lambda row: float(row["val_loss"]))["epoch"])


def run(params: Params, models: Path, results: Path, metrics: Path, report: Path, comparison_json: Path) -> None:
    """Compare every model with the baseline, write the page, and bring MLflow up to date where it can be reached."""
    names = [BASELINE, *read_params()["models"]]
    scores = {name: read_json(metrics / f"{name}.json") for name in names}
    predictions = {name: read_table(results / name / "predictions.csv") for name in names}
    histories = {name: read_table(models / name / "history.csv") for name in names}
    comparison: dict[str, dict[str, Any]] = {}
    for name in names[1:]:
        facts = compare(predictions[BASELINE], predictions[name], params)
        comparison[name] = {
            "against": BASELINE,
            "best_epoch": best_epoch(histories[name]),
            **facts,
            "verdict": verdict(name, facts, len(predictions[name])),
        }
    page.write_page(report, scores, comparison, histories, results)
    write_json(comparison_json, comparison)
    try:
        publish(models, results, metrics)
    except PipelineError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
