"""Charts of the report as coordinates. The templates draw them as SVG."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, log10, sqrt

import numpy as np
from PIL import Image

from pipeline.evaluation.figures import pooled, shorten
from pipeline.evaluation.intervals import Array
from pipeline.evaluation.scores import shares

# A chart, in the units of its drawing
WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 190  # of the frame inside the drawing
_MOST_MARKERS = 30
_MOST_LABELS = 8
_HISTOGRAM = 36  # height of the highest bar
_WIDE_INTERVALS = 0.1  # the coverage below which intervals may exceed the axis: few pictures are answered there

# A confusion matrix, in pixels
_LETTER = 6.6  # width of a letter
_NUMBERED = 30  # classes, beyond which numbers in the cells are unreadable
_SIDES = ((4, 64), (7, 48), (12, 36), (_NUMBERED, 26))  # (number of classes, side of a cell): the first that is large enough
_SMALLEST = 15
_SHADES = 20
_FAINTEST = 2  # of the shades: the first that is distinct from the background
_DARK = 0.55  # the share of a row from which the number in a cell is light
_MOST_CONFUSIONS = 8
MOST_DRAWN = 100  # classes, beyond which a cell is a pixel without a name
_MOST_PIXELS = 500  # per side
_FAINTEST_PIXEL = 0.4  # opacity: a single pixel is hard to see
_BLUE, _ORANGE = (28, 92, 159), (168, 69, 15)  # `--tint` and `--warm` of the page

# The history of the decisions
SHAPES = {  # as SVG, from the point on
    "up": "m0-6l5.5 9.5h-11z",
    "down": "m0 6l5.5-9.5h-11z",
    "diamond": "m0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z",
    "cross": "m-3.5-3.5l7 7m0-7l-7 7",
    "circle": "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "dot": "m-1.5 0a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0z",
}
_DAY = 86_400
_HOUR = 3600
_DAYS = (1, 2, 4, 7, 14, 28, 56, 112, 182, 364)
_TIME_STEPS = (600, 1200, 1800, *(hours * _HOUR for hours in (1, 2, 3, 6, 12)), *(days * _DAY for days in _DAYS))
_TIME_LABEL = 100  # width of a label of the time axis
_MARK_LABEL = 26
_CROWDED = 8  # width per mark, below which marks overlap

Point = tuple[float, float]
Tick = tuple[float, str]


@dataclass(frozen=True)
class Line:
    """A line through points. `style`: the CSS class `main`, `other` or `before`."""

    name: str
    style: str
    points: Sequence[Point]
    marked: bool = True
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart in the units of its drawing, y downwards.

    `whiskers`: x, y of the low end, y of the high end; `bars`: x, y, width, height; `diagonal`: a dashed line from corner to corner.
    """

    title: str
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    band: Sequence[Point] = ()
    whiskers: Sequence[tuple[float, float, float]] = ()
    bars: Sequence[tuple[float, float, float, float]] = ()
    diagonal: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        return [(self.at(value), f"{value:g}") for value in nice_ticks(self.low, self.high)]


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round values within an interval, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def curves(history: Sequence[Mapping[str, str]]) -> list[Chart]:
    """Charts of loss and accuracy on train and val. `history`: rows of history.csv; empty cells are left out."""
    return [_curve(history, quantity) for quantity in ("loss", "accuracy")]


def _curve(history: Sequence[Mapping[str, str]], quantity: str) -> Chart:
    step = next(iter(history[0]))
    values = {split: [(n, float(row[f"{split}_{quantity}"])) for n, row in enumerate(history) if row[f"{split}_{quantity}"]]
              for split in ("train", "val")}  # fmt: skip
    all_values = [value for pairs in values.values() for _, value in pairs]
    x = _Axis(0, max(1, len(history) - 1), LEFT + 10, RIGHT - 10)
    low, high = (0, 1.05 * max(*all_values, 1e-6)) if quantity == "loss" else (_below(min(all_values)), 1)
    y = _Axis(low, high, BOTTOM, TOP)
    thin = ceil(len(history) / _MOST_LABELS)
    labels = [(x.at(number), row.get("l2", row[step])) for number, row in enumerate(history) if number % thin == 0]
    lines = [Line(split, style, [(x.at(n), y.at(value)) for n, value in values[split]], len(history) <= _MOST_MARKERS)
             for split, style in (("train", "other"), ("val", "main"))]  # fmt: skip
    return Chart(quantity, "L2 penalty" if "l2" in history[0] else step, labels, y.ticks(), lines)


def _below(share: float) -> float:
    """A multiple of 0.05 below a share, at least 0: the start of an axis."""
    return max(0.0, floor(20 * share - 0.4) / 20)


def reliability(rows: Sequence[Mapping[str, str]], rows_before: Sequence[Mapping[str, str]]) -> Chart:
    """Accuracy by confidence with intervals, also before temperature scaling; bars for the number of pictures per bin.

    `rows`: of reliability.csv; `rows_before`: of reliability_before.csv.
    """
    x, y = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    stored, before = ([(x.at(float(row["probability"])), y.at(float(row["accuracy"]))) for row in each] for each in (rows, rows_before))
    most = max(int(row["pictures"]) for row in rows)
    bars = []
    for row in rows:
        low, high, height = x.at(float(row["from"])), x.at(float(row["to"])), _HISTOGRAM * int(row["pictures"]) / most
        bars.append((low, round(BOTTOM - height, 1), round(high - low - 1, 1), round(height, 1)))
    return Chart(
        title="Reliability",
        x_label="confidence (probability of the predicted class)",
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        lines=[Line("before temperature scaling", "before", before, joined=False), Line("accuracy", "main", stored, joined=False)],
        whiskers=[(place, y.at(float(row["accuracy_low"])), y.at(float(row["accuracy_high"])))
                  for (place, _), row in zip(stored, rows, strict=True)],
        bars=bars,
        diagonal=True,
    )  # fmt: skip


def coverage(rows: Sequence[Mapping[str, str]]) -> Chart:
    """Accuracy, with its interval, by the share of pictures that the model answers. `rows`: of coverage.csv."""
    lows = [float(row["accuracy_low"]) for row in rows if float(row["coverage"]) >= _WIDE_INTERVALS]
    x, y = _Axis(0, 1, LEFT, RIGHT), _Axis(_below(min([0.95, *lows])), 1, BOTTOM, TOP)
    at = {name: [(x.at(float(row["coverage"])), y.at(max(y.low, float(row[name])))) for row in rows] for name in
          ("accuracy", "accuracy_low", "accuracy_high")}  # fmt: skip
    band = [*at["accuracy_high"], *reversed(at["accuracy_low"])]
    lines = [Line("accuracy", "main", at["accuracy"], marked=False)]
    return Chart("Accuracy by coverage", "share of pictures answered, most confident first", x.ticks(), y.ticks(), lines, band)


def whisker_scale(lows: Iterable[float | None]) -> float:
    """The start of an axis that ends at 1 and on which no interval is cut off. `lows`: the low ends of the intervals."""
    return _below(min([0.95, *(low for low in lows if low is not None)]))


def percent_along(value: float, start: float) -> float:
    """The position of a share between `start` and 1, in percent."""
    return round(100 * (value - start) / (1 - start), 1)


@dataclass(frozen=True)
class Shade:
    """All cells of one kind (`correct` or `mistake`) and one opacity, as one SVG path."""

    kind: str
    opacity: float
    path: str


@dataclass(frozen=True)
class Number:
    """A count in the middle of its cell. `strong`: whether the cell is dark."""

    x: float
    y: float
    count: int
    strong: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as a drawing, in pixels: rows are the true classes, columns the predicted ones.

    The opacity of a cell is the root of its share of the row, so that rare mistakes are visible.
    """

    names: Sequence[str]
    side: int
    gutter: int  # left of the cells and above them
    turned: bool  # whether the names above are vertical
    shades: Sequence[Shade]
    numbers: Sequence[Number]

    @property
    def size(self) -> int:
        """The width and the height of the drawing."""
        return self.gutter + self.side * len(self.names) + 4


@dataclass(frozen=True)
class Confusion:
    """The number of pictures of one class that are predicted as another, and their share of the class."""

    label: str
    predicted: str
    count: int
    share: float


def lay_out(names: Sequence[str], counts: Array) -> Matrix:
    """The drawing of a confusion matrix of at most a hundred classes. `counts`: int (classes, classes)."""
    side = next((side for most, side in _SIDES if len(names) <= most), _SMALLEST)
    short_names = [shorten(name) for name in names]
    longest = max(map(len, short_names)) * _LETTER
    gutter = int(longest) + 12
    cells, numbers = defaultdict(list), []
    for row, column in np.argwhere(counts).tolist():
        count = int(counts[row, column])
        share = count / counts[row].sum()
        left, top = gutter + column * side, gutter + row * side
        kind = "correct" if row == column else "mistake"
        cells[kind, max(_FAINTEST, round(_SHADES * sqrt(share)))].append(f"M{left} {top}h{side - 1}v{side - 1}h{1 - side}z")
        numbers.append(Number(left + (side - 1) / 2, top + (side - 1) / 2, count, strong=bool(share >= _DARK)))
    shades = [Shade(kind, level / _SHADES, "".join(paths)) for (kind, level), paths in sorted(cells.items())]
    return Matrix(short_names, side, gutter, longest > side - 4, shades, numbers if len(names) <= _NUMBERED else [])


def draw_pixels(counts: Array) -> str:
    """A confusion matrix of many classes as the data URL of a PNG of at most 500 pixels per side, rows the true classes.

    A pixel is the strongest of one or more cells: blue if one of them is correct, else orange.
    """
    opacity = np.where(counts, np.maximum(np.sqrt(shares(counts)), _FAINTEST_PIXEL), 0)
    correct = np.diag(np.diag(opacity))
    correct, mistake = (pooled(each, _MOST_PIXELS) for each in (correct, opacity - correct))
    colours = np.where((correct > 0)[..., None], _BLUE, _ORANGE)
    alpha = np.round(_SHADES * np.where(correct > 0, correct, mistake)) * (255 // _SHADES)
    image = Image.fromarray(np.concatenate([colours, alpha[..., None]], axis=2).astype(np.uint8), "RGBA")
    with io.BytesIO() as file:
        image.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def most_confused(names: Sequence[str], counts: Array) -> list[Confusion]:
    """The pairs of classes with the most mistakes, at most eight. Among equal counts the larger share of its class comes first."""
    mistakes = counts - np.diag(np.diag(counts))
    least = np.sort(mistakes, axis=None)[-_MOST_CONFUSIONS:][0]
    totals = counts.sum(axis=1)
    pairs = [
        Confusion(names[row], names[column], int(mistakes[row, column]), float(mistakes[row, column] / totals[row]))
        for row, column in np.argwhere(mistakes >= max(1, least)).tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.label, pair.predicted))[:_MOST_CONFUSIONS]


@dataclass(frozen=True)
class Moment:
    """A decision in the history.

    `seconds`: since 1970; `champion`: the metric of the champion from then on, None if unknown; `shape`: a key of SHAPES; `label`: beside
    the mark, or empty; `title`: the decision in words; `value`, `low`, `high`: the metric of the judged model, None if nothing was judged.
    """

    seconds: float
    champion: float | None
    shape: str
    label: str
    title: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Mark:
    """A decision in the drawing. `whisker`: y of the low and of the high end, None without an interval."""

    x: float
    y: float
    whisker: tuple[float, float] | None
    shape: str
    label: str
    title: str


@dataclass(frozen=True)
class Timeline:
    """The history as a drawing of HEIGHT and this width. `champion`: lines, stepwise; `crowded`: whether marks overlap."""

    width: int
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    champion: Sequence[Sequence[Point]]
    marks: Sequence[Mark]
    crowded: bool

    @property
    def right(self) -> int:
        """The right end of the frame."""
        return self.width - (WIDTH - RIGHT)


def timeline(moments: Sequence[Moment], width: int) -> Timeline:
    """The metric of each judged model, with its interval, over time; the champion's as a line. `moments`: at least one, oldest first."""
    start, end = moments[0].seconds, moments[-1].seconds
    margin = _HOUR if end - start < _HOUR else 0
    right = width - (WIDTH - RIGHT)
    x = _Axis(start - margin, end + margin, LEFT + 10, right - 10)
    figures = [value for each in moments for value in (each.value, each.low, each.champion) if value is not None]
    y = _Axis(_below(min([0.95, *figures])), 1, BOTTOM, TOP)
    crowded = (right - LEFT) / len(moments) < _CROWDED
    levels = [(x.at(each.seconds), None if each.champion is None else y.at(each.champion)) for each in moments]
    return Timeline(width, _time_ticks(x), y.ticks(), _steps(levels), _marks(moments, x, y, crowded), crowded)


def _marks(moments: Sequence[Moment], x: _Axis, y: _Axis, crowded: bool) -> list[Mark]:
    """A mark per moment. Without a value it has the height of the champion. A label that would cover the one before is left out."""
    marks, labelled = [], -float("inf")
    for each in moments:
        place = x.at(each.seconds)
        level = each.champion if each.value is None else each.value
        whisker = None if each.low is None or each.high is None else (y.at(each.low), y.at(each.high))
        label = each.label if place - labelled >= _MARK_LABEL else ""
        labelled = place if label else labelled
        shape = "dot" if crowded and each.shape == "circle" else each.shape
        marks.append(Mark(place, BOTTOM if level is None else y.at(level), whisker, shape, label, each.title))
    return marks


def _steps(levels: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    """Lines that keep their height until the next x. None ends a line."""
    lines: list[list[Point]] = [[]]
    for x, y in levels:
        if lines[-1]:
            lines[-1].append((x, lines[-1][-1][1]))
        if y is None:
            lines.append([])
        elif not lines[-1] or lines[-1][-1][1] != y:
            lines[-1].append((x, y))
    return [line for line in lines if line]


def _time_ticks(x: _Axis) -> list[Tick]:
    """Round times in UTC, so far apart that their labels do not overlap."""
    rough = (x.high - x.low) * _TIME_LABEL / (x.end - x.start)
    step = next((step for step in _TIME_STEPS if step >= rough), _DAY * ceil(rough / _DAY))
    form = "%d %b %Y" if step >= _DAY else "%d %b %H:%M"
    times = [number * step for number in range(ceil(x.low / step), floor(x.high / step) + 1)]
    return [(x.at(time), datetime.fromtimestamp(time, UTC).strftime(form)) for time in times]
