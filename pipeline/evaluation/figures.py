"""Pictures of results: matrices, curves, mistakes. PNG files that are the same for the same figures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]

_DPI = 120
_READABLE_CELLS = 30  # beyond that many classes, numbers in the cells cannot be read


@contextmanager
def _figure(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple["Figure", Any]]:
    """A figure of that size in inches and its axes, saved as PNG without a date or a version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure, figure.subplots(rows, columns, squeeze=False)
    figure.savefig(path, metadata={"Software": None})


def plot_confusion_matrix(path: Path, matrix: Array, class_names: Sequence[str], title: str) -> None:
    """Rows are the truth, columns the answer; colour is the share of the row, the number the count."""
    side = min(14.0, max(4.5, 2.6 + 0.42 * len(class_names)))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with _figure(path, side, side - 0.4) as (figure, axes):
        axis = axes[0, 0]
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(class_names))
        axis.set_xticks(ticks, [_short(name) for name in class_names], rotation=90 if len(class_names) > 6 else 0)
        axis.set_yticks(ticks, [_short(name) for name in class_names])
        axis.set(xlabel="predicted", ylabel="true", title=_plain(title))
        figure.colorbar(image, ax=axis, fraction=0.046, label="share of the true class")
        if len(class_names) <= _READABLE_CELLS:
            for row, column in np.ndindex(*matrix.shape):
                if matrix[row, column]:
                    colour = "white" if shares[row, column] > 0.55 else "black"
                    axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)


def plot_curves(path: Path, histories: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Loss and accuracy on train and val over the steps of each model's history, a row a model."""
    with _figure(path, 9, 3.2 * len(histories), len(histories), 2) as (_, axes):
        for (name, rows), pair in zip(histories.items(), axes, strict=True):
            for axis, quantity in zip(pair, ("loss", "accuracy"), strict=True):
                _plot_quantity(axis, name, rows, quantity)


def _plot_quantity(axis: "Axes", name: str, rows: Sequence[Mapping[str, str]], quantity: str) -> None:
    step = next(iter(rows[0]))
    for split, colour in (("train", "#8a8a8a"), ("val", "#1f5fa8")):
        points = [(float(row[step]), float(row[f"{split}_{quantity}"])) for row in rows if row[f"{split}_{quantity}"]]
        axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=split)
    ticks = [float(row[step]) for row in rows]
    axis.set_xticks(ticks, [row.get("l2", row[step]) for row in rows])
    axis.set(title=_plain(f"{name}: {quantity}"), xlabel="L2 penalty" if "l2" in rows[0] else step)
    axis.grid(alpha=0.3)
    axis.legend()


def plot_pictures(path: Path, pictures: Sequence[Image.Image], captions: Sequence[str], title: str) -> None:
    """Pictures in rows of four, a caption over each; a plain sentence where there are none."""
    rows, columns = max(1, -(-len(pictures) // 4)), 4
    with _figure(path, 8.8, 2.7 * rows + 0.4, rows, columns) as (figure, axes):
        figure.suptitle(_plain(title))
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
            axis.imshow(picture, interpolation="nearest" if max(picture.size) < 64 else "antialiased")
            axis.set_title(_plain(caption), fontsize=9)
        if not pictures:
            figure.text(0.5, 0.4, "None.", ha="center")


def _short(name: str) -> str:
    return _plain(name if len(name) <= 18 else f"{name[:17]}…")


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
