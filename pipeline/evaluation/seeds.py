"""Several runs that differ by their seed alone: mean, spread, and whether a difference stands out of the noise between them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = ("top1_accuracy", "balanced_accuracy", "log_loss", "ece")

Scores = Mapping[str, Mapping[str, Any]]  # a model: its figures, with `x_low` and `x_high` where they have an interval


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of two values or more."""
    return {"mean": round(statistics.mean(values), 6), "std": round(statistics.stdev(values), 6)}


def paired_spread(first: Sequence[float], second: Sequence[float], confidence: float) -> dict[str, Any]:
    """`second - first`, paired within a seed: mean, std, Student's t interval of the mean, whether that leaves zero out, each value.

    Seeds share pictures, so that their runs are not independent: the interval is rather too narrow (Nadeau and Bengio, 2003).
    """
    from scipy import stats

    values = [round(after - before, 6) for before, after in zip(first, second, strict=True)]
    mean, count = statistics.mean(values), len(values)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {
        **spread(values), "low": round(mean - half, 6), "high": round(mean + half, 6),
        "shown": mean - half > 0 or mean + half < 0, "values": values,
    }  # fmt: skip


def summarise(runs: Mapping[int, Scores], baseline: str) -> dict[str, Any]:
    """What the runs of several seeds (a seed: its scores) have in common, as JSON: each model's figures and its lead on the baseline.

    `one_run` is half the width of the interval that a single run states for itself, the mean over the seeds.
    """
    first = next(iter(runs.values()))
    confidence = first[baseline]["confidence"]
    accuracy = {name: [scores[name]["top1_accuracy"] for scores in runs.values()] for name in first}
    return {
        "seeds": list(runs),
        "test_pictures": [scores[baseline]["test_pictures"] for scores in runs.values()],
        "confidence": confidence,
        "models": {name: {figure: _figure([scores[name] for scores in runs.values()], figure) for figure in FIGURES} for name in first},
        "differences": {name: paired_spread(accuracy[baseline], accuracy[name], confidence) for name in first if name != baseline},
    }


def _figure(scores: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    values = [facts[figure] for facts in scores]
    widths = [facts[f"{figure}_high"] - facts[f"{figure}_low"] for facts in scores if f"{figure}_low" in facts]
    return {**spread(values), "one_run": round(statistics.mean(widths) / 2, 6) if widths else None, "values": values}


def verdict(name: str, baseline: str, difference: Mapping[str, Any], confidence: float) -> str:
    """A model's lead on the baseline in a sentence, in percentage points."""
    mean, std, low, high = (100 * difference[key] for key in ("mean", "std", "low", "high"))
    shown = "beyond" if difference["shown"] else "not shown beyond"
    return (
        f"{name} - {baseline}, paired within a seed: {mean:+.1f} ± {std:.1f} points, {100 * confidence:g} % t interval "
        f"{low:+.1f} to {high:+.1f}: {shown} the noise between {len(difference['values'])} seeds."
    )


def noise(name: str, accuracy: Mapping[str, Any], confidence: float) -> str:
    """How far a model's accuracy moves with the seed, against what one run says of itself, in a sentence.

    Both as half the width of an interval: of a normal distribution with the std of the seeds, and the mean of those of the runs.
    """
    from scipy import stats

    moved, half = 100 * float(stats.norm.ppf((1 + confidence) / 2)) * accuracy["std"], 100 * accuracy["one_run"]
    more = "more than" if moved > half else "within"
    return (
        f"{name}: a seed moves the accuracy by ± {moved:.1f} points ({100 * confidence:g} %), {more} the ± {half:.1f} that one run states."
    )
