"""`pipeline tune`: the same trials after any kill, trained as the stage `train` trains; what it prints, writes and logs to MLflow."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from pipeline.__main__ import main
from pipeline.commands.search import show_study
from pipeline.core.files import read_json, read_table, write_json, write_table
from pipeline.core.params import parse_yaml
from pipeline.search.tuning import Choices, Range, Study
from pipeline.tracking.connection import connect
from pipeline.tracking.runs import TUNING
from pipeline.training.checkpoint import Checkpoint
from tests.checkout import ROOT
from tests.projects import NOBODY, SPACE, enter, train_by

TRIALS = 8


@pytest.fixture(scope="module")
def undisturbed(small_project, tmp_path_factory):
    """A copy of the project in which a study ran in one go."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(small_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        main(["tune", "finetuned"])
    return folder


@pytest.fixture
def here(in_small_project):
    """Another copy, which is the current folder."""
    shutil.rmtree(in_small_project / "data/splits/test")  # no test picture is needed
    return in_small_project


@pytest.fixture
def tuned(undisturbed, tmp_path, monkeypatch):
    """A copy of the project in which a study ran."""
    folder = tmp_path / "tuned"
    shutil.copytree(undisturbed, folder)
    enter(folder, monkeypatch)
    return folder


def study_of(folder, model="finetuned"):
    (path,) = (folder / ".cache/tune" / model).glob("*.json")
    return path


def runs_of_trials():
    """The study's run, and those of its trials by their number."""
    client, experiment_id = connect(TUNING)
    found = client.search_runs([experiment_id])
    (parent,) = [each for each in found if "mlflow.parentRunId" not in each.data.tags]
    children = sorted((each for each in found if each is not parent), key=lambda each: int(each.data.tags["trial"]))
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    return client, parent, children


# Kills


BEGIN = """\
import os, sys
import optuna, torchvision, timm, mlflow.store.tracking.sqlalchemy_store, mlflow.store.db.utils
import pipeline.search.tuning, pipeline.tracking.runs
from pipeline.__main__ import main
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.dup2(2, 1)
        main(line.split())
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture
def begin(here):
    """`begin(*arguments)` begins `pipeline` in a process that has all imports behind it; its id, and what waits for its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (here / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN],
            cwd=here,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        )

    def start(*arguments):
        process.stdin.write(" ".join(arguments) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline()), lambda: int(process.stdout.readline())

    yield start
    process.communicate()


def kept(folder):
    """How many trials a study has."""
    paths = [*(folder / ".cache/tune/finetuned").glob("*.json")]
    return len(read_json(paths[0])) if paths else 0


@pytest.mark.slow
def test_killed_after_every_trial_it_ends_with_the_same_trials_and_runs(begin, here, undisturbed):
    chance = random.Random(0)
    while (before := kept(here)) < TRIALS - 1:
        process, wait = begin("tune", "finetuned", "--write")
        while kept(here) == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.5))  # while MLflow logs it, or the next one is prepared or trained
        os.kill(process, signal.SIGKILL)
        assert wait() == -signal.SIGKILL
    process, wait = begin("tune", "finetuned", "--write")
    assert wait() == 0
    assert (here / "output.txt").read_text().count(" trials are finished") >= 3
    assert study_of(here).read_bytes() == study_of(undisturbed).read_bytes()
    assert not [path for path in (here / ".cache").rglob("*") if path.suffix in (".pt", ".partial")]
    assert not [*(here / ".cache/locks/tuning").glob("*/*.lock")]
    trials = read_json(study_of(here))
    client, parent, children = runs_of_trials()
    assert [int(child.data.tags["trial"]) for child in children] == list(range(1, TRIALS + 1))
    assert [len(client.get_metric_history(child.info.run_id, "val_loss")) for child in children] == [len(t["history"]) for t in trials]
    over = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
    assert [child.info.status for child in children] == [over[trial["state"]] for trial in trials]
    assert (parent.info.status, parent.data.tags["study_sha256"]) == ("FINISHED", study_of(here).stem)


def test_a_trial_that_was_interrupted_resumes_and_ends_as_if_nothing_had_happened(here, undisturbed, monkeypatch, capsys):
    write, calls = Checkpoint.write, []

    def interrupted(*arguments):
        write(*arguments)
        calls.append(1)
        if len(calls) == 3:  # after epoch 1 of the second trial; the first one diverges in that epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "write", interrupted)
        main(["tune", "finetuned", "--trials", "2"])
    assert kept(here) == 1
    main(["tune", "finetuned", "--trials", "2"])
    assert "resumes after epoch 1" in capsys.readouterr().err
    assert read_json(study_of(here)) == read_json(study_of(undisturbed))[:2]


# Trials


def test_some_are_complete_some_pruned_and_some_diverge(undisturbed):
    trials = read_json(study_of(undisturbed))
    assert [trial["number"] for trial in trials] == list(range(1, TRIALS + 1))
    assert {trial["state"] for trial in trials} == {"complete", "pruned", "failed"}
    assert {len(trial["history"]) for trial in trials if trial["state"] == "complete"} == {4}


def test_another_seed_is_another_study(tuned):
    (tuned / "params.yaml").write_text((tuned / "params.yaml").read_text().replace("seed: 3", "seed: 4"))
    before = study_of(tuned)
    main(["tune", "finetuned", "--trials", "1"])
    (other,) = {*(tuned / ".cache/tune/finetuned").glob("*.json")} - {before}
    assert read_json(other)[0]["params"] != read_json(before)[0]["params"]


def test_the_stage_train_makes_of_the_best_params_what_the_trial_made(tuned, monkeypatch, capsys):
    main(["tune", "finetuned", "--write"])
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    train_by("finetuned")
    best = min((trial for trial in read_json(study_of(tuned)) if trial["state"] == "complete"), key=lambda trial: trial["value"])
    history = [{key: float(value) for key, value in row.items() if value} for row in read_table(tuned / "models/finetuned/history.csv")]
    assert history == best["history"]
    main(["tune", "finetuned"])
    assert f"models/finetuned: val_loss {best['value']:.4f}.\n" in capsys.readouterr().out


# What is printed and written


def test_what_is_printed_is_the_golden_file(tmp_path, monkeypatch):
    space = {"learning_rate": Range(low=1e-5, high=1.0, log=True), "optimiser": Choices(choices=["adamw", "sgd"])}
    study = Study({"inputs_sha256": {"data": "a"}}, tmp_path / "study.json", space, 2, 0, "val_loss")
    rates, losses = (1e-5, 0.9, 0.002, 0.1, 0.01), (0.5, 9.0, 0.25, 0.1, 0.3)
    for rate, loss, state in zip(rates, losses, ("complete", "failed", "complete", "pruned", "complete"), strict=True):
        study.add({"learning_rate": rate, "optimiser": "adamw"}, state, [{"epoch": 0, "val_loss": loss}])
    monkeypatch.chdir(tmp_path)
    shown = [show_study("finetuned", study)]
    folder = tmp_path / "models/finetuned"
    folder.mkdir(parents=True)
    write_table(folder / "history.csv", ["epoch", "val_loss"], [{"epoch": 0, "val_loss": 0.75}])
    for data in ("another", "a"):
        write_json(folder / "model.json", {"inputs_sha256": {"data": data}, "params": {"monitor": "val_loss"}})
        shown.append(show_study("finetuned", study))
    without, of_other_pictures, stored = shown
    assert stored + "\n" == (ROOT / "tests/golden/tune.txt").read_text()
    assert without == of_other_pictures == stored.replace(" The stored model, models/finetuned: val_loss 0.7500.", "")


def test_the_best_are_printed_and_written_and_no_other_byte_of_params_yaml_changes(tuned, capsys):
    before = (tuned / "params.yaml").read_text()
    main(["tune", "finetuned", "--write"])
    output, errors = capsys.readouterr()
    trials = read_json(study_of(tuned))
    best, *others = sorted((trial for trial in trials if trial["state"] == "complete"), key=lambda trial: trial["value"])
    rate, decay = best["params"]["learning_rate"], best["params"]["weight_decay"]
    after = before.replace(", weight_decay: 0.5}", f", weight_decay: {decay}, learning_rate: {rate}}}")
    assert (tuned / "params.yaml").read_text() == after != before
    assert errors.startswith(f"tune finetuned: {TRIALS} trials ")
    table, _, lines, end = output.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == [str(trial["number"]) for trial in [best, *others][:5]]
    assert parse_yaml(lines) == {"models": {"finetuned": best["params"]}}
    assert "git diff params.yaml" in end


def test_what_was_written_is_the_same_study(tuned, capsys):
    main(["tune", "finetuned", "--write"])
    content, written = study_of(tuned).read_bytes(), (tuned / "params.yaml").read_bytes()
    main(["tune", "finetuned", "--write"])
    assert (study_of(tuned).read_bytes(), (tuned / "params.yaml").read_bytes()) == (content, written)
    assert "trial 9" not in capsys.readouterr().err


def test_a_trial_is_a_line_and_an_mlflow_that_is_away_is_reported_once(here, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    main(["tune", "partial", "--trials", "2"])
    trials = read_json(study_of(here, "partial"))
    away, *lines = capsys.readouterr().err.splitlines()
    assert NOBODY in away
    results = [f"val_loss {trial['value']:.4f}" if trial["value"] is not None else "diverged" for trial in trials]
    params = [", ".join(f"{key} {value}" for key, value in trial["params"].items()) for trial in trials]
    assert lines == [f"trial {number} of 2: {results[number - 1]}; {params[number - 1]}" for number in (1, 2)]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    main(["tune", "partial", "--trials", "2"])
    assert len(runs_of_trials()[2]) == 2


# Faults


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["finetune"], "tune finetune: .* finetuned, partial"),
        (["--trials", "0"], "--trials: 0 .* 1"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, fault, here, capsys):
    assert re.fullmatch(fault, fault_of(arguments, capsys))


def fault_of(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    assert end.value.code == 1
    output, errors = capsys.readouterr()
    assert output == ""
    return errors.removesuffix("\n")


@pytest.mark.parametrize("path", ["data/manifest.csv", "data/splits/val", "models/baseline/model.safetensors"])
def test_an_out_that_is_missing_is_one_line(path, here, capsys):
    (here / path).rename(here / "away")
    assert fault_of([], capsys).startswith(f"{path}: does not exist")


def test_params_without_the_section_are_one_line(here, capsys):
    (here / "params.yaml").write_text((here / "params.yaml").read_text().replace(SPACE, ""))
    assert fault_of([], capsys).startswith("params.yaml: tune: ")


def test_a_study_that_another_process_runs_is_one_line(tuned, capsys):
    path = study_of(tuned)
    with FileLock(path.with_suffix(".lock")):
        assert fault_of(["finetuned"], capsys).startswith(f"{path}: another `pipeline tune finetuned` is running")


def test_a_study_of_which_nothing_came_is_one_line(here, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    text = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(text.replace("low: 1.0e-4", "low: 1.0e+30").replace("high: 1.0e+6", "high: 1.0e+35"))
    last = fault_of(["finetuned", "--trials", "1", "--write"], capsys).splitlines()[-1]
    assert re.match("tune finetuned: none of 1 trials .* tune.space", last)
    assert "1.0e+30" in (here / "params.yaml").read_text()


def test_a_fault_of_the_recipe_ends_the_study_with_its_line(here, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    text = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(text.replace("weight_decay: {choices: [0.0, 0.1]}", "stages: {choices: [99]}"))
    assert "stages: 99 are more than the " in fault_of(["partial"], capsys).splitlines()[-1]


def test_more_stages_than_there_are_are_refused_before_the_first_trial(here, capsys):
    text = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(text.replace("weight_decay: {choices: [0.0, 0.1]}", "stages: {low: 1, high: 99, log: false}"))
    assert fault_of(["partial"], capsys).startswith("params.yaml: models: stages: 99 are more than the ")
    assert list((here / ".cache/tune").rglob("*.json")) == []


def test_a_key_of_the_space_decides_nothing_of_the_study_be_it_the_precision(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    text = (here / "params.yaml").read_text()
    text = text.replace("weight_decay: {choices: [0.0, 0.1]}", "precision: {choices: [fp32, bf16]}").replace("1.0e+6", "1.0e-3")
    for precision in ("fp32", "bf16"):
        (here / "params.yaml").write_text(text.replace("regime: finetuned,", f"regime: finetuned, precision: {precision},"))
        main(["tune", "finetuned", "--trials", "1"])
    assert len(list((here / ".cache/tune/finetuned").glob("*.json"))) == 1
