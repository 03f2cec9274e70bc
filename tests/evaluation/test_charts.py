"""Charts: figures lie where a ruler would put them. The frame spans x 46 to 348 and y 190 (below) to 12."""

import pytest

from pipeline.report.charts import coverage, curves, nice_ticks, percent_along, reliability, whisker_scale
from tests.reports import COVERAGE, HISTORY, RELIABILITY


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


def test_a_cell_that_is_empty_makes_no_point():
    loss, _ = curves(HISTORY)
    assert [(line.name, len(line.points)) for line in loss.lines] == [("train", 1), ("val", 2)]


def test_a_loss_lies_above_nought():
    loss, _ = curves(HISTORY)
    # The axis ends at 1.05 · 0.9 = 0.945, so 0.9 lies 20/21 of 178 above 190.
    assert loss.lines[1].points[0] == (56, 20.5)


def test_the_axis_of_accuracy_begins_below_the_least():
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


def test_a_loss_of_nought_can_be_drawn():
    assert curves([{**HISTORY[1], "train_loss": "0", "val_loss": "0"}])[0].lines[1].points == [(56, 190)]


def test_a_bin_lies_at_its_probability_and_its_accuracy():
    drawing = reliability([RELIABILITY], [{**RELIABILITY, "probability": "0.5", "accuracy": "0.25"}])
    before, right = drawing.lines
    assert right.points == [(181.9, 101)]  # 46 + 0.45 · 302, 190 - 0.5 · 178
    assert (before.style, before.points) == ("before", [(197, 145.5)])
    assert drawing.whiskers == [(181.9, 163.3, 38.7)]


def test_the_bars_of_a_bin_are_as_high_as_it_is_full():
    half = {**RELIABILITY, "from": "0.5", "to": "0.6", "pictures": "2"}
    assert [bar[3] for bar in reliability([RELIABILITY, half], []).bars] == [36, 18]


def test_the_axis_of_coverage_does_not_follow_the_first_few_pictures():
    drawing = coverage(COVERAGE)
    assert drawing.y_ticks[0] == (190, "0.9")
    assert drawing.band == [(49, 29.8), (348, 29.8), (348, 83.2), (49, 190)]


def test_intervals_share_an_axis_on_which_all_are_whole():
    assert (whisker_scale([0.883, 0.952]), whisker_scale([0.99]), whisker_scale([None, 0.01])) == (0.85, 0.9, 0)


def test_a_share_lies_along_its_axis():
    assert (percent_along(0.85, 0.85), percent_along(0.925, 0.85), percent_along(1, 0.85)) == (0, 50, 100)
