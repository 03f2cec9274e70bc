"""`pipeline results`: the comparison as a table."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.columns import align
from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import verdict
from pipeline.files import read_json

_COLUMNS = {"top1_accuracy": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "ece": "ECE"}


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("results", help="print what the models scored")
    parser.set_defaults(run=lambda parsed: print(show(Path("metrics/comparison.json"))))


def show(comparison_json: Path) -> str:
    """The table of all models with intervals, the verdicts, and where to look next. Raises PipelineError."""
    if not comparison_json.is_file():
        raise PipelineError(f"{comparison_json}: is not there; run `dvc repro`")
    comparison = read_json(comparison_json)
    pictures = comparison["test_pictures"]
    rows = [["model", *_COLUMNS.values()]]
    rows += [[name, *(_figure(facts, column) for column in _COLUMNS)] for name, facts in comparison["models"].items()]
    lines = [*align(rows), "", f"{pictures} test pictures; in brackets {100 * comparison['confidence']:g} % intervals."]
    for name, facts in comparison["differences"].items():
        lines.append(f"{verdict(name, facts, pictures)} McNemar p = {facts['mcnemar_p']:.2g}.")
        if facts["best_epoch"] == 0:
            lines.append(f"No epoch of {name} was better on val than its start, whose weights it kept.")
    return "\n".join([*lines, "", "Next: open report/index.html; `pipeline ui` for MLflow; change params.yaml and `dvc repro`."])


def _figure(facts: dict[str, Any], name: str) -> str:
    value, low, high = (facts.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
