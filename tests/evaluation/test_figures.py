"""Plots: equal bytes for equal figures, readable for any number of classes and any names."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageChops

from pipeline.evaluation.figures import plot_confusion_matrix, plot_coverage, plot_curves, plot_rates, plot_reliability

HISTORY = [
    {"epoch": "0", "train_loss": "", "train_accuracy": "", "val_loss": "0.9", "val_accuracy": "0.5"},
    {"epoch": "1", "train_loss": "0.8", "train_accuracy": "0.6", "val_loss": "0.7", "val_accuracy": "0.75"},
]
BINS = [
    {"from": 0.4, "to": 0.467, "pictures": 3, "probability": 0.45, "accuracy": 0.33, "accuracy_low": 0.06, "accuracy_high": 0.79},
    {"from": 0.933, "to": 1.0, "pictures": 9, "probability": 0.98, "accuracy": 1.0, "accuracy_low": 0.7, "accuracy_high": 1.0},
]
COVERED = [
    {"coverage": share, "threshold": 0.9, "accuracy": 1.0 - share / 5, "accuracy_low": 0.9 - share / 4, "accuracy_high": 1.0}
    for share in (0.25, 0.5, 0.75, 1.0)
]
RATES = [1e-4, 1e-3, 1e-2, 1e-1]

TITLE = r"US$ 5 or $\frac$"  # no formula
DRAWINGS = [
    pytest.param(lambda path: plot_confusion_matrix(path, np.array([[3, 1], [0, 0]]), ["ants", r"$\frac$"], TITLE), id="counts"),
    pytest.param(lambda path: plot_confusion_matrix(path, np.array([[0.75, 0.25], [0.0, 1.0]]), ["ants", "bees"], TITLE), id="shares"),
    pytest.param(lambda path: plot_curves(path, {"baseline": HISTORY, TITLE: HISTORY}), id="curves"),
    pytest.param(lambda path: plot_reliability(path, BINS, BINS[1:], TITLE), id="reliability"),
    pytest.param(lambda path: plot_coverage(path, COVERED, TITLE), id="coverage"),
    pytest.param(lambda path: plot_rates(path, RATES, [0.7, 0.5, 0.4, 0.9], 1e-3, TITLE), id="rates"),
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved. Nothing is drawn or written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    return figures


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_drawn_twice_has_equal_bytes_without_date_and_version(draw, tmp_path):
    draw(tmp_path / "first.png")
    draw(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert set(image.info) <= {"dpi"}


# Confusion matrices


@pytest.mark.parametrize(("num_classes", "numbers"), [(30, 30), (31, 0)])
def test_only_few_classes_have_numbers_in_their_cells(num_classes, numbers, drawn, tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", 3 * np.eye(num_classes, dtype=int), [f"c{index}" for index in range(num_classes)], "")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["3"] * numbers


def test_numbers_are_in_the_row_of_the_true_class_and_light_in_dark_cells(drawn, tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", np.array([[0.0, 1.0], [0.25, 0.75]]), ["ants", "bees"], "")
    axis = drawn[0].axes[0]
    texts = [(text.get_text(), text.get_position(), text.get_color()) for text in axis.texts]
    assert texts == [("1.00", (1, 0), "white"), (".25", (0, 1), "black"), (".75", (1, 1), "white")]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")


def test_one_mistake_in_two_hundred_of_a_row_is_not_white(tmp_path):
    correct = 199 * np.eye(12, dtype=int)
    for name, mistakes in (("none", 0), ("one", 1)):
        matrix = correct.copy()
        matrix[7, 4] = mistakes
        plot_confusion_matrix(tmp_path / f"{name}.png", matrix, [f"class {index}" for index in range(12)], "title")
    with Image.open(tmp_path / "none.png") as without, Image.open(tmp_path / "one.png") as mistaken:
        differences = ImageChops.difference(without.convert("RGB"), mistaken.convert("RGB"))
    cell = np.asarray(differences.crop(differences.getbbox()))
    assert cell.shape[0] > 10
    assert np.median(cell.max(axis=2)) > 25  # of 255


def test_the_colour_bar_shows_shares_on_a_root_scale(drawn, tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", np.array([[3, 1], [0, 4]]), ["ants", "bees"], "title")
    drawn[0].canvas.draw()
    axis, bar = drawn[0].axes
    marks = dict(zip([label.get_text() for label in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert marks == {f"{share:g}": share for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)}
    place = bar.transAxes.inverted().transform(bar.transData.transform((0, 0.25)))[1]
    assert place == pytest.approx(0.5, abs=0.01)  # the root of a quarter
    assert axis.images[0].norm(0.25) == pytest.approx(0.5)
    np.testing.assert_array_equal(axis.images[0].get_array().filled(0), [[0.75, 0.25], [0, 1]])


LONG = "{}_a_rather_long_name_of_a_class"


@pytest.mark.parametrize(
    ("num_classes", "name"), [(2, LONG), (6, "class {}"), (10, "class {}"), (10, LONG), (30, "{}"), (30, LONG), (100, LONG)]
)
def test_the_names_beside_a_matrix_do_not_overlap(name, num_classes, drawn, tmp_path):
    names = [name.format(index) for index in range(num_classes)]
    plot_confusion_matrix(tmp_path / "matrix.png", np.eye(num_classes, dtype=int), names, "title")
    drawn[0].canvas.draw()
    for axis in drawn[0].axes[0].xaxis, drawn[0].axes[0].yaxis:
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(boxes) == num_classes
        assert [pair for pair in pairwise(boxes) if pair[0].overlaps(pair[1])] == []


def test_of_many_classes_some_are_named_and_the_picture_is_bounded(tmp_path, drawn):
    for num_classes, names, cells in ((101, 51, 101), (1001, 91, 501)):
        plot_confusion_matrix(tmp_path / "matrix.png", np.eye(num_classes, dtype=int), [f"c{index}" for index in range(num_classes)], "")
        axis = drawn[-1].axes[0]
        assert len(axis.get_xticklabels()) == len(axis.get_yticklabels()) == names
        assert axis.images[0].get_array().shape == (cells, cells)
        assert drawn[-1].get_size_inches().tolist() == [22.0, 21.6]


# Curves


def lines_of(axis):
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in axis.lines}


def test_each_model_has_its_curves_of_loss_and_accuracy(drawn, tmp_path):
    plot_curves(tmp_path / "curves.png", {"baseline": HISTORY, "finetuned": HISTORY})
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["baseline: loss", "baseline: accuracy", "finetuned: loss", "finetuned: accuracy"]
    assert lines_of(axes[2]) == {"train": [[1, 0.8]], "val": [[0, 0.9], [1, 0.7]]}


def test_reliability_is_accuracy_by_confidence_with_intervals_over_a_histogram(drawn, tmp_path):
    plot_reliability(tmp_path / "reliability.png", BINS, BINS[1:], "title")
    upper, lower = drawn[0].axes
    (errors,) = upper.containers
    assert np.transpose(errors[0].get_data()).tolist() == [[0.45, 0.33], [0.98, 1.0]]
    ends = [segment[:, 1].tolist() for segment in errors[2][0].get_segments()]
    assert ends == [pytest.approx([0.06, 0.79]), pytest.approx([0.7, 1.0])]
    assert lines_of(upper)["before temperature scaling"] == [[0.98, 1.0]]
    assert [(bar.get_x(), bar.get_height()) for bar in lower.patches] == [(0.4, 3), (0.933, 9)]


def test_coverage_is_accuracy_with_a_band(drawn, tmp_path):
    plot_coverage(tmp_path / "coverage.png", COVERED, "title")
    (axis,) = drawn[0].axes
    assert lines_of(axis)["accuracy"] == [[row["coverage"], row["accuracy"]] for row in COVERED]
    (band,) = axis.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.65, 1.0))


def test_the_suggested_rate_is_a_line_in_the_curve_of_rates(drawn, tmp_path):
    plot_rates(tmp_path / "rates.png", RATES, [0.7, 0.5, 0.4, 0.9], 1e-3, "title")
    (axis,) = drawn[0].axes
    curve, line = axis.lines
    assert np.transpose(curve.get_data()).tolist() == [list(pair) for pair in zip(RATES, [0.7, 0.5, 0.4, 0.9], strict=True)]
    assert (set(line.get_xdata()), axis.get_xscale()) == ({1e-3}, "log")
