"""Charts have the coordinates worked by hand. The frame spans x 46 to 348 and y 190 (below) to 12."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.report.charts import (
    Confusion,
    Number,
    Shade,
    coverage,
    curves,
    draw_pixels,
    lay_out,
    most_confused,
    nice_ticks,
    percent_along,
    reliability,
    whisker_scale,
)
from tests.reports import COVERAGE, HISTORY, RELIABILITY

COUNTS = np.array([[3, 1], [0, 2]])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.9, 1, [0.9, 0.92, 0.94, 0.96, 0.98, 1]),
        (0, 0.26, [0, 0.1, 0.2]),
        (0, 1050, [0, 500, 1000]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == ticks


def test_an_empty_cell_of_the_history_adds_no_point():
    loss, _ = curves(HISTORY)
    assert [(line.name, len(line.points)) for line in loss.lines] == [("train", 1), ("val", 2)]


def test_the_axis_of_the_loss_begins_at_0():
    loss, _ = curves(HISTORY)
    # The axis ends at 1.05 · 0.9 = 0.945, so 0.9 is 20/21 of 178 above 190.
    assert loss.lines[1].points[0] == (56, 20.5)


def test_the_axis_of_accuracy_begins_below_the_lowest_value():
    _, accuracy = curves(HISTORY)
    assert accuracy.y_ticks[0] == (141.5, "0.6")  # 0.15 of 0.55 above an axis that begins at 0.45


def test_the_steps_of_the_baseline_are_its_penalties():
    rows = [{"step": str(number), "l2": l2, **{f"{split}_{kind}": "0.5" for split in ("train", "val") for kind in ("loss", "accuracy")}}
            for number, l2 in enumerate(("0.001", "0.1"))]  # fmt: skip
    loss, _ = curves(rows)
    assert (loss.x_label, loss.x_ticks) == ("L2 penalty", [(56, "0.001"), (338, "0.1")])


def test_many_epochs_have_few_labels_and_no_markers():
    rows = [{**HISTORY[1], "epoch": str(number)} for number in range(100)]
    loss, _ = curves(rows)
    assert ([text for _, text in loss.x_ticks], loss.lines[1].marked) == (["0", "13", "26", "39", "52", "65", "78", "91"], False)


def test_a_loss_of_0_can_be_drawn():
    assert curves([{**HISTORY[1], "train_loss": "0", "val_loss": "0"}])[0].lines[1].points == [(56, 190)]


def test_a_bin_is_drawn_at_its_confidence_and_accuracy():
    drawing = reliability([RELIABILITY], [{**RELIABILITY, "probability": "0.5", "accuracy": "0.25"}])
    before, stored = drawing.lines
    assert stored.points == [(181.9, 101)]  # 46 + 0.45 · 302, 190 - 0.5 · 178
    assert (before.style, before.points) == ("before", [(197, 145.5)])
    assert drawing.whiskers == [(181.9, 163.3, 38.7)]


def test_the_height_of_a_bar_follows_the_number_of_pictures():
    half = {**RELIABILITY, "from": "0.5", "to": "0.6", "pictures": "2"}
    assert [bar[3] for bar in reliability([RELIABILITY, half], []).bars] == [36, 18]


def test_the_axis_of_coverage_ignores_intervals_of_few_pictures():
    drawing = coverage(COVERAGE)
    assert drawing.y_ticks[0] == (190, "0.9")
    assert drawing.band == [(49, 29.8), (348, 29.8), (348, 83.2), (49, 190)]


def test_a_shared_axis_cuts_off_no_interval():
    assert (whisker_scale([0.883, 0.952]), whisker_scale([0.99]), whisker_scale([None, 0.01])) == (0.85, 0.9, 0)


def test_a_share_has_a_position_on_its_axis():
    assert (percent_along(0.85, 0.85), percent_along(0.925, 0.85), percent_along(1, 0.85)) == (0, 50, 100)


def test_cells_are_in_the_row_of_the_true_and_the_column_of_the_predicted_class():
    drawing = lay_out(["a", "b"], COUNTS)
    # The gutter is one letter of 6.6 pixels plus 12. The root of 1/4 is 0.5, that of 3/4 is nearest to 17/20.
    assert drawing.shades == [
        Shade("correct", 0.85, "M18 18h63v63h-63z"),
        Shade("correct", 1.0, "M82 82h63v63h-63z"),
        Shade("mistake", 0.5, "M82 18h63v63h-63z"),
    ]


def test_cells_without_pictures_are_not_drawn():
    assert lay_out(["a", "b"], COUNTS).numbers == [
        Number(49.5, 49.5, 3, True),
        Number(113.5, 49.5, 1, False),
        Number(113.5, 113.5, 2, True),
    ]


def test_a_hundred_classes_have_small_cells_without_numbers():
    names = [f"a long name {number}" for number in range(100)]
    drawing = lay_out(names, np.eye(100, dtype=int))
    assert (drawing.side, drawing.numbers, drawing.turned, drawing.size) == (15, [], True, int(14 * 6.6) + 12 + 1500 + 4)


def test_one_mistake_in_a_thousand_is_visible():
    assert [shade.opacity for shade in lay_out(["a", "b"], np.array([[999, 1], [0, 1]])).shades] == [1.0, 0.1]


def test_a_class_without_pictures_has_an_empty_row():
    assert len(lay_out(["a", "b"], np.array([[0, 0], [0, 2]])).numbers) == 1


def test_a_long_name_is_cut():
    assert lay_out(["a" * 30, "b"], COUNTS).names == ["a" * 17 + "…", "b"]


def test_the_most_frequent_mistakes_come_first():
    assert most_confused(["a", "b", "c"], np.array([[5, 1, 0], [1, 1, 0], [0, 3, 9]])) == [
        Confusion("c", "b", 3, 0.25),
        Confusion("b", "a", 1, 0.5),
        Confusion("a", "b", 1, 1 / 6),
    ]


def test_at_most_eight_pairs_are_listed():
    assert len(most_confused([str(number) for number in range(10)], np.ones((10, 10), int))) == 8


def test_no_mistakes_are_no_pairs():
    assert most_confused(["a", "b"], np.array([[3, 0], [0, 2]])) == []


def test_a_pixel_is_blue_if_one_of_its_cells_is_correct_and_orange_if_one_is_a_mistake():
    counts = np.diag(np.full(1001, 3))  # three cells a side per pixel
    counts[0, 1] = counts[5, 998] = 1
    with Image.open(io.BytesIO(base64.b64decode(draw_pixels(counts).partition(",")[2]))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (334, 334, 4)
    strong = pixels[..., 3] > 0
    assert np.flatnonzero(strong[1]).tolist() == [1, 332]
    assert [pixels[place][:3].argmax() for place in ((0, 0), (1, 332))] == [2, 0]
