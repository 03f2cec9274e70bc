"""The comparison: figures worked by hand, and sentences that claim no more than they show."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.evaluation.comparison import compare, verdict


def make_rows(answers):
    """Predictions of pictures of ants: + is right, - is wrong."""
    return [
        {"image_id": f"{number}.png", "label": "ants", "predicted": "ants" if sign == "+" else "bees"}
        for number, sign in enumerate(answers)
    ]


def test_a_comparison_is_the_one_worked_by_hand():
    found = compare(make_rows("+-----++++"), make_rows("-+++++++++"), 0.95, 0)
    assert found["top1_accuracy_difference"] == 0.4
    assert (found["only_first_right"], found["only_second_right"]) == (1, 5)
    assert found["mcnemar_p"] == 0.21875  # 2 · (1 + 6) / 64


def test_the_interval_holds_the_difference():
    found = compare(make_rows("+-----++++"), make_rows("-+++++++++"), 0.95, 0)
    assert -1 < found["top1_accuracy_difference_low"] < 0.4 < found["top1_accuracy_difference_high"] <= 1


def test_equal_answers_do_not_differ():
    # Wilson's bound on 0 of 3 with z = 1.959964: z² / (3 + z²).
    assert compare(make_rows("+-+"), make_rows("+-+"), 0.95, 0) == {
        "top1_accuracy_difference": 0.0,
        "top1_accuracy_difference_low": -0.561497,
        "top1_accuracy_difference_high": 0.561497,
        "only_first_right": 0,
        "only_second_right": 0,
        "mcnemar_p": 1.0,
        "is_shown": False,
    }


@pytest.mark.parametrize(
    ("only_first", "only_second", "is_shown"),
    [(0, 4, False), (0, 5, False), (1, 7, False), (0, 6, True), (6, 0, True), (1, 15, True), (10, 12, False)],
)
def test_a_difference_is_shown_where_the_interval_and_mcnemar_agree(only_first, only_second, is_shown):
    # 2 · 0.5⁴ = 0.125, 2 · 0.5⁵ = 0.0625, 2 · (1 + 8) / 2⁸ = 0.0703, 2 · 0.5⁶ = 0.03125
    both = "+" * 150
    first, second = ("+" * only_first + "-" * only_second + both, "-" * only_first + "+" * only_second + both)
    assert compare(make_rows(first), make_rows(second), 0.95, 0)["is_shown"] is is_shown


def test_comparing_twice_gives_equal_figures():
    first, second = make_rows("+-----++++"), make_rows("-+++++++++")
    assert compare(first, second, 0.95, 0) == compare(first, second, 0.95, 0)


def test_a_tiny_p_is_not_written_as_zero():
    # 2 / 2⁴⁰: no test is ever certain.
    assert compare(make_rows("-" * 40), make_rows("+" * 40), 0.95, 0)["mcnemar_p"] == pytest.approx(2**-39, rel=0.01)


@pytest.mark.parametrize("second", [make_rows("+-")[:1], make_rows("+-")[::-1], make_rows("+-+")])
def test_different_pictures_are_refused(second):
    with pytest.raises(PipelineError) as error:
        compare(make_rows("+-"), second, 0.95, 0)
    assert str(error.value) == "results: the models were tested on different pictures; run `dvc repro`"


@pytest.mark.parametrize(
    ("difference", "low", "high", "is_shown", "sentence"),
    [
        (0.0709, 0.0373, 0.1046, True, "finetuned is better by 7.1 points, interval +3.7 to +10.5: shown by these 268 pictures."),
        (0.0709, -0.0123, 0.1046, False, "finetuned is better by 7.1 points, interval -1.2 to +10.5: not shown by these 268 pictures."),
        (0.0709, 0.0, 0.1046, False, "finetuned is better by 7.1 points, interval +0.0 to +10.5: not shown by these 268 pictures."),
        (-0.05, -0.08, -0.02, True, "finetuned is worse by 5.0 points, interval -8.0 to -2.0: shown by these 268 pictures."),
        (-0.05, -0.08, 0.01, False, "finetuned is worse by 5.0 points, interval -8.0 to +1.0: not shown by these 268 pictures."),
        (0.0, -0.02, 0.02, False, "finetuned and baseline are right equally often on these 268 pictures (interval -2.0 to +2.0 points)."),
    ],
)
def test_the_verdict_is_a_sentence(difference, low, high, is_shown, sentence):
    facts = dict(zip([f"top1_accuracy_difference{end}" for end in ("", "_low", "_high")], (difference, low, high), strict=True))
    assert verdict("finetuned", {**facts, "is_shown": is_shown}, 268) == sentence
