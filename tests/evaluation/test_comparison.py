"""Comparisons worked by hand, and verdicts that claim no more than is significant."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.evaluation.comparison import compare_all, holm, verdict
from tests.reports import make_rows


def compare(first, second):
    return compare_all({"baseline": first, "finetuned": second}, 0.95, 0)["differences"]["finetuned"]


def test_a_comparison_is_the_one_worked_by_hand():
    found = compare(make_rows("+-----++++"), make_rows("-+++++++++"))
    assert found["top1_accuracy_difference"] == 0.4
    assert (found["only_first_right"], found["only_second_right"]) == (1, 5)
    assert found["mcnemar_p"] == 0.21875  # 2 · (1 + 6) / 64


def test_the_interval_contains_the_difference():
    found = compare(make_rows("+-----++++"), make_rows("-+++++++++"))
    assert -1 < found["top1_accuracy_difference_low"] < 0.4 < found["top1_accuracy_difference_high"] <= 1


def test_equal_answers_do_not_differ():
    # Wilson's bound on 0 of 3 with z = 1.959964: z² / (3 + z²).
    assert compare(make_rows("+-+"), make_rows("+-+")) == {
        "against": "baseline",
        "top1_accuracy_difference": 0.0,
        "top1_accuracy_difference_low": -0.561497,
        "top1_accuracy_difference_high": 0.561497,
        "only_first_right": 0,
        "only_second_right": 0,
        "mcnemar_p": 1.0,
        "mcnemar_p_adjusted": 1.0,
        "is_shown": False,
    }


@pytest.mark.parametrize(
    ("only_first", "only_second", "is_shown"),
    [(0, 4, False), (0, 5, False), (1, 7, False), (0, 6, True), (6, 0, True), (1, 15, True), (10, 12, False)],
)
def test_a_difference_is_significant_if_the_interval_and_mcnemar_agree(only_first, only_second, is_shown):
    # 2 · 0.5⁴ = 0.125, 2 · 0.5⁵ = 0.0625, 2 · (1 + 8) / 2⁸ = 0.0703, 2 · 0.5⁶ = 0.03125
    both = "+" * 150
    first, second = ("+" * only_first + "-" * only_second + both, "-" * only_first + "+" * only_second + both)
    assert compare(make_rows(first), make_rows(second))["is_shown"] is is_shown


def test_comparing_twice_gives_equal_figures():
    first, second = make_rows("+-----++++"), make_rows("-+++++++++")
    assert compare(first, second) == compare(first, second)


def test_a_tiny_p_is_not_rounded_to_0():
    # 2 / 2⁴⁰
    assert compare(make_rows("-" * 40), make_rows("+" * 40))["mcnemar_p"] == pytest.approx(2**-39, rel=0.01)


@pytest.mark.parametrize("second", [make_rows("+-")[:1], make_rows("+-")[::-1], make_rows("+-+")])
def test_different_pictures_are_refused(second):
    with pytest.raises(PipelineError, match="different pictures"):
        compare(make_rows("+-"), second)


@pytest.mark.parametrize(
    ("difference", "low", "high", "is_shown", "facts"),
    [
        (0.0709, 0.0373, 0.1046, True, "finetuned better baseline 7.1 +3.7 +10.5 significant 268"),
        (0.0709, -0.0123, 0.1046, False, "finetuned better baseline 7.1 -1.2 +10.5 not significant 268"),
        (-0.05, -0.08, -0.02, True, "finetuned worse baseline 5.0 -8.0 -2.0 significant 268"),
        (0.0, -0.02, 0.02, False, "finetuned baseline equally 268 -2.0 +2.0"),
    ],
)
def test_the_verdict_is_a_sentence(difference, low, high, is_shown, facts):
    ends = {f"top1_accuracy_difference{end}": value for end, value in (("", difference), ("_low", low), ("_high", high))}
    sentence = verdict("finetuned", {"against": "baseline", **ends, "is_shown": is_shown}, 268)
    words = sentence.translate(str.maketrans("", "", "():")).rstrip(".").split()
    assert [word for word in words if word in {*facts.split(), "not", "significant", "better", "worse"}] == facts.split()


def test_two_models_are_not_compared_with_the_best():
    assert "best" not in compare_all({"baseline": make_rows("+-"), "finetuned": make_rows("++")}, 0.95, 0)


def test_each_of_three_models_is_compared_with_the_baseline_and_with_the_most_accurate():
    answers = {"baseline": "+" * 10 + "-" * 10, "best": "+" * 20, "worst": "-" * 20}
    found = compare_all({name: make_rows(each) for name, each in answers.items()}, 0.95, 0)
    assert {name: facts["top1_accuracy_difference"] for name, facts in found["differences"].items()} == {"best": 0.5, "worst": -0.5}
    assert found["best"]["model"] == "best"
    assert {name: (facts["against"], facts["top1_accuracy_difference"]) for name, facts in found["best"]["differences"].items()} == {
        "baseline": ("best", -0.5),
        "worst": ("best", -1.0),
    }
    # p of 10 differing answers, all for one model: 2 / 2¹⁰, and of 20: 2 / 2²⁰. Three pairs: the smallest times 3, the others times 2.
    p = found["differences"]["best"]["mcnemar_p_adjusted"]
    assert (p, found["best"]["differences"]["worst"]["mcnemar_p_adjusted"]) == pytest.approx((2 * 2**-9, 3 * 2**-19), rel=1e-5)


def test_holms_adjustment_is_the_one_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]


def test_copies_of_a_picture_make_no_difference_significant():
    alone = {"baseline": make_rows("-" * 5 + "+" * 20), "finetuned": make_rows("+" * 25)}  # p = 2 / 2⁵
    copies = {
        name: [{**row, "image_id": f"{row['image_id']}/{number}"} for row in rows for number in range(10)] for name, rows in alone.items()
    }
    ungrouped = {name: [{**row, "group": row["image_id"]} for row in rows] for name, rows in copies.items()}
    p_values = [compare_all(rows, 0.95, 0)["differences"]["finetuned"]["mcnemar_p"] for rows in (alone, copies, ungrouped)]
    assert p_values == pytest.approx([2 / 32, 2 / 32, 2 / 2**50], rel=1e-5)


def test_a_p_value_too_small_for_a_number_is_0_and_significant():
    answers = {"baseline": "-" * 1200, "finetuned": "+" * 1200, "partial": "+" * 1200}  # p = 2 / 2¹²⁰⁰
    found = compare_all({name: make_rows(each) for name, each in answers.items()}, 0.95, 0)
    for facts in (found["differences"]["finetuned"], found["best"]["differences"]["baseline"]):
        assert (facts["mcnemar_p_adjusted"], facts["is_shown"]) == (0.0, True)
