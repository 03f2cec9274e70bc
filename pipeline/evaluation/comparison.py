"""Two models on the same pictures: how far apart they are, and whether the difference is significant."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.evaluation.intervals import mcnemar_p, paired_difference

BASELINE = "baseline"


def compare(first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]], confidence: float, seed: int) -> dict[str, float]:
    """How the second model's predictions differ from the first's on the same pictures, and whether that is shown.

    It is where the interval leaves 0 out and McNemar's exact test agrees: of a few pictures the bootstrap is too sure.

    Raises PipelineError where they are not of the same pictures.
    """
    if [row["image_id"] for row in first] != [row["image_id"] for row in second]:
        raise PipelineError("results: the models were tested on different pictures; run `dvc repro`")
    first_right, second_right = (np.array([row["predicted"] == row["label"] for row in rows]) for rows in (first, second))
    difference, (low, high) = paired_difference(first_right, second_right, confidence, seed)
    p = mcnemar_p(first_right, second_right)
    return {
        "top1_accuracy_difference": round(difference, 6),
        "top1_accuracy_difference_low": round(low, 6),
        "top1_accuracy_difference_high": round(high, 6),
        "only_first_right": int((first_right & ~second_right).sum()),
        "only_second_right": int((second_right & ~first_right).sum()),
        "mcnemar_p": float(f"{p:.6g}"),
        "is_shown": not low <= 0 <= high and p < 1 - confidence,
    }


def verdict(name: str, comparison: Mapping[str, Any], count: int) -> str:
    """The comparison in a sentence. A difference is shown where `compare` found it so."""
    difference, low, high = (100 * comparison[f"top1_accuracy_difference{end}"] for end in ("", "_low", "_high"))
    word = "better" if difference > 0 else "worse"
    if difference == 0:
        return f"{name} and {BASELINE} are right equally often on these {count} pictures (interval {low:+.1f} to {high:+.1f} points)."
    shown = "shown" if comparison["is_shown"] else "not shown"
    return f"{name} is {word} by {abs(difference):.1f} points, interval {low:+.1f} to {high:+.1f}: {shown} by these {count} pictures."
