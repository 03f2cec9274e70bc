"""Plots of results as PNG files: the same bytes for the same figures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]
PlotRow = Mapping[str, float]
_DPI = 120
_LARGEST = 22.0  # inches, at which a hundred names can be read
_READABLE_CELLS = 30  # beyond that many classes, numbers in the cells cannot be read
_FAINTEST = 0.1  # of the blues, where the shares begin: one mistake in hundreds is no white cell
_DARK = 0.65  # of the blues, from which on letters in a cell are light
_SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)  # told beside the colours
_LETTER = 0.62  # how wide a letter is, of its size
_BLUE, _GREY = "#1f5fa8", "#8a8a8a"


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
    """Rows are the truth, columns the answer. Counts (int) are coloured by the root of their share of the row, shares (float) by their own.

    White are the cells without a picture, and those alone.
    """
    from matplotlib.colors import PowerNorm

    count, names = len(class_names), [_short(name) for name in class_names]
    side = min(_LARGEST, max(4.5, 2.6 + 0.42 * count))
    room = 72 * 0.75 * (side - 2) / count  # points of a cell
    letters = min(10.0, room)
    turned = max(map(len, names)) * _LETTER * letters > room
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with _figure(path, side, side - 0.4) as (figure, axes):
        axis = axes[0, 0]
        image = axis.imshow(np.ma.masked_equal(shares, 0), cmap=_blues(), norm=PowerNorm(0.5, vmin=0, vmax=1))
        axis.set_xticks(range(count), names, rotation=90 if turned else 0, fontsize=letters)
        axis.set_yticks(range(count), names, fontsize=letters)
        axis.set(xlabel="predicted", ylabel="true", title=_plain(title))
        figure.colorbar(image, ax=axis, fraction=0.046, label="share of the true class", ticks=_SHARES, format="{x:g}")
        if count <= _READABLE_CELLS:
            for row, column in np.argwhere(matrix):
                colour = "white" if image.norm(shares[row, column]) > _DARK else "black"
                axis.text(column, row, _cell(matrix[row, column]), ha="center", va="center", color=colour, fontsize=letters)


def _blues() -> "Colormap":
    """Blues that begin where they can be told from white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["Blues"](np.linspace(_FAINTEST, 1, 256)))


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, np.integer) else f"{value:.2f}"[0 if value >= 0.995 else 1 :]


def plot_curves(path: Path, histories: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Loss and accuracy on train and val over the steps of each model's history, a row a model."""
    with _figure(path, 9, 3.2 * len(histories), len(histories), 2) as (_, axes):
        for (name, rows), pair in zip(histories.items(), axes, strict=True):
            for axis, quantity in zip(pair, ("loss", "accuracy"), strict=True):
                _plot_quantity(axis, name, rows, quantity)


def plot_rates(path: Path, rates: Sequence[float], losses: Sequence[float], suggestion: float, title: str) -> None:
    """The loss over the learning rate, and the rate to take."""
    with _figure(path, 6.5, 4.2) as (_, axes):
        axis = axes[0, 0]
        axis.plot(rates, losses, color=_BLUE)
        axis.axvline(suggestion, color=_GREY, linestyle="--", label=f"a tenth of where it doubles: {suggestion:g}")
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=_plain(title))
        axis.legend()
        axis.grid(alpha=0.3)


def _plot_quantity(axis: "Axes", name: str, rows: Sequence[Mapping[str, str]], quantity: str) -> None:
    step = next(iter(rows[0]))
    for split, colour in (("train", _GREY), ("val", _BLUE)):
        points = [(float(row[step]), float(row[f"{split}_{quantity}"])) for row in rows if row[f"{split}_{quantity}"]]
        axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=split)
    ticks = [float(row[step]) for row in rows]
    axis.set_xticks(ticks, [row.get("l2", row[step]) for row in rows])
    axis.set(title=_plain(f"{name}: {quantity}"), xlabel="L2 penalty" if "l2" in rows[0] else step)
    axis.grid(alpha=0.3)
    axis.legend()


def plot_reliability(path: Path, rows: Sequence[PlotRow], rows_before: Sequence[PlotRow], title: str) -> None:
    """How right the answers are of which the model is so sure, with intervals, and without its temperature; below, how many they are."""
    with _figure(path, 6, 5.4, 2, 1, heights=(4, 1)) as (_, axes):
        upper, lower = axes[:, 0]
        upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="as sure as right")
        upper.plot(*_columns(rows_before, "probability", "accuracy"), "o:", color=_GREY, label="before temperature scaling")
        _with_intervals(upper, rows, "probability", "as stored")
        lower.bar([row["from"] for row in rows], [row["pictures"] for row in rows], 1 / 15, align="edge", color=_BLUE, edgecolor="white")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right", title=_plain(title))
        lower.set(xlim=(0, 1), xlabel="probability of the answer", ylabel="pictures")
        upper.legend(loc="upper left")
        upper.grid(alpha=0.3)


def plot_coverage(path: Path, rows: Sequence[PlotRow], title: str) -> None:
    """How right the model would be if it answered only the share of pictures of which it is surest."""
    with _figure(path, 6, 4) as (_, axes):
        axis = axes[0, 0]
        x, low, high = ([row[name] for row in rows] for name in ("coverage", "accuracy_low", "accuracy_high"))
        axis.fill_between(x, low, high, color=_BLUE, alpha=0.2, linewidth=0, label="interval")
        axis.plot(*_columns(rows, "coverage", "accuracy"), color=_BLUE, label="accuracy")
        axis.set(xlim=(0, 1), ylim=(min([0.9, *low]), 1.005), xlabel="share of the pictures that is answered, the surest first")
        axis.set(ylabel="accuracy of the answers", title=_plain(title))
        axis.legend(loc="lower left")
        axis.grid(alpha=0.3)


def _with_intervals(axis: "Axes", rows: Sequence[PlotRow], x: str, label: str) -> None:
    points, values = _columns(rows, x, "accuracy")
    low, high = _columns(rows, "accuracy_low", "accuracy_high")
    lengths = [np.subtract(values, low).clip(0), np.subtract(high, values).clip(0)]
    axis.errorbar(points, values, lengths, fmt="o-", color=_BLUE, capsize=2, label=label)


def _columns(rows: Sequence[PlotRow], *names: str) -> list[list[float]]:
    return [[row[name] for row in rows] for name in names]


def _short(name: str) -> str:
    return _plain(name if len(name) <= 18 else f"{name[:17]}…")


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
