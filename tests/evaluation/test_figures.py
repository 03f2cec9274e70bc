"""Pictures of results: the same bytes for the same figures, whatever the number of classes and their names."""

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

DRAWINGS = [
    pytest.param(lambda path: plot_confusion_matrix(path, np.array([[3, 1], [0, 2]]), ["ants", "bees"], "title"), id="matrix"),
    pytest.param(lambda path: plot_curves(path, {"finetuned": HISTORY}), id="curves"),
    pytest.param(lambda path: plot_confusion_matrix(path, np.array([[0.75, 0.25], [0.0, 1.0]]), ["ants", "bees"], "title"), id="shares"),
    pytest.param(lambda path: plot_reliability(path, BINS, BINS[1:], "title"), id="reliability"),
    pytest.param(lambda path: plot_coverage(path, COVERED, "title"), id="coverage"),
    pytest.param(lambda path: plot_rates(path, RATES, [0.7, 0.5, 0.4, 0.9], 1e-3, "title"), id="rates"),
]


@pytest.fixture
def figures_drawn(monkeypatch):
    """The figures that were saved, to be measured."""
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: (drawn.append(figure), save(figure, *args, **options)))
    return drawn


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_drawn_twice_has_equal_bytes(draw, tmp_path):
    draw(tmp_path / "first.png")
    draw(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_carries_no_date_and_no_version(draw, tmp_path):
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert set(image.info) <= {"dpi"}


@pytest.mark.parametrize("num_classes", [2, 30, 31, 100])
def test_a_matrix_is_drawn_for_few_and_for_many_classes(num_classes, tmp_path):
    matrix = np.random.default_rng(0).integers(0, 9, (num_classes, num_classes))
    plot_confusion_matrix(tmp_path / "matrix.png", matrix, [f"class {index}" for index in range(num_classes)], "title")
    with Image.open(tmp_path / "matrix.png") as image:
        assert min(image.size) > 400


def test_a_matrix_with_a_class_without_pictures_is_drawn(tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", np.array([[3, 1], [0, 0]]), ["ants", "bees"], "title")
    assert (tmp_path / "matrix.png").stat().st_size > 0


def test_one_mistake_in_two_hundred_of_a_row_is_not_white(tmp_path):
    right = 199 * np.eye(100, dtype=int)
    for name, mistakes in (("none", 0), ("one", 1)):
        matrix = right.copy()
        matrix[20, 70] = mistakes
        plot_confusion_matrix(tmp_path / f"{name}.png", matrix, [f"class {index}" for index in range(100)], "title")
    with Image.open(tmp_path / "none.png") as without, Image.open(tmp_path / "one.png") as mistaken:
        differences = ImageChops.difference(without.convert("RGB"), mistaken.convert("RGB"))
    cell = np.asarray(differences.crop(differences.getbbox()))
    assert cell.shape[0] > 10
    assert np.median(cell.max(axis=2)) > 25  # of 255


def test_the_colours_say_what_share_they_stand_for(figures_drawn, tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", np.array([[0.75, 0.25], [0.0, 1.0]]), ["ants", "bees"], "title")
    axis, bar = figures_drawn[0].axes
    marks = dict(zip([label.get_text() for label in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert marks == {f"{share:g}": share for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)}
    place = bar.transAxes.inverted().transform(bar.transData.transform((0, 0.25)))[1]
    assert place == pytest.approx(0.5, abs=0.01)  # the root of a quarter
    assert axis.images[0].norm(0.25) == pytest.approx(0.5)


@pytest.mark.parametrize("num_classes", [2, 6, 10, 30, 100])
@pytest.mark.parametrize("name", ["{}", "class {}", "{}_a_rather_long_name_of_a_class"])
def test_the_names_beside_a_matrix_do_not_overlap(name, num_classes, figures_drawn, tmp_path):
    names = [name.format(index) for index in range(num_classes)]
    plot_confusion_matrix(tmp_path / "matrix.png", np.eye(num_classes, dtype=int), names, "title")
    for axis in figures_drawn[0].axes[0].xaxis, figures_drawn[0].axes[0].yaxis:
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(boxes) == num_classes
        assert [pair for pair in pairwise(boxes) if pair[0].overlaps(pair[1])] == []


def test_other_figures_give_another_picture(tmp_path):
    plot_confusion_matrix(tmp_path / "first.png", np.array([[3, 1], [0, 2]]), ["ants", "bees"], "title")
    plot_confusion_matrix(tmp_path / "second.png", np.array([[3, 1], [1, 2]]), ["ants", "bees"], "title")
    assert (tmp_path / "first.png").read_bytes() != (tmp_path / "second.png").read_bytes()


def test_dollar_signs_in_class_names_are_no_formula_in_the_matrix(tmp_path):
    plot_confusion_matrix(tmp_path / "matrix.png", np.eye(2, dtype=int), [r"$\frac$", "US$ 5 or $_"], "title")
    assert (tmp_path / "matrix.png").is_file()


def test_curves_have_a_row_for_each_model(tmp_path):
    plot_curves(tmp_path / "curves.png", {"baseline": HISTORY, "finetuned": HISTORY})
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (9 * 120, round(2 * 3.2 * 120))


def test_the_rate_to_take_is_a_line_in_the_curve_of_rates(tmp_path):
    for rate in (1e-3, 1e-2):
        plot_rates(tmp_path / f"{rate}.png", RATES, [0.7, 0.5, 0.4, 0.9], rate, "$title")
    few, many = (np.asarray(Image.open(tmp_path / f"{rate}.png").convert("L")) for rate in (1e-3, 1e-2))
    assert few.shape == (504, 780)
    assert not np.array_equal(few, many)
