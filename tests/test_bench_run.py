"""The comparison of speeds: what a run reports, which rounds count, and how the ratios follow from them."""

import importlib
import json
import re
import sys
from types import ModuleType

import pytest

from pipeline.training import loop
from tests.conftest import ROOT
from tests.projects import NOBODY


@pytest.fixture
def modules(monkeypatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))  # its scripts import each other as they do when they are run
    return {name: importlib.import_module(name) for name in ("rounds", "cases", "run", "table")}


@pytest.fixture
def python(modules, tmp_path):
    def contender(code, **options):
        return modules["rounds"].Contender("python", [sys.executable, "-c", code], tmp_path, **options)

    return contender


def made_case(modules, unit, at_most=False):
    return modules["cases"].Case("made", "work", "others", unit, 1.5, list, at_most=at_most)


def rounds_of(modules, *rounds):
    return [[modules["rounds"].Run(seconds, 0.0, 1.0, {}) for seconds in each] for each in rounds]


def three(modules, tmp_path):
    return [modules["rounds"].Contender(name, [], tmp_path) for name in ("ours", "slow", "fast")]


def test_a_run_reports_its_peak_memory_and_what_the_command_says_of_itself(modules, python):
    contender = python("x = b'1' * 200_000_000; print('a word'); print('{\"right\": 0.5}')", read=modules["rounds"].last_line)
    run = modules["rounds"].run_once(contender, {})
    assert run.figures == {"right": 0.5}
    assert 200 < run.peak_megabytes < 300


def test_the_cpu_time_of_child_processes_is_not_foreign(modules, monkeypatch, python):
    readings = iter([100.0, 100.5])
    monkeypatch.setattr(modules["rounds"], "busy_seconds", lambda: next(readings))
    child = "import time\nwhile time.process_time() < 0.5: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert modules["rounds"].run_once(python(code), {}).foreign == 0


def test_the_cpu_time_of_other_processes_is_foreign(modules, monkeypatch, python):
    readings = iter([100.0, 200.0])
    monkeypatch.setattr(modules["rounds"], "busy_seconds", lambda: next(readings))
    monkeypatch.setattr(modules["rounds"].os, "cpu_count", lambda: 2)
    run = modules["rounds"].run_once(python(""), {})
    assert run.foreign > 1


def test_a_command_that_fails_is_reported_with_the_end_of_what_it_printed(modules, python):
    with pytest.raises(RuntimeError, match=r"python: exit code 1\n(.*\n)*ValueError: no pictures"):
        modules["rounds"].run_once(python("raise ValueError('no pictures')"), {})


def test_a_round_that_others_disturbed_is_taken_again(modules, monkeypatch, python):
    foreign = iter([0.0, 0.2, 0.0, 0.05, 0.11])
    monkeypatch.setattr(modules["rounds"], "run_once", lambda *_: modules["rounds"].Run(1.0, next(foreign), 1.0, {}))
    rounds, thrown = modules["rounds"].take_rounds([python(""), python("")], 1, {}, 0.1)
    assert ([[run.foreign for run in each] for each in rounds], thrown) == ([[0.0, 0.05]], 1)


def test_rounds_end_where_the_machine_is_never_quiet(modules, monkeypatch, python):
    monkeypatch.setattr(modules["rounds"], "run_once", lambda *_: modules["rounds"].Run(1.0, 0.5, 1.0, {}))
    assert modules["rounds"].take_rounds([python("")], 2, {}, 0.1) == ([], 6)


@pytest.mark.parametrize(
    ("unit", "at_most", "ratios"), [("s", False, [4, 2]), ("pictures/s", False, [0.25, 0.5]), ("s", True, [0.25, 0.5])]
)
def test_a_ratio_is_the_median_of_the_pairs(modules, tmp_path, unit, at_most, ratios):
    case = made_case(modules, unit, at_most)
    rounds = rounds_of(modules, (1, 4, 2), (2, 8, 4), (1, 100, 100))
    found = modules["run"].ratios_of(case, three(modules, tmp_path), rounds)
    assert found == dict(zip(("slow", "fast"), ratios, strict=True))
    assert modules["run"].worst(case, found) == (max if at_most else min)(ratios)


def test_the_frozen_loop_is_scaled_by_its_median_epoch(modules):
    run = modules["rounds"].Run(40.0, 0.0, 1.0, {"epoch_seconds": [12.0, 10.0, 11.0]})
    assert modules["cases"].scaled(run) == 40 + 22 * 11


def test_the_goals_are_met_or_missed_by_the_strongest_contender(modules, monkeypatch, tmp_path):
    run = modules["run"]
    monkeypatch.setattr(run, "take_rounds", lambda *_: (rounds_of(modules, (1, 4, 1.4)), 2))
    case = modules["cases"].Case("made", "work", "others", "s", 1.5, lambda _: three(modules, tmp_path))
    result = run.measure(case, None, 1, 0.1, False)
    assert (result["ratio"], result["goal"], result["is_met"], result["thrown_away"]) == (1.4, "at least 1.5", False, 2)
    lines = modules["table"].table([result]).splitlines()
    assert lines[-3:] == [
        "| **work**, against others | ours | 1 s | **1.40** | at least 1.5, missed |  | 1 |  | 1 |",
        "|  | slow | 4 s | 4.00 |  |  | 1 |  |  |",
        "|  | fast | 1.4 s | 1.40 |  |  | 1 |  |  |",
    ]


def test_the_ratio_with_the_allocator_tuned_is_information(modules, monkeypatch, tmp_path):
    run = modules["run"]

    def take(contenders, count, environment, most_foreign):
        return rounds_of(modules, (1, 2, 3) if "MALLOC_MMAP_MAX_" in environment else (1, 5, 4)), 0

    monkeypatch.setattr(run, "take_rounds", take)
    case = modules["cases"].Case("made", "work", "others", "s", 3, lambda _: three(modules, tmp_path), reruns_tuned=True)
    result = run.measure(case, None, 1, 0.1, True)
    assert (result["ratio"], result["ratio_tuned"], result["is_met"]) == (4, 2, True)
    assert [figures.get("ratio_tuned") for figures in result["contenders"].values()] == [None, 2, 3]
    assert "ratio_tuned" not in run.measure(case, None, 1, 0.1, False)


def test_our_training_reports_the_speed_of_the_stage(modules, in_small_project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setattr(loop, "train_epoch", loop.train_epoch)  # put back afterwards
    command = importlib.import_module("projects").stage_command(ROOT, "train", "finetuned")
    monkeypatch.setattr(sys, "argv", command[2:])
    importlib.import_module("own_training").main()
    assert modules["rounds"].last_line(capsys.readouterr().out)["pictures_per_second"] > 0
    assert (in_small_project / "models/finetuned/model.onnx").is_file()


def test_the_page_has_the_table_of_the_stored_cases(modules):
    cases = json.loads((ROOT / "bench/results.json").read_text()).get("cases", [])
    page = ROOT / "bench/results.md"
    assert (page.read_text() if page.exists() else None) == (modules["run"].page_of(cases) if cases else None)


def test_the_readme_quotes_the_stored_ratios(modules):
    ratios = {case["case"]: case["ratio"] for case in json.loads((ROOT / "bench/results.json").read_text())["cases"]}
    text = " ".join((ROOT / "README.md").read_text().split())
    words = ("fine-tuning is", "scoring", "the frozen baseline", "`predict`")
    quoted = re.search(".*".join(rf"{each} ([\d.]+) times" for each in words), text)
    assert quoted is not None
    assert list(quoted.groups()) == [f"{ratios[name]:.1f}" for name in ("finetuning", "evaluation", "frozen", "predict")]


def test_the_docs_have_the_tables_of_unfamiliar_pictures(modules):
    unfamiliar = importlib.import_module("unfamiliar")
    rows = json.loads((ROOT / "bench/results.json").read_text())["unfamiliar"]["rows"]
    text = (ROOT / "docs/unfamiliar.md").read_text()
    assert [table for table in (unfamiliar.area_table(rows), unfamiliar.rate_table(rows)) if table not in text] == []


def test_the_docs_quote_the_accuracies_and_none_is_shown_to_be_below_the_plain_loop(modules):
    accuracy = importlib.import_module("accuracy")
    rows = json.loads((ROOT / "bench/results.json").read_text())["accuracy"]["rows"]
    assert accuracy.table(rows) in (ROOT / "docs/results.md").read_text()
    titles = {name: [title for title in accuracy.MODELS if title != accuracy.PLAIN and title in runs["0"]] for name, runs in rows.items()}
    ends = {(name, title): accuracy.difference(rows[name], title)["high"] for name in rows for title in titles[name]}
    assert len(ends) == 4
    assert {pair: high for pair, high in ends.items() if high < 0} == {}


def test_the_docs_quote_the_simulation_of_drift_whose_false_alarms_are_5_percent_give_or_take_one_and_a_half(modules):
    facts = json.loads((ROOT / "bench/drift.json").read_text())
    docs = (ROOT / "docs/drift.md").read_text()
    assert [table for table in importlib.import_module("drift").tables(facts).split("\n\n") if table not in docs] == []
    assert [(facts[name]["of"], 0.035 <= facts[name]["rate"] <= 0.065) for name in ("single", "grouped")] == [(1000, True)] * 2
    assert facts["period"]["low"] <= 0.05
