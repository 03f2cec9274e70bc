"""The page of the decisions: the champion first, every figure of the gate, names escaped, and a bounded size."""

import json
import re
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pipeline.promotion.gate import Check, Judgement
from pipeline.promotion.journal import PROMOTING, Entry, Verdict, champion, reigns
from pipeline.report.charts import Moment, timeline
from pipeline.report.decisions import SIGNS, write_decisions
from tests.decisions import SHA256, check, entry, figure, judgement, row, twelve_weeks

FIRST, SECOND, THIRD = SHA256.values()
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "it's <b>bold</b>",
    "{{ 7 * 7 }}",
    "</style><svg onload=a>",
]
DAY = 86_400


@pytest.fixture
def write(tmp_path):
    """Write the page of some entries and return its text."""

    def write_one(*entries):
        write_decisions(tmp_path / "decisions", entries)
        return (tmp_path / "decisions" / "index.html").read_text(encoding="utf-8")

    return write_one


def tags_of(html):
    """All start tags with their attributes."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found


def text_of(html):
    return " ".join(re.sub("<[^>]*>", " ", html.partition("</style>")[2]).split())


def section(html, name):
    """The text of a section."""
    (found,) = re.findall(rf'<(?:section|header) id="{name}".*?</(?:section|header)>', html, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", found).split())


def cells_of(html, label):
    """The rows of the table in a region, as lists of texts."""
    (table,) = re.findall(rf'aria-label="{label}".*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in re.findall("<tr>(.*?)</tr>", table, re.DOTALL)]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in cells] for cells in rows]


# The champion


def test_an_empty_journal_names_the_command_to_run(write):
    html = write()
    assert "No champion yet Nothing has been decided so far. Run pipeline retrain" in text_of(html)
    assert [tag for tag, _ in tags_of(html) if tag in ("table", "svg")] == []


def test_without_a_promotion_there_is_no_champion(write):
    html = write(entry("HOLD", judgement=judgement("HOLD", champion=None)))
    assert "No champion yet No model has been promoted so far." in section(html, "champion")


def test_the_champion_is_shown_with_its_reason_its_time_and_its_decision(write):
    text = section(write(entry(), entry("HOLD", 1, SECOND, FIRST)), "champion")
    assert f"Champion: finetuned it is better ▲ promoted by decision #1, since 2026-09-07 03:00 UTC. Model: {FIRST}" in text


@pytest.mark.parametrize("count", range(1, 12))
def test_the_champion_is_that_of_the_journal(write, count):
    entries = twelve_weeks()[:count]
    assert f"Model: {champion([Entry(**each) for each in entries]).sha256}" in section(write(*entries), "champion")


def test_a_champion_that_is_promoted_again_is_champion_since_its_first_promotion(write):
    entries = [entry(), entry("FORCE", 3, FIRST, FIRST, "once more")]
    assert "by decision #1" in section(write(*entries), "champion")
    assert reigns([Entry(**each) for each in entries])[-1].time == entries[0]["time"]


def test_the_page_and_the_journal_agree_on_what_promotes():
    assert {verdict for verdict, sign in SIGNS.items() if sign.promotes} == set(PROMOTING)
    assert set(SIGNS) == set(Verdict.__args__)


def test_verdicts_differ_in_their_words_and_not_by_colour_alone():
    assert len({sign.word for sign in SIGNS.values()}) == len(SIGNS)


# The latest decision


def test_the_latest_decision_is_shown_with_its_sentence(write):
    text = section(write(entry(), entry("HOLD", 1, SECOND, FIRST, "not shown", judgement=judgement("HOLD"))), "decision")
    assert "Latest decision: held ○ held finetuned, 2026-09-14 03:00 UTC: not shown" in text


def test_both_models_are_shown_with_their_intervals(write):
    text = section(write(entry(), entry("HOLD", 1, SECOND, FIRST, judgement=judgement("HOLD"))), "decision")
    assert f"Challenger: finetuned 95.0 % 85 % 100 % Top-1 accuracy; 95 % interval 92.0 % to 98.0 %. {SECOND[:16]}" in text
    assert f"Champion: finetuned 93.0 % 85 % 100 % Top-1 accuracy; 95 % interval 90.0 % to 96.0 %. {FIRST[:16]}" in text


def test_a_first_champion_is_shown_alone(write):
    text = section(write(entry(judgement=judgement(champion=None))), "decision")
    assert ("Challenger: finetuned" in text, "Champion until then" in text) == (True, False)


@pytest.mark.parametrize(
    ("verdict", "counts", "look", "left"), [("HOLD", True, 3, 23), ("HOLD", False, 3, 24), ("PROMOTE", True, 3, 24), ("HOLD", True, 26, 0)]
)
def test_the_looks_left_are_shown_and_a_promotion_gives_its_share_back(write, verdict, counts, look, left):
    facts = judgement(verdict, look=look, counts=counts)
    text = section(write(entry(verdict, 1, SECOND, FIRST, judgement=facts)), "decision")
    assert f"Looks left at these test pictures {left} " in text
    assert (f"This was look {look} of 26." in text, "in at most 0.19 of 100 cases" in text) == (counts, counts)
    assert ("Add new test pictures:" in text) == (left == 0)


def test_the_test_set_and_the_notes_are_shown(write):
    facts = judgement(notes=["wasps: too few", "other preprocessing"])
    html = write(entry(judgement=facts))
    assert f"Judged on 153 test pictures in 140 groups, set {'e' * 64} . wasps: too few other preprocessing" in section(html, "decision")


def test_after_a_rollback_the_figures_are_those_of_the_last_judgement(write):
    entries = [entry(judgement=judgement(champion=None)), entry("ROLLBACK", 1, SECOND, FIRST, "blurred")]
    text = section(write(*entries), "decision")
    assert "Decision #2 made the present champion. Nothing was judged for it. The figures below are those of decision #1" in text


def test_without_any_judgement_there_is_no_gate(write):
    html = write(entry("FORCE"))
    assert [name for name in ("gate", "classes") if f'id="{name}"' in html or f"#{name}" in html] == []


# The gate


def test_each_check_is_shown_with_all_its_figures(write):
    html = write(entry(judgement=judgement()))
    rows = cells_of(html, "Checks of the gate")
    assert rows[0] == [
        "Top-1 accuracy the challenger must be better by more than the bound",
        *("✓ passed", "0.950", "0.930", "+0.020", "−0.005 to +0.045", "0.000"),
    ]
    assert rows[2][1:] == ["✓ passed", "0.210", "0.240", "−0.030", "–", "0.100"]
    assert rows[4] == [
        "Size megabytes of model.onnx; at most so many times the champion's".replace("'", "&#39;"),
        *("– not judged", "14.2", "14.2", "±0.000", "–", "2.000"),
    ]


def test_a_failed_check_is_marked_by_a_word_and_a_sign(write):
    html = write(entry("REJECT", judgement=judgement("REJECT")))
    assert [cells[1] for cells in cells_of(html, "Checks of the gate")][:2] == ["✗ failed", "✗ failed"]


def test_the_old_test_pictures_are_a_line_of_the_table(write):
    old = {"pictures": 141, "challenger": figure(0.957), "champion": 0.936, "difference": 0.021, "low": -0.008, "high": 0.05}
    last = cells_of(write(entry(judgement=judgement(old=old))), "Checks of the gate")[-1]
    assert last[0].startswith("Top-1 accuracy on the old test pictures the 141 on which the champion was judged")
    assert last[1:] == ["– not judged", "0.957", "0.936", "+0.021", "−0.008 to +0.050", "–"]


# Classes


def test_classes_that_failed_are_first_and_then_the_weakest(write):
    rows = [row("strong", 0.99), row("unknown", None, 0.9, 20, None, None), row("weak", 0.5), row("fell", 0.7, 0.95, 40, 0.004, False)]
    cells = cells_of(write(entry(judgement=judgement(classes=rows))), "Recall by class")
    assert [each[0] for each in cells] == ["fell", "weak", "strong", "unknown"]
    assert cells[0] == ["fell", "✗ failed", "0.700", "0.950", "40", "0.004"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (row("c", 0.5, 0.9, 4, None, None), "too few pictures"),
        (row("c", 0.5, None, 40, None, None), "known to one model only"),
        ({**row("c", 0.5, 0.9, 40, None, None), "text": "only one group"}, "only one group"),
    ],
)
def test_it_is_said_why_a_class_was_not_judged(write, facts, why):
    ((_, result, *_),) = cells_of(write(entry(judgement=judgement(classes=[facts]))), "Recall by class")
    assert result == f"– not judged {why}"


# The history


def test_the_latest_decision_is_the_first_row(write):
    rows = cells_of(write(*twelve_weeks()), "All decisions")
    assert [each[0] for each in rows] == [str(number) for number in range(11, 0, -1)]
    assert rows[2] == ["9", "2026-11-02 03:00 UTC", "▼ rolled back", f"finetuned {SECOND[:12]}", "–", "Complaints about blurred pictures."]
    assert rows[4][4] == "0.955 0.925 to 0.985"


def test_promotions_and_rollbacks_are_marked_by_shape_and_number(write):
    html = write(*twelve_weeks())
    wide = html[html.index('class="broad"') : html.index('class="narrow"')]
    assert re.findall(r'class="mark (\w+)"', wide) == [
        *("up", "circle", "circle", "up", "cross", "circle", "diamond", "up", "down", "circle", "circle")
    ]
    assert re.findall(r'class="label"[^>]*>(#\d+)', wide) == ["#1", "#4", "#8", "#9"]
    assert "<title>#9, 2026-11-02 03:00 UTC: finetuned rolled back</title>" in wide


def test_decisions_by_another_metric_are_counted_and_not_drawn(write):
    other = judgement("HOLD", checks=[check("balanced_accuracy")])
    html = write(entry("HOLD", 0, judgement=other), entry("HOLD", 1, SECOND, judgement=judgement("HOLD")))
    assert "1 of 2 decisions are not drawn" in section(html, "history")


# The frame of 780 spans x 46 to 768, the decisions x 56 to 758; y 190 is the start of the axis, here 0.65, and 12 is 1


def moment(day, value, champion, half=0.05, shape="circle", label=""):
    figure = {} if value is None else {"value": value, "low": value - half, "high": value + half}
    return Moment(day * DAY, champion, shape, label, "", **figure)


def test_the_line_of_the_champion_is_stepwise():
    moments = [moment(0, 0.8, 0.8), moment(5, 0.75, 0.8), moment(10, 0.9, 0.9)]
    drawing = timeline(moments, 780)
    assert drawing.champion == [[(56, 113.7), (407, 113.7), (758, 113.7), (758, 62.9)]]
    assert [(mark.x, mark.y) for mark in drawing.marks] == [(56, 113.7), (407, 139.1), (758, 62.9)]
    assert drawing.marks[0].whisker == (139.1, 88.3)


def test_a_champion_without_a_figure_ends_the_line():
    drawing = timeline([moment(0, 0.8, 0.8), moment(5, None, None, shape="up"), moment(10, 0.8, 0.8)], 780)
    assert [len(line) for line in drawing.champion] == [2, 1]
    assert (drawing.marks[1].y, drawing.marks[1].whisker) == (190, None)


def test_a_rollback_has_the_height_of_the_champion_that_is_restored(write):
    entries = [
        entry(judgement=judgement(challenger=0.9, champion=None)),
        entry("PROMOTE", 1, SECOND, FIRST, judgement=judgement(challenger=0.95, champion=0.9)),
        entry("ROLLBACK", 2, FIRST, SECOND),
    ]
    points = re.findall(r'<polyline class="main" points="(.*?)"', write(*entries))[0].split()
    heights = [float(point.partition(",")[2]) for point in points]
    assert heights == [heights[0], heights[0], heights[2], heights[2], heights[0]]
    assert heights[2] < heights[0]


def test_the_labels_of_the_time_are_round_and_do_not_overlap():
    assert [label for _, label in timeline([moment(0, 0.8, 0.8), moment(60, 0.8, 0.8)], 360).x_ticks] == [
        *("01 Jan 1970", "29 Jan 1970", "26 Feb 1970")
    ]
    for days in (0, 0.01, 0.04, 0.3, 1, 5, 8, 75, 90, 200, 1000, 20_000):
        places = [place for place, _ in timeline([moment(0.3, 0.8, 0.8), moment(0.3 + days, 0.8, 0.8)], 360).x_ticks]
        assert 1 <= len(places) <= 4
        assert all(second - first >= 99.9 for first, second in pairwise(places))


def test_a_label_that_would_cover_the_one_before_is_left_out():
    moments = [moment(day, 0.8, 0.8, shape="up", label=f"#{day}") for day in (0, 1, 50, 100)]
    assert [mark.label for mark in timeline(moments, 780).marks] == ["#0", "", "#50", "#100"]


# One file


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_the_journal_adds_no_tags(write, text):
    def tags(text):
        facts = judgement(
            checks=[check(), check("recall", text=text), check(text, text="why")],
            classes=[row(text), {**row(text, passed=None), "text": text}],
            notes=[text], test={"sha256": text, "pictures": text},
        )  # fmt: skip
        last = entry("HOLD", 1, text, text, text, model=text, time=text, judgement=facts)
        html = write(entry(reason=text, model=text, sha256=text), entry("FORCE", 2, text, text, text, model=text), last)
        return [tag for tag, _ in tags_of(html)]

    assert tags(text) == tags("plain")


def test_a_class_name_is_shown_unchanged(write):
    html = write(entry(judgement=judgement(classes=[row(HOSTILE[0])])))
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th>' in html


def test_the_page_allows_only_its_own_style_and_contains_no_address(write):
    html = write(*twelve_weeks())
    policies = [attributes["content"] for _, attributes in tags_of(html) if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not re.search(r"https?://|@import|url\(|<script|\bsrc=", html)


def test_links_point_into_the_page(write):
    tags = tags_of(write(*twelve_weeks()))
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == 5
    assert set(links) <= {f"#{attributes['id']}" for _, attributes in tags if "id" in attributes}


def test_a_page_written_twice_has_equal_bytes(write):
    assert write(*twelve_weeks()) == write(*twelve_weeks())


def test_the_latest_entry_is_a_file_beside_the_page_and_other_files_stay(write, tmp_path):
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "mine.txt").write_text("mine")
    write(*twelve_weeks())
    assert json.loads((tmp_path / "decisions" / "decision.json").read_text()) == json.loads(json.dumps(twelve_weeks()[-1]))
    assert sorted(path.name for path in (tmp_path / "decisions").iterdir()) == ["decision.json", "index.html", "mine.txt"]
    write()
    assert json.loads((tmp_path / "decisions" / "decision.json").read_text()) is None


# Other versions, and large journals


@pytest.mark.parametrize("name", Judgement.__dataclass_fields__)
def test_a_judgement_without_a_key_is_shown_as_far_as_it_goes(write, name):
    facts = judgement()
    del facts[name]
    assert "Champion: finetuned" in text_of(write(entry(judgement=facts)))
    assert "Champion: finetuned" in text_of(write(entry(judgement={**judgement(), name: None})))


@pytest.mark.parametrize("name", Check.__dataclass_fields__)
def test_a_check_without_a_key_is_shown_as_far_as_it_goes(write, name):
    facts = judgement()
    del facts["checks"][0][name]
    assert len(cells_of(write(entry(judgement=facts)), "Checks of the gate")) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "0.9", True, [], -1, 7.0])
def test_what_is_not_a_share_is_a_dash(write, value):
    facts = judgement(values={"challenger": {"value": value, "low": value, "high": value}, "champion": value}, champion=None)
    assert cells_of(write(entry(judgement=facts)), "All decisions")[0][4] == "–"


def test_an_unknown_verdict_and_an_unreadable_time_are_shown_as_they_are(write):
    (cells,) = cells_of(write(entry("LATER", time="soon")), "All decisions")
    assert cells[1:3] == ["soon", "• LATER"]


def test_a_long_reason_is_cut_in_the_table_alone(write):
    reason = "word " * 1000
    html = write(entry(reason=reason))
    assert reason.strip() in section(html, "champion")
    assert len(cells_of(html, "All decisions")[0][5]) <= 300


def test_500_decisions_on_1000_classes_are_below_a_megabyte_and_quick(write):
    classes = [row(f"a_class_of_a_thousand_{number}", number / 1000) for number in range(1000)]
    facts = judgement("HOLD", classes=classes)
    entries = [entry("PROMOTE" if week % 9 == 0 else "HOLD", week, f"{week:064x}", FIRST, judgement=facts) for week in range(500)]
    start = time.monotonic()
    html = write(*entries)
    assert time.monotonic() - start < 5
    assert len(html) < 1e6
    assert "The other 900 of 1000 classes are in promotions.jsonl." in section(html, "classes")
    assert "The 400 older decisions are in promotions.jsonl." in section(html, "history")
    assert len(cells_of(html, "Recall by class")) == len(cells_of(html, "All decisions")) == 100
