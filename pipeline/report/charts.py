"""Charts of the report as coordinates, which the templates draw as SVG."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 190  # of the frame inside the drawing
_MOST_MARKERS = 30
_MOST_LABELS = 8
_HISTOGRAM = 36  # the height of its highest bar
_WELL_KNOWN = 0.1  # of the pictures, from which on an interval is narrow enough to be shown whole
Point = tuple[float, float]
Tick = tuple[float, str]


@dataclass(frozen=True)
class Line:
    """A line through points; `style` is `main`, `other` or `before`."""

    name: str
    style: str
    points: Sequence[Point]
    marked: bool = True
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """Everything in the drawing's own units, y downwards.

    `whiskers`: x, y of the low end, y of the high end; `bars`: x, y, width, height.
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
    """Round values (1, 2 or 5 times a power of ten apart) within an interval: three to six of them."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def curves(history: Sequence[Mapping[str, str]]) -> list[Chart]:
    """Loss and accuracy on train and val over the rows of a model's history. Cells that are empty are left out."""
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
    """A round share below one: what an axis may begin with."""
    return max(0.0, floor(20 * share - 0.4) / 20)


def reliability(rows: Sequence[Mapping[str, str]], rows_before: Sequence[Mapping[str, str]]) -> Chart:
    """How right the answers are of which the model is so sure, with intervals, and without its temperature; bars say how many they are.

    Rows of reliability.csv and of reliability_before.csv.
    """
    x, y = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    right, before = ([(x.at(float(row["probability"])), y.at(float(row["accuracy"]))) for row in each] for each in (rows, rows_before))
    low, high = ([y.at(float(row[name])) for row in rows] for name in ("accuracy_low", "accuracy_high"))
    fullest = max(int(row["pictures"]) for row in rows)
    return Chart(
        title="Is it as sure as it is right?",
        x_label="probability of the answer",
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        lines=[Line("right before", "before", before, joined=False), Line("right", "main", right, joined=False)],
        whiskers=[(place, least, most) for (place, _), least, most in zip(right, low, high, strict=True)],
        bars=[_bar(x, float(row["from"]), float(row["to"]), _HISTOGRAM * int(row["pictures"]) / fullest) for row in rows],
        diagonal=True,
    )


def _bar(x: _Axis, low: float, high: float, height: float) -> tuple[float, float, float, float]:
    return x.at(low), round(BOTTOM - height, 1), round(x.at(high) - x.at(low) - 1, 1), round(height, 1)


def coverage(rows: Sequence[Mapping[str, str]]) -> Chart:
    """How right the model would be if it answered only the share of pictures of which it is surest. Rows of coverage.csv."""
    lows = [float(row["accuracy_low"]) for row in rows if float(row["coverage"]) >= _WELL_KNOWN]
    x, y = _Axis(0, 1, LEFT, RIGHT), _Axis(_below(min([0.95, *lows])), 1, BOTTOM, TOP)
    at = {name: [(x.at(float(row["coverage"])), y.at(max(y.low, float(row[name])))) for row in rows] for name in
          ("accuracy", "accuracy_low", "accuracy_high")}  # fmt: skip
    band = [*at["accuracy_high"], *reversed(at["accuracy_low"])]
    title, x_label = "What if it may abstain?", "share that is answered, the surest first"
    return Chart(title, x_label, x.ticks(), y.ticks(), [Line("right", "main", at["accuracy"], marked=False)], band)


def whisker_scale(lows: Iterable[float | None]) -> float:
    """Where a shared axis of shares begins, whose end is 1, so that no interval is cut off."""
    return _below(min([0.95, *(low for low in lows if low is not None)]))


def percent_along(value: float, start: float) -> float:
    """Where a share lies between `start` and 1, in percent."""
    return round(100 * (value - start) / (1 - start), 1)


_LONGEST = 18  # letters of a name
_LETTER = 6.6  # pixels of one letter
_NUMBERED = 30  # classes, up to which numbers in the cells can be read
_SIDES = ((4, 64), (7, 48), (12, 36), (_NUMBERED, 26))  # pixels of a cell, for up to so many classes
_SMALLEST = 15
_SHADES = 20
_FAINTEST = 2  # of these: what can be told from paper
_DARK = 0.55  # the share from which on letters in a cell are light
_SHOWN_PAIRS = 8


@dataclass(frozen=True)
class Shade:
    """Cells of one kind (right answers or mistakes) and one opacity, as one path."""

    kind: str
    opacity: float
    path: str


@dataclass(frozen=True)
class Number:
    """A count in the middle of its cell; `strong`: where the cell is dark."""

    x: float
    y: float
    count: int
    strong: bool


@dataclass(frozen=True)
class Matrix:
    """Rows are the truth, columns the answers; pixels. A cell is as opaque as the root of its share of the row, so that few are seen."""

    names: Sequence[str]
    side: int
    gutter: int  # left of the cells and above them
    turned: bool  # whether the names above stand upright
    shades: Sequence[Shade]
    numbers: Sequence[Number]

    @property
    def size(self) -> int:
        """The width and the height of the drawing."""
        return self.gutter + self.side * len(self.names) + 4


@dataclass(frozen=True)
class Confusion:
    """How many pictures of one class are answered as another, and which share of the class they are."""

    label: str
    predicted: str
    count: int
    share: float


def read_counts(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[int]]]:
    """The classes and the counts in the rows of confusion_matrix.csv."""
    names = list(rows[0])[1:]
    return names, [[int(row[name]) for name in names] for row in rows]


def lay_out(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Matrix:
    """Place the cells of a matrix of counts."""
    side = next((side for most, side in _SIDES if len(names) <= most), _SMALLEST)
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    longest = max(map(len, shown)) * _LETTER
    gutter = int(longest) + 12
    cells, numbers = defaultdict(list), []
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                share = count / sum(line)
                left, top = gutter + column * side, gutter + row * side
                kind = "right" if row == column else "mistake"
                cells[kind, max(_FAINTEST, round(_SHADES * sqrt(share)))].append(f"M{left} {top}h{side - 1}v{side - 1}h{1 - side}z")
                numbers.append(Number(left + (side - 1) / 2, top + (side - 1) / 2, count, strong=share >= _DARK))
    shades = [Shade(kind, level / _SHADES, "".join(paths)) for (kind, level), paths in sorted(cells.items())]
    return Matrix(shown, side, gutter, longest > side - 4, shades, numbers if len(names) <= _NUMBERED else [])


def most_confused(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Confusion]:
    """The pairs with the most mistakes, at most eight; of equal counts the larger share of its class comes first."""
    pairs = [
        Confusion(names[row], names[column], count, count / sum(line))
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count and row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.label, pair.predicted))[:_SHOWN_PAIRS]
