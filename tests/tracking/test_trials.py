"""A study in MLflow: one run, below it one for each trial, apart from the models' runs, and never a twin."""

import pytest
from mlflow import MlflowClient

from pipeline.search.tuning import Choices, Study
from pipeline.tracking import runs as trials
from pipeline.tracking.connection import connect, tracking_uri
from pipeline.tracking.runs import TUNING, live_study

FACTS = {
    "model": "tune finetuned",
    "params": {"epochs": 2, "space": {"learning_rate": {"choices": [0.1, 0.2]}}},
    "inputs_sha256": {"data": "d" * 64, "params": "p" * 64, "code": "c" * 64},
    "hardware": {"device": "cpu", "precision": "fp32", "threads": 2},
}


def curve(*losses):
    return [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses)]


ENDED = [
    ({"learning_rate": 0.1}, "complete", curve(0.9, 0.5, 0.6)),
    ({"learning_rate": 0.2}, "pruned", curve(0.9, 0.8)),
    ({"learning_rate": 0.2}, "failed", curve(0.9)),
]


@pytest.fixture
def study(project):
    """A study without trials in a project with a fresh database."""
    return Study(FACTS, project / "study.json", {"learning_rate": Choices(choices=[0.1, 0.2])}, 3, 0, "val_loss")


def run(study, ended=ENDED):
    with live_study(study) as log:
        for trial in ended:
            study.add(*trial)
            log.bring_up_to_date()


def found(name=TUNING):
    """The client, and the runs of an experiment by their names."""
    client, experiment_id = connect(name)
    runs = client.search_runs([experiment_id])
    assert len({each.info.run_name for each in runs}) == len(runs)
    return client, {each.info.run_name: each for each in runs}


def points(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_each_trial_is_a_run_below_that_of_the_study(study):
    run(study)
    client, runs = found()
    parent = runs.pop("tune finetuned")
    assert {name: (each.info.status, each.data.tags["state"]) for name, each in runs.items()} == {
        "tune finetuned, trial 1": ("FINISHED", "complete"),
        "tune finetuned, trial 2": ("FINISHED", "pruned"),
        "tune finetuned, trial 3": ("FAILED", "failed"),
    }
    assert {each.data.tags["mlflow.parentRunId"] for each in runs.values()} == {parent.info.run_id}
    assert points(client, runs["tune finetuned, trial 1"], "val_loss") == [(0, 0.9), (1, 0.5), (2, 0.6)]
    assert runs["tune finetuned, trial 2"].data.params == {
        "epochs": "2", "learning_rate": "0.2", "device": "cpu", "precision": "fp32", "threads": "2",
    }  # fmt: skip


def test_the_studys_run_tells_the_space_the_best_and_the_value_of_each_trial(study):
    run(study)
    client, runs = found()
    parent = runs["tune finetuned"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.learning_rate.choices"] == "[0.1, 0.2]"
    assert points(client, parent, "best_val_loss") == [(1, 0.5), (2, 0.8)]
    tags = {name: parent.data.tags[name] for name in ("best_trial", "best_learning_rate", "trials", "data_sha256")}
    assert tags == {"best_trial": "1", "best_learning_rate": "0.1", "trials": "3", "data_sha256": "d" * 64}


def test_no_run_is_among_those_of_the_models(study):
    run(study)
    assert found("transfer-pipeline")[1] == {}


def test_telling_of_the_same_trials_again_adds_neither_runs_nor_points(study):
    run(study)
    run(study, [])
    client, runs = found()
    assert len(runs) == 4
    assert points(client, runs["tune finetuned"], "best_val_loss") == [(1, 0.5), (2, 0.8)]
    assert points(client, runs["tune finetuned, trial 1"], "val_loss") == [(0, 0.9), (1, 0.5), (2, 0.6)]


def test_the_study_is_running_while_it_runs_and_killed_where_it_is_interrupted(study):
    with pytest.raises(KeyboardInterrupt), live_study(study) as log:
        study.add(*ENDED[0])
        log.bring_up_to_date()
        assert found()[1]["tune finetuned"].info.status == "RUNNING"
        raise KeyboardInterrupt
    assert found()[1]["tune finetuned"].info.status == "KILLED"
    run(study, ENDED[1:])
    runs = found()[1]
    assert (len(runs), runs["tune finetuned"].info.status) == (4, "FINISHED")


def test_a_study_that_fails_is_closed(study):
    with pytest.raises(ValueError, match=r"^ours$"), live_study(study):
        raise ValueError("ours")
    assert found()[1]["tune finetuned"].info.status == "FAILED"


def test_a_server_that_is_away_is_told_of_once_and_caught_up_with_when_it_is_back(study, monkeypatch, capsys):
    with monkeypatch.context() as away, live_study(study) as log:
        away.setattr(trials, "connect", lambda _: (_ for _ in ()).throw(OSError("away")))
        for trial in ENDED[:2]:
            study.add(*trial)
            log.bring_up_to_date()
        away.undo()
        study.add(*ENDED[2])
        log.bring_up_to_date()
    later = "tuning goes on, the same command brings MLflow up to date later"
    assert capsys.readouterr().err == f"MLflow at {tracking_uri()}: away; {later}\n"
    assert len(found()[1]) == 4


def test_a_trial_that_was_told_of_in_part_is_completed(study, project, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_terminated", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
        run(study, ENDED[:1])
    assert {each.info.status for each in found()[1].values()} == {"RUNNING"}
    assert len(locks(project)) == 2
    run(study, ENDED[1:])
    client, runs = found()
    assert [runs[name].info.status for name in sorted(runs)] == ["FINISHED", "FINISHED", "FINISHED", "FAILED"]
    assert points(client, runs["tune finetuned, trial 1"], "val_loss") == [(0, 0.9), (1, 0.5), (2, 0.6)]
    assert locks(project) == []


def locks(project):
    return [*(project / ".cache/locks/tuning").glob("*/*.lock")]
