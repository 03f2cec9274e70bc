"""The gate: what it decides of two tables of predictions, and why."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.core.params import read_params
from pipeline.core.sections import read_section
from pipeline.promotion.gate import Candidate, Params, TestSet, judge

ROOT = Path(__file__).parent.parent.parent
PARAMS = read_section("gate", Params, ROOT / "params.yaml")


def changed(**values):
    return Params(**{**PARAMS.model_dump(), **values})


def rows_of(labels, answers, groups=None):
    """A table of predictions; every answer has the probability 0.9, and a wrong one leaves 0.05 for the label."""
    return [
        {"image_id": f"{number:05d}", "group": groups[number] if groups else f"{number:05d}", "label": label, "predicted": answer,
         "probability": "0.900000", "label_probability": "0.900000" if label == answer else "0.050000"}
        for number, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]  # fmt: skip


def candidate(rows, name="finetuned", classes=("ant", "bee"), **values):
    facts = {"preprocessing": {"image_size": 64}, "megabytes": 10.0, "milliseconds": 5.0, "sha256": name * 8, **values}
    return Candidate(name=name, class_names=tuple(classes), rows=rows, **facts)


def answers_with(labels, wrong):
    """Right answers but at these numbers, where the answer is the other class."""
    return [({"ant": "bee", "bee": "ant"}[label] if number in wrong else label) for number, label in enumerate(labels)]


def two(count, challenger_wrong, champion_wrong, groups=None, **values):
    """Challenger and champion on alternating pictures of two classes."""
    labels = ["ant", "bee"] * (count // 2)
    return (
        candidate(rows_of(labels, answers_with(labels, challenger_wrong), groups), **values),
        candidate(rows_of(labels, answers_with(labels, champion_wrong), groups), "champion"),
    )


def all_old(rows, **values):
    return TestSet("digest", frozenset(row["image_id"] for row in rows), **values)


def decided(challenger, champion, spent=0, age_days=10.0, params=PARAMS):
    return judge(challenger, champion, all_old(challenger.rows), spent, age_days, params)


def check_of(judgement, name):
    return next(check for check in judgement.checks if check.name == name)


def test_a_challenger_that_is_shown_to_be_better_is_promoted():
    judgement = decided(*two(300, range(5), range(5, 45)))
    assert (judgement.verdict, judgement.counts, judgement.look, judgement.looks) == ("PROMOTE", True, 1, 26)
    metric = check_of(judgement, "top1_accuracy")
    assert (metric.challenger, metric.champion, metric.difference) == (0.983333, 0.866667, 0.116667)
    assert metric.low > 0


def test_a_gain_that_these_pictures_cannot_show_is_held_with_what_they_can_see():
    judgement = decided(*two(152, range(3), range(3, 13)), spent=3)
    assert (judgement.verdict, judgement.counts) == ("HOLD", True)
    assert judgement.reason == (
        "accuracy 98.0 % against 93.4 % (+4.6 points, interval -3.4 to +13.7): not shown to be better; look 4 of 26, 22 left; "
        "152 test pictures see a gain of 8.4 points in 80 of 100 cases"
    )


def test_a_challenger_that_is_shown_to_be_worse_is_rejected():
    judgement = decided(*two(300, range(5, 45), range(5)), params=changed(class_drop=None, log_loss=None, ece=None))
    assert judgement.verdict == "REJECT"
    assert "shown to be worse" in judgement.reason


def test_the_margin_must_be_exceeded_by_the_whole_interval():
    pair = two(300, range(5), range(5, 45))
    assert decided(*pair, params=changed(margin=0.1)).verdict == "HOLD"


@pytest.mark.parametrize("age_days", [1.0, 400.0, None])
def test_the_champion_itself_is_always_held(age_days):
    challenger, champion = two(300, range(5), range(5, 45))
    judgement = decided(replace(challenger, sha256=champion.sha256), champion, age_days=age_days)
    assert (judgement.verdict, judgement.counts) == ("HOLD", False)


def test_another_model_with_the_same_answers_is_held_and_spends_no_look():
    judgement = decided(*two(300, range(5), range(5)))
    assert (judgement.verdict, judgement.counts) == ("HOLD", False)
    assert judgement.reason == "the challenger gives the champion's answer to every test picture"


def test_when_all_looks_are_spent_a_better_challenger_waits_for_new_test_pictures():
    judgement = decided(*two(300, range(5), range(5, 45)), spent=26)
    assert (judgement.verdict, judgement.counts) == ("HOLD", False)
    assert "all 26 looks at these test pictures are spent, so new test pictures are needed" in judgement.reason


def test_a_first_champion_must_be_better_than_the_most_frequent_class():
    labels = ["ant"] * 60 + ["bee"] * 40
    good = decided(candidate(rows_of(labels, answers_with(labels, range(10)))), None)
    constant = decided(candidate(rows_of(labels, ["ant"] * 100)), None)
    assert (good.verdict, good.counts, good.values["champion"]) == ("PROMOTE", False, None)
    assert constant.verdict == "HOLD"
    assert constant.reason.endswith("is not shown to be above the 60.0 % of one answer to every picture")
    assert check_of(good, "top1_accuracy").bound == 0.6


def test_a_first_champion_is_compared_with_one_class_in_balanced_accuracy():
    labels = ["ant"] * 60 + ["bee"] * 40
    judgement = decided(candidate(rows_of(labels, labels)), None, params=changed(metric="balanced_accuracy"))
    assert (judgement.verdict, check_of(judgement, "balanced_accuracy").bound) == ("PROMOTE", 0.5)


def test_an_old_champion_is_replaced_by_a_challenger_that_is_not_inferior():
    pair = two(3000, range(20), range(20, 40))
    fresh, old = decided(*pair), decided(*pair, age_days=181.0)
    assert (fresh.verdict, old.verdict, old.counts) == ("HOLD", "PROMOTE", False)
    assert old.reason.startswith("the champion is 181 days old, more than 180; ")


def test_an_old_champion_stays_if_the_challenger_may_be_inferior():
    judgement = decided(*two(300, range(12), range(10, 16)), age_days=181.0)
    assert (judgement.verdict, judgement.counts) == ("HOLD", False)
    assert "not shown to be not worse by 2 points" in judgement.reason


def test_few_test_pictures_do_not_close_the_gate_to_the_successor_of_an_old_champion():
    judgement = decided(*two(40, [0], [1]), age_days=181.0)
    assert judgement.verdict == "PROMOTE"
    assert "not worse on these pictures, which are too few to show a loss of 2 points" in judgement.reason


def test_a_class_that_loses_rejects_though_the_mean_is_up():
    labels = ["ant"] * 200 + ["bee"] * 40
    challenger = candidate(rows_of(labels, answers_with(labels, range(200, 215))))
    champion = candidate(rows_of(labels, answers_with(labels, range(60))), "champion")
    judgement = decided(challenger, champion)
    assert judgement.verdict == "REJECT"
    assert judgement.reason == "recall is shown to be lower by more than 5 points: bee (62.5 % against 100.0 %)"
    assert {row["class"]: row["passed"] for row in judgement.classes} == {"ant": True, "bee": False}
    assert judgement.classes[1]["p"] == pytest.approx(2**-15 * 2, abs=1e-6)  # 15 of 15 lost; two classes


def test_a_class_with_too_few_pictures_is_told_and_not_judged():
    labels = ["ant"] * 200 + ["bee"] * 9
    challenger = candidate(rows_of(labels, answers_with(labels, range(200, 209))))
    champion = candidate(rows_of(labels, answers_with(labels, range(60))), "champion")
    judgement = decided(challenger, champion, params=changed(log_loss=None))
    assert judgement.classes[1]["passed"] is None
    assert "1 of 2 classes not judged" in check_of(judgement, "recall").text
    assert judgement.verdict == "PROMOTE"


@pytest.mark.parametrize(("name", "values"), [("latency", {"milliseconds": 10.1}), ("size", {"megabytes": 20.1})], ids=["latency", "size"])
def test_a_bound_rejects_a_better_challenger_and_null_does_not(name, values):
    pair = two(300, range(5), range(5, 45), **values)
    rejected = decided(*pair)
    assert rejected.verdict == "REJECT"
    assert rejected.reason.startswith(name)
    assert decided(*pair, params=changed(**{name: None})).verdict == "PROMOTE"


def test_a_higher_log_loss_than_allowed_rejects():
    challenger, champion = two(300, range(5), range(5, 45))
    doubtful = [{**row, "label_probability": "0.300000"} for row in challenger.rows]
    judgement = decided(replace(challenger, rows=doubtful), champion)
    assert judgement.verdict == "REJECT"
    # -ln 0.3 = 1.203973; champion: (260 · -ln 0.9 + 40 · -ln 0.05) / 300 = 0.490742
    assert check_of(judgement, "log_loss").difference == pytest.approx(1.203973 - 0.490742, abs=2e-6)


def test_ece_is_the_gap_between_confidence_and_accuracy():
    judgement = decided(*two(300, range(30), range(30, 60)))
    check = check_of(judgement, "ece")
    assert (check.challenger, check.champion, check.passed) == (0.0, 0.0, True)  # 0.9 confident, 90 % right


def test_a_new_class_is_judged_on_the_classes_that_both_know():
    labels = ["ant", "bee"] * 1000 + ["wasp"] * 50
    challenger = candidate(rows_of(labels, labels), classes=("ant", "bee", "wasp"))
    champion = candidate(rows_of(labels, ["ant", "bee"] * 1000 + ["ant", "bee"] * 25), "champion")
    judgement = decided(challenger, champion)
    assert (judgement.verdict, judgement.counts) == ("PROMOTE", False)
    assert judgement.reason.startswith("the champion does not know wasp; accuracy 100.0 % against 100.0 %")
    assert judgement.test == {"sha256": "digest", "pictures": 2050, "judged": 2000, "groups": 2000}
    assert "class wasp is new" in judgement.notes
    assert judgement.classes[2] == {"class": "wasp", "pictures": 50, "challenger": 1.0, "champion": None, "p": None, "passed": None}


def test_a_renamed_class_is_recognised_by_the_champions_answers():
    labels = ["ant", "honey bee"] * 1000
    challenger = candidate(rows_of(labels, labels), classes=("ant", "honey bee"))
    champion = candidate(rows_of(labels, ["ant", "bee"] * 1000), "champion")
    judgement = decided(challenger, champion)
    assert (judgement.verdict, judgement.test["judged"]) == ("PROMOTE", 2000)
    assert judgement.values["champion"]["value"] == 1.0
    assert judgement.notes[0].startswith("class bee is called honey bee now")
    assert judgement.reason.startswith("the champion knows honey bee by an earlier name; ")


def test_a_class_that_was_divided_is_no_renamed_one():
    labels = ["ant", "honey bee", "bumble bee"] * 700
    challenger = candidate(rows_of(labels, labels), classes=("ant", "honey bee", "bumble bee"))
    champion = candidate(rows_of(labels, ["ant", "bee", "bee"] * 700), "champion")
    judgement = decided(challenger, champion)
    assert (judgement.verdict, judgement.test["judged"]) == ("PENDING", 700)
    assert "class bee is divided into bumble bee, honey bee" in judgement.notes


def test_a_vanished_class_needs_a_person():
    labels = ["ant", "bee"] * 1000
    challenger, champion = two(2000, range(5), range(5))
    judgement = decided(challenger, replace(champion, class_names=("ant", "bee", "wasp")))
    assert judgement.verdict == "PENDING"
    assert judgement.reason.startswith("the challenger does not know wasp any more, so a person must approve it; ")
    assert len(labels) == judgement.test["judged"]


def test_models_without_a_class_in_common_need_a_person():
    labels = ["ant", "bee"] * 50
    champion = candidate(rows_of(labels, ["oak", "elm"] * 25 + ["elm", "oak"] * 25), "champion", ("oak", "elm"))
    judgement = decided(candidate(rows_of(labels, labels)), champion)
    assert (judgement.verdict, judgement.test["judged"]) == ("PENDING", 0)
    assert judgement.reason == "the champion knows no class of the test pictures, so a person must approve the challenger"


def test_approval_turns_a_promotion_into_pending():
    judgement = decided(*two(300, range(5), range(5, 45)), params=changed(require_approval=True))
    assert (judgement.verdict, judgement.counts) == ("PENDING", True)


def test_a_changed_test_set_and_other_preprocessing_are_noted():
    challenger, champion = two(300, range(5), range(5, 45), preprocessing={"image_size": 128})
    old = frozenset(row["image_id"] for row in challenger.rows[:200])
    judgement = judge(challenger, champion, TestSet("digest", old, left=3, learned=1), 0, 10.0, PARAMS)
    assert judgement.notes == [
        "1 test picture is left out, because one of the two models learned from it",
        "3 test pictures are no longer there",
        "100 test pictures are new to the champion",
        "the preprocessing of the two models differs: image_size",
    ]
    assert (judgement.old["pictures"], judgement.old["challenger"], judgement.old["difference"]) == (200, 0.975, 0.175)


def test_what_a_shadow_showed_is_the_last_note_and_changes_nothing_else():
    challenger, champion = two(300, range(5), range(5, 45), preprocessing={"image_size": 128})
    without = decided(challenger, champion)
    judgement = decided(replace(challenger, shadow="in shadow, it never agreed"), champion)
    assert judgement.notes == [*without.notes, "in shadow, it never agreed"]
    assert len(without.notes) == 1
    assert replace(judgement, notes=without.notes) == without


def test_pictures_of_a_group_are_one_draw():
    groups = [f"video {number // 10}" for number in range(300)]
    single, grouped = (decided(*two(300, [], range(40), each), params=changed(ece=None)) for each in (None, groups))
    assert (single.verdict, grouped.verdict, grouped.test["groups"]) == ("PROMOTE", "HOLD", 30)  # four groups gained: p = 2 ** -4


def test_balanced_accuracy_weighs_classes_alike():
    labels = ["ant"] * 400 + ["bee"] * 100
    challenger = candidate(rows_of(labels, labels))
    champion = candidate(rows_of(labels, answers_with(labels, range(400, 440))), "champion")
    judgement = decided(challenger, champion, params=changed(metric="balanced_accuracy", ece=None))
    assert (judgement.verdict, check_of(judgement, "balanced_accuracy").difference) == ("PROMOTE", 0.2)


def test_other_pictures_are_an_error():
    challenger, champion = two(300, range(5), range(5, 45))
    with pytest.raises(PipelineError, match="300 and 299 predictions are not of the same pictures"):
        decided(challenger, replace(champion, rows=champion.rows[1:]))


@pytest.mark.parametrize("champion", [None, candidate([], "champion")])
def test_without_pictures_it_holds(champion):
    judgement = decided(candidate([]), champion)
    assert (judgement.verdict, judgement.counts, judgement.values) == ("HOLD", False, {"challenger": None, "champion": None})


def test_figures_that_are_not_known_are_told_and_not_judged():
    challenger, champion = two(300, range(5), range(5, 45), milliseconds=None)
    rows = [{**row, "label_probability": "nan", "probability": ""} for row in challenger.rows]
    judgement = decided(replace(challenger, rows=rows), champion)
    assert [check.passed for check in judgement.checks] == [True, None, None, None, True, True]
    assert check_of(judgement, "latency").text == "latency is not known for both models"
    assert judgement.verdict == "PROMOTE"


def test_the_same_arguments_give_the_same_bytes():
    first, second = (json.dumps(decided(*two(300, range(5), range(5, 45))).as_dict()) for _ in range(2))
    assert first == second


def test_the_same_answers_renew_an_old_champion():
    judgement = decided(*two(300, range(5), range(5)), age_days=181.0)
    assert (judgement.verdict, judgement.counts) == ("PROMOTE", False)


def test_a_rejected_challenger_has_spent_its_look():
    judgement = decided(*two(300, range(5), range(5, 45), milliseconds=50.0))
    assert (judgement.verdict, judgement.counts) == ("REJECT", True)


def test_a_class_may_lose_anything_if_class_drop_is_null():
    labels = ["ant"] * 200 + ["bee"] * 40
    challenger = candidate(rows_of(labels, answers_with(labels, range(200, 215))))
    champion = candidate(rows_of(labels, answers_with(labels, range(60))), "champion")
    judgement = decided(challenger, champion, params=changed(class_drop=None, ece=None))
    assert judgement.verdict == "PROMOTE"
    assert [row["passed"] for row in judgement.classes] == [None, None]


def test_the_loss_of_a_class_within_the_drop_does_not_reject():
    labels = ["ant"] * 2000 + ["bee"] * 1000
    challenger = candidate(rows_of(labels, answers_with(labels, range(2000, 2040))))  # 4 points, and shown
    champion = candidate(rows_of(labels, answers_with(labels, range(200))), "champion")
    judgement = decided(challenger, champion, params=changed(ece=None))
    assert judgement.verdict == "PROMOTE"
    assert judgement.classes[1]["p"] < 1e-6


def test_labels_of_today_count_for_both():
    challenger, champion = two(300, range(5), range(5, 45))
    before = [{**row, "label": "ant"} for row in champion.rows]  # as they were when the champion was scored
    judgement = decided(challenger, replace(champion, rows=before))
    assert judgement.values["champion"]["value"] == 0.866667
    assert judgement.verdict == "PROMOTE"


CLASSES = ("ant", "bee", "wasp", "fly")
TABLE = st.lists(st.tuples(*[st.sampled_from(CLASSES)] * 3, st.integers(0, 4), st.sampled_from(["0.5", "nan", "", "1.0"])), max_size=30)


@given(
    table=TABLE,
    classes=st.lists(st.sets(st.sampled_from(CLASSES), min_size=1), min_size=2, max_size=2),
    metric=st.sampled_from(["top1_accuracy", "balanced_accuracy"]),
    spent=st.integers(0, 30),
    age_days=st.sampled_from([None, 0.0, 1000.0]),
    is_first=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_two_tables_are_a_decision_with_a_sentence(table, classes, metric, spent, age_days, is_first):
    labels, answers, champion_answers, groups, probs = zip(*table, strict=True) if table else ([], [], [], [], [])
    sides = []
    for name, names, given_answers in zip(("a", "b"), classes, (answers, champion_answers), strict=True):
        rows = rows_of(labels, given_answers, [str(group) for group in groups])
        rows = [{**row, "probability": prob, "label_probability": prob} for row, prob in zip(rows, probs, strict=True)]
        sides.append(candidate(rows, name, sorted(names)))
    test = TestSet("digest", frozenset(f"{number:05d}" for number in range(10)))
    judgement = judge(sides[0], None if is_first else sides[1], test, spent, age_days, changed(metric=metric, class_pictures=1))
    assert judgement.verdict in ("PROMOTE", "HOLD", "REJECT", "PENDING")
    assert judgement.reason
    json.dumps(judgement.as_dict(), allow_nan=False)


def test_fifty_thousand_pictures_of_a_thousand_classes_are_judged_within_seconds():
    generator = np.random.default_rng(0)
    names = [f"class {number:04d}" for number in range(1000)]
    labels = generator.integers(0, 1000, 50_000)
    answers = [np.where(generator.random(50_000) < 0.1, generator.integers(0, 1000, 50_000), labels) for _ in range(2)]
    tables = [rows_of([names[number] for number in labels], [names[number] for number in each]) for each in answers]
    begun = time.process_time()
    judgement = decided(*(candidate(rows, name, names) for rows, name in zip(tables, "ab", strict=True)))
    assert time.process_time() - begun < 20
    assert judgement.verdict == "HOLD"
    assert len(judgement.classes) == 1000


def test_the_page_lists_every_param_with_its_default():
    page = (ROOT / "docs/promotion.md").read_text(encoding="utf-8")
    defaults = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", page, re.MULTILINE)
    assert {key: yaml.safe_load(text) for key, text in defaults} == read_params()["gate"]
