"""The confusion matrix as a drawing whose size grows with the classes, and which classes are mistaken for which."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

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
