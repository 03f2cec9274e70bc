"""The page of a look: the verdict, what differs, by how much, and the pictures that are furthest from what the model knows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.files import atomic_file
from pipeline.drift.findings import LEAST_DEVIATION, TRAITS, Findings, traits_of
from pipeline.drift.reference import Sample
from pipeline.evaluation.intervals import Array
from pipeline.report import charts
from pipeline.report.page import templates

_BINS = 24
_OUTSIDE = 0.005  # share of the values at each end that a chart may leave out
_MOST_ROWS = 100
_TINY = 64  # pixels of a width, below which pictures are shown with their pixels
_TICK_WIDTH = 34
_SMALL_P = 0.001
_LONG = 10_000  # from here on a tick is in thousands
_UNITS = {
    "brightness": "mean level of grey, 0 to 255",
    "sharpness": "deviation of the Laplacian, logarithmic",
    "aspect": "width by height, logarithmic",
    "size": "pixels, logarithmic",
}
TITLES = {"drift": "Drift", "ok": "No drift is shown", "too few": "Too few pictures"}


class Furthest(NamedTuple):
    """A picture of the grid. `url`: of its thumbnail, a data URL; `distance`: 1 is usual, see `choosing.distances`."""

    path: str
    url: str
    predicted: str
    probability: float
    distance: float


def write_page(
    path: Path, findings: Findings, samples: tuple[Sample, Sample], furthest: Sequence[Furthest], about: Mapping[str, Any]
) -> None:
    """Write the page, one file without a script. All text is escaped.

    `samples`: the reference and the new pictures; `about`: `model`, `sha256`, `source`, `alpha`, `looks`, `number`, `is_known`, `faults`
    and `notes` (lines), and `to_label` (a number of pictures).
    """
    values = {name: [traits_of(sample)[name] for sample in samples] for name in TRAITS}
    environment = templates()
    environment.filters |= {"p": _p, "percents": _percents}
    html = environment.get_template("drift.html").render(
        findings=findings, furthest=furthest, about=about, title=TITLES[findings.verdict], charts=charts, along=charts.percent_along,
        drawings=[_histograms(name, *each) for name, each in values.items() if np.ptp(np.concatenate(each)) > LEAST_DEVIATION],
        constant=[TRAITS[name].title for name, each in values.items() if np.ptp(np.concatenate(each)) <= LEAST_DEVIATION],
        tiny=np.median(samples[1].width) < _TINY,
        domain_start=min(0.4, findings.domain["low"]) if findings.domain else 0.4,
        accuracy_start=charts.whisker_scale([findings.accuracy["low"], findings.accuracy["reference"] - 0.02]),
        rows=_rows(findings), most_rows=_MOST_ROWS,
    )  # fmt: skip
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8", errors="replace")


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < _SMALL_P else f"{value:.2g}"


def _percents(figure: Mapping[str, float | None]) -> str:
    """The interval of a share: `18.6 to 27.3 %`; a dash if it is undefined."""
    low, high = figure["low"], figure["high"]
    return "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"


def _rows(findings: Findings) -> list[dict[str, Any]]:
    """A row per class, those whose predicted share differs most first."""
    estimated = findings.true_shares or [{}] * len(findings.shares)
    rows = [{**row, "estimated": true} for row, true in zip(findings.shares, estimated, strict=True)]
    return sorted(rows, key=lambda row: -abs(row["value"] - row["reference"]))


def _histograms(name: str, old: Array, new: Array) -> charts.Chart:
    """The shares of the pictures of both samples by a trait, whose values vary."""
    both = np.concatenate([old, new])
    low, high = (float(end) for end in np.quantile(both, [_OUTSIDE, 1 - _OUTSIDE]))
    if high - low < LEAST_DEVIATION:
        low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high, _BINS + 1)
    heights = [np.histogram(np.clip(values, low, high), edges)[0] / len(values) for values in (old, new)]
    top = max(float(each.max()) for each in heights) * 1.05

    def x(value: float) -> float:
        return round(charts.LEFT + (value - low) / (high - low) * (charts.RIGHT - charts.LEFT), 1)

    def y(value: float) -> float:
        return round(charts.BOTTOM - value / top * (charts.BOTTOM - charts.TOP), 1)

    lines = []
    for label, style, each in (("test pictures", "main", heights[0]), ("new pictures", "other", heights[1])):
        steps = [(x(edge), y(height)) for left, right, height in zip(edges[:-1], edges[1:], each, strict=True) for edge in (left, right)]
        lines.append(charts.Line(label, style, steps, marked=False))
    return charts.Chart(
        TRAITS[name].title,
        _UNITS[name],
        _ticks(name, low, high, x),
        [(y(value), f"{value:g}") for value in charts.nice_ticks(0, top) if value <= top],
        lines,
    )


def _ticks(name: str, low: float, high: float, x: Callable[[float], float]) -> list[charts.Tick]:
    """Round values in the trait's own unit, whose scale may be logarithmic, as far as their labels do not overlap."""
    trait = TRAITS[name]
    ticks: list[charts.Tick] = []
    for value in charts.nice_ticks(trait.shown(low), trait.shown(high)):
        place = x(float(trait.scaled(value))) if value > 0 or trait.scaled is float else charts.LEFT - 1.0
        if charts.LEFT <= place <= charts.RIGHT and (not ticks or place - ticks[-1][0] >= _TICK_WIDTH):
            ticks.append((place, f"{value / 1000:g}k" if value >= _LONG else f"{value:g}"))
    return ticks
