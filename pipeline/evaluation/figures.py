"""Plots of results as PNG files. Equal figures give equal bytes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.calibration import BINS
from pipeline.evaluation.intervals import Array
from pipeline.evaluation.scores import shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_BLUE, _GREY = "#1f5fa8", "#8a8a8a"
_LONGEST_NAME = 18  # letters
_LARGEST = 22.0  # inches, at which a hundred names are readable
_MOST_NAMES = 100  # beside a matrix; of more classes every second one is named, or every third
_MOST_CELLS = 1000  # per side; of more classes a cell is the largest of several
_READABLE_CELLS = 30  # classes, beyond which numbers in the cells are unreadable
_FAINTEST = 0.1  # of the blues, for the smallest share: one mistake in hundreds is not a white cell
_DARK = 0.65  # of the blues, beyond which the letters in a cell are white
_COLOUR_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
_LETTER = 0.62  # width of a letter relative to its size
PlotRow = Mapping[str, float]


@contextmanager
def _figure(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> Iterator[tuple["Figure", Any]]:
    """A figure of that size in inches and its axes, saved as PNG without a date or a version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    figure.savefig(path, format="png", metadata={"Software": None})


def plot_confusion_matrix(path: Path, matrix: Array, class_names: Sequence[str], title: str) -> None:
    """Rows are the true classes, columns the predicted ones. `matrix`: counts (int) or shares of the rows (float).

    The colour follows the root of the share of the row. Only cells without a picture are white. The picture is at most 2,640 pixels wide.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, PowerNorm

    count = len(class_names)
    named = range(0, count, -(-count // _MOST_NAMES))
    names = [_plain(shorten(class_names[index])) for index in named]
    side = min(_LARGEST, max(4.5, 2.6 + 0.42 * count))
    room = 72 * 0.75 * (side - 2) / len(names)  # points per name
    letters = min(10.0, room)
    turned = max(map(len, names)) * _LETTER * letters > room
    row_shares = shares(matrix)
    blues = ListedColormap(colormaps["Blues"](np.linspace(_FAINTEST, 1, 256)))
    with _figure(path, side, side - 0.4) as (figure, axes):
        axis = axes[0, 0]
        cells, edges = np.ma.masked_equal(pooled(row_shares, _MOST_CELLS), 0), (-0.5, count - 0.5, count - 0.5, -0.5)
        image = axis.imshow(cells, cmap=blues, norm=PowerNorm(0.5, vmin=0, vmax=1), extent=edges, interpolation="nearest")
        axis.set_xticks(named, names, rotation=90 if turned else 0, fontsize=letters)
        axis.set_yticks(named, names, fontsize=letters)
        axis.set(xlabel="predicted class", ylabel="true class")
        figure.suptitle(_plain(title))  # over the whole figure: beside long names the axes are too narrow for a title
        figure.colorbar(image, ax=axis, fraction=0.046, label="share of the true class", ticks=_COLOUR_TICKS, format="{x:g}")
        if count <= _READABLE_CELLS:
            for row, column in np.argwhere(matrix):
                colour = "white" if image.norm(row_shares[row, column]) > _DARK else "black"
                axis.text(column, row, _cell(matrix[row, column]), ha="center", va="center", color=colour, fontsize=letters)


def pooled(matrix: Array, most: int) -> Array:
    """A square matrix with at most `most` rows: each number is the largest of a square of numbers, if there are more."""
    starts = np.arange(0, len(matrix), -(-len(matrix) // most))
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(matrix, starts, axis=0), starts, axis=1))


def _cell(value: Any) -> str:
    """A count as it is, a share as `.25`; 1.00 keeps its first digit."""
    return str(value) if isinstance(value, np.integer) else f"{value:.2f}"[0 if value >= 0.995 else 1 :]


def plot_curves(path: Path, histories: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Loss and accuracy on train and val by epoch (or L2 penalty), a row of plots per model. `histories`: rows of history.csv."""
    with _figure(path, 9, 3.2 * len(histories), len(histories), 2) as (_, axes):
        for (name, rows), pair in zip(histories.items(), axes, strict=True):
            for axis, quantity in zip(pair, ("loss", "accuracy"), strict=True):
                _plot_quantity(axis, name, rows, quantity)


def _plot_quantity(axis: "Axes", name: str, rows: Sequence[Mapping[str, str]], quantity: str) -> None:
    step = next(iter(rows[0]))
    for split, colour in (("train", _GREY), ("val", _BLUE)):
        points = [(float(row[step]), float(row[f"{split}_{quantity}"])) for row in rows if row[f"{split}_{quantity}"]]
        axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=split)
    axis.set_xticks([float(row[step]) for row in rows], [row.get("l2", row[step]) for row in rows])
    axis.set(title=_plain(f"{name}: {quantity}"), xlabel="L2 penalty" if "l2" in rows[0] else step)
    axis.grid(alpha=0.3)
    axis.legend()


def plot_rates(path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: float, title: str) -> None:
    """The loss by learning rate, and the suggested rate."""
    with _figure(path, 6.5, 4.2) as (_, axes):
        axis = axes[0, 0]
        axis.plot(rates, losses, color=_BLUE)
        axis.axvline(suggestion, color=_GREY, linestyle="--", label=f"a tenth of the rate at which the loss doubles: {suggestion:g}")
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=_plain(title))
        axis.legend()
        axis.grid(alpha=0.3)


def plot_reliability(path: Path, rows: Sequence[PlotRow], rows_before: Sequence[PlotRow], title: str) -> None:
    """Accuracy by confidence with intervals, also before temperature scaling, and below the number of pictures per bin.

    `rows`, `rows_before`: from `calibration.reliability`.
    """
    with _figure(path, 6, 5.4, 2, 1, heights=(4, 1)) as (_, axes):
        upper, lower = axes[:, 0]
        upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfect calibration")
        upper.plot(*_columns(rows_before, "probability", "accuracy"), "o:", color=_GREY, label="before temperature scaling")
        confidences, accuracies, low, high = _columns(rows, "probability", "accuracy", "accuracy_low", "accuracy_high")
        lengths = [np.subtract(accuracies, low).clip(0), np.subtract(high, accuracies).clip(0)]
        upper.errorbar(confidences, accuracies, lengths, fmt="o-", color=_BLUE, capsize=2, label="stored model")
        lower.bar(*_columns(rows, "from", "pictures"), 1 / BINS, align="edge", color=_BLUE, edgecolor="white")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=_plain(title))
        lower.set(xlim=(0, 1), xlabel="confidence (probability of the predicted class)", ylabel="pictures")
        upper.legend(loc="upper left")
        upper.grid(alpha=0.3)


def plot_coverage(path: Path, rows: Sequence[PlotRow], title: str) -> None:
    """Accuracy, with its interval, by the share of pictures that the model answers. `rows`: from `calibration.coverage`."""
    with _figure(path, 6, 4) as (_, axes):
        axis = axes[0, 0]
        answered, accuracies, low, high = _columns(rows, "coverage", "accuracy", "accuracy_low", "accuracy_high")
        axis.fill_between(answered, low, high, color=_BLUE, alpha=0.2, linewidth=0, label="interval")
        axis.plot(answered, accuracies, color=_BLUE, label="accuracy")
        axis.set(xlim=(0, 1), ylim=(min([0.9, *low]), 1.005), xlabel="share of pictures answered, most confident first")
        axis.set(ylabel="accuracy of the answers", title=_plain(title))
        axis.legend(loc="lower left")
        axis.grid(alpha=0.3)


def _columns(rows: Sequence[PlotRow], *names: str) -> list[list[float]]:
    return [[row[name] for row in rows] for name in names]


def shorten(name: str) -> str:
    """A class name of at most 18 letters; a longer one ends in an ellipsis."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
