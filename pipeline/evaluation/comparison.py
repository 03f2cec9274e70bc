"""Two models on the same pictures: the difference of their accuracies, and whether it is significant."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.params import BASELINE


def compare(first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]], confidence: float, seed: int) -> dict[str, float]:
    """The second model's accuracy minus the first's, with its interval and McNemar's test. Arguments are rows of predictions.csv.

    `is_shown`: whether the difference is significant. Raises PipelineError if the rows are not of the same pictures in the same order.
    """
    import numpy as np

    from pipeline.evaluation.intervals import mcnemar_p, paired_difference

    if [row["image_id"] for row in first] != [row["image_id"] for row in second]:
        raise PipelineError("results: the models were tested on different pictures; run `dvc repro`")
    first_correct, second_correct = (np.array([row["predicted"] == row["label"] for row in rows]) for rows in (first, second))
    difference, (low, high) = paired_difference(first_correct, second_correct, confidence, seed)
    p = mcnemar_p(first_correct, second_correct)
    return {
        "top1_accuracy_difference": round(difference, 6),
        "top1_accuracy_difference_low": round(low, 6),
        "top1_accuracy_difference_high": round(high, 6),
        "only_first_right": int((first_correct & ~second_correct).sum()),
        "only_second_right": int((second_correct & ~first_correct).sum()),
        "mcnemar_p": float(f"{p:.6g}"),
        # Both must agree: if few answers differ, the bootstrap interval is too narrow, and the exact test is not.
        "is_shown": not low <= 0 <= high and p < 1 - confidence,
    }


def verdict(name: str, comparison: Mapping[str, Any], count: int) -> str:
    """A comparison with the baseline as a sentence. `comparison`: from `compare`; `count`: the number of test pictures."""
    difference, low, high = (100 * comparison[f"top1_accuracy_difference{end}"] for end in ("", "_low", "_high"))
    interval = f"interval {low:+.1f} to {high:+.1f}"
    if difference == 0:
        return f"{name} and {BASELINE} are equally accurate on {count} test pictures ({interval} points)."
    word, significance = "better" if difference > 0 else "worse", "significant" if comparison["is_shown"] else "not significant"
    return f"{name} is {word} than {BASELINE} by {abs(difference):.1f} points ({interval}): {significance} on {count} test pictures."
