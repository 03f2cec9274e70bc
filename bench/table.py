"""The results of `bench/run.py` as a table in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("work", "by", "figure", "ratio", "goal", "tuned", "peak MB", "accuracy", "rounds")


def rows_of(case: Mapping[str, Any]) -> list[list[str]]:
    """A row of ours, with the case's ratio and goal, and one per other contender."""
    rows = []
    for number, (name, figures) in enumerate(case["contenders"].items()):
        is_first = number == 0
        ratio = case["ratio"] if is_first else figures["ratio"]
        mark = "" if case["is_met"] or not is_first else ", missed"
        tuned = case.get("ratio_tuned") if is_first else figures.get("ratio_tuned")
        rows.append(
            [
                f"**{case['work']}**, against {case['against']}" if is_first else "",
                name,
                f"{figures['median']:.3g} {case['unit']}",
                f"**{ratio:.2f}**" if is_first else f"{ratio:.2f}",
                f"{case['goal']}{mark}" if is_first else "",
                f"{tuned:.2f}" if tuned else "",
                f"{figures['peak_megabytes']:.0f}",
                f"{figures['accuracy']:.3f}" if "accuracy" in figures else "",
                str(case["rounds"]) if is_first else "",
            ]
        )
    return rows


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The table of all cases, below a line per hardware, versions and date."""
    origins = dict.fromkeys(
        f"{case['hardware']}, {case['date']}: {', '.join(f'{name} {number}' for name, number in case['versions'].items())}."
        for case in cases
    )
    rows = [HEAD, ["---"] * len(HEAD), *(row for case in cases for row in rows_of(case))]
    return "\n".join([*origins, "", *(f"| {' | '.join(row)} |" for row in rows)])
