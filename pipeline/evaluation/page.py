"""The report: one HTML page that needs no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.data.audit import SHOWN_FINDINGS
from pipeline.data.findings import KINDS
from pipeline.evaluation.figures import plot_curves
from pipeline.files import atomic_dir

_PICTURES = {"confusion_matrix": "Confusion matrix of {}: rows are the true classes", "mistakes": "Surest mistakes of {}"}


def write_page(
    folder: Path,
    scores: Mapping[str, Mapping[str, Any]],
    comparison: Mapping[str, Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, str]]],
    results: Path,
    audit: Mapping[str, Any],
    doubts: Sequence[Mapping[str, str]],
) -> None:
    """Write `index.html` with all of its pictures inside, and `curves.png` beside it. Every name in it is escaped.

    `audit`: what `data/audit.json` holds; `doubts`: rows of out_of_fold.csv, each with a `thumbnail`.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["figure"] = format_figure
    with atomic_dir(folder) as partial:
        plot_curves(partial / "curves.png", histories)
        pictures = {
            name: {kind: (text.format(name), embed(results / name / f"{kind}.png")) for kind, text in _PICTURES.items()} for name in scores
        }
        html = environment.get_template("page.html").render(
            scores=scores, comparison=comparison, pictures=pictures, curves=embed(partial / "curves.png"),
            audit=audit, kinds=KINDS, shown=SHOWN_FINDINGS, doubts=doubts,
        )  # fmt: skip
        (partial / "index.html").write_text(html, encoding="utf-8")


def embed(path: Path) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def format_figure(scores: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, to three places: `0.948 (0.901 to 0.974)`."""
    value, low, high = (scores.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "not defined"
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
