"""A study: its trials follow from those before and from the seed alone, and are kept in one file."""

import math

import pytest

from pipeline.core.errors import PipelineError
from pipeline.search.tuning import Choices, Range, Study

SPACE = {
    "learning_rate": Range(low=1e-5, high=1.0, log=True),
    "epochs": Range(low=2, high=9, log=False),
    "optimiser": Choices(choices=["adamw", "sgd"]),
}


@pytest.fixture
def begin(tmp_path):
    """Open a study of the folder, changed."""

    def open_study(name="study", seed=0, monitor="val_loss", startup_trials=3, space=SPACE):
        return Study({"model": "tune small"}, tmp_path / f"{name}.json", space, startup_trials, seed, monitor)

    return open_study


def curve(params, monitor="val_loss"):
    """What a training might give: the nearer the rate is to 0.01, the lower the loss of each epoch."""
    away = abs(math.log10(params["learning_rate"]) + 2)
    figures = [1.0, *(0.1 + 0.2 * away / epoch for epoch in range(1, 4))]
    return [{"epoch": epoch, monitor: value if monitor == "val_loss" else 1 - value} for epoch, value in enumerate(figures)]


def run(study, count):
    """Run trials until there are so many."""
    while len(study.trials) < count:
        proposal, history, state = study.propose(), [], "complete"
        for row in curve(proposal.params, study.monitor):
            history.append(row)
            if proposal.is_hopeless(row):
                state = "pruned"
                break
        study.add(proposal.params, state, history)
    return study.trials


def test_proposals_lie_in_the_space_and_have_few_digits(begin):
    for trial in run(begin(), 20):
        assert list(trial.params) == list(SPACE)
        assert 1e-5 <= trial.params["learning_rate"] <= 1.0
        assert trial.params["learning_rate"] == float(f"{trial.params['learning_rate']:.4g}")
        assert type(trial.params["epochs"]) is int
        assert 2 <= trial.params["epochs"] <= 9
        assert trial.params["optimiser"] in ("adamw", "sgd")


def test_a_rounded_proposal_does_not_leave_its_range(begin):
    space = {"learning_rate": Range(low=0.123451, high=0.123459, log=False)}
    assert all(0.123451 <= trial.params["learning_rate"] <= 0.123459 for trial in run(begin(space=space), 6))


def test_a_study_opened_anew_after_each_trial_is_the_same_to_the_byte(begin, tmp_path):
    run(begin("at once"), 15)
    for count in range(1, 16):
        run(begin("in parts"), count)
    assert (tmp_path / "in parts.json").read_bytes() == (tmp_path / "at once.json").read_bytes()


def test_a_proposal_that_was_not_run_is_made_again(begin):
    study = begin()
    run(study, 5)
    assert study.propose().params == study.propose().params == begin().propose().params


def test_another_seed_is_other_trials(begin):
    params = [[trial.params for trial in run(begin(f"seed {seed}", seed), 4)] for seed in (0, 1)]
    assert all(one != other for one, other in zip(*params, strict=True))


def test_later_trials_learn_from_earlier_ones_which_random_ones_do_not(begin):
    space = {"learning_rate": SPACE["learning_rate"]}
    studies = [begin(f"{startup}", startup_trials=startup, space=space) for startup in (3, 30)]
    learned, random = (sum(abs(math.log10(trial.params["learning_rate"]) + 2) for trial in run(study, 30)[10:]) for study in studies)
    assert learned < random * 0.75


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_what_is_worse_than_the_median_at_an_epoch_is_pruned_there(begin, monitor):
    trials = run(begin(monitor=monitor), 12)
    assert {trial.state for trial in trials[:3]} == {"complete"}
    better = min if monitor == "val_loss" else max
    for number, trial in enumerate(trials[3:], start=3):
        complete = [other.history for other in trials[:number] if other.state == "complete"]
        worst = [better(row[monitor] for row in trial.history[: epoch + 1]) for epoch in range(len(trial.history))]
        medians = [sorted(history[epoch][monitor] for history in complete) for epoch in range(len(trial.history))]
        middles = [(values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2 for values in medians]
        is_worse = [(value > middle) if monitor == "val_loss" else (value < middle) for value, middle in zip(worst, middles, strict=True)]
        assert is_worse[1:-1] == [False] * (len(trial.history) - 2)
        assert is_worse[-1] == (trial.state == "pruned")
    assert "pruned" in {trial.state for trial in trials}


@pytest.mark.parametrize(("monitor", "best"), [("val_loss", 0.25), ("val_accuracy", 0.75)])
def test_the_value_of_a_trial_is_that_of_its_best_epoch(begin, monitor, best):
    history = [{"epoch": epoch, monitor: value} for epoch, value in enumerate((0.5, best, 0.5))]
    assert begin(monitor=monitor).add({"learning_rate": 0.1}, "complete", history).value == best


def test_the_best_of_the_trials_that_came_to_their_end_is_first_and_of_equal_ones_the_earlier(begin):
    study = begin()
    for state, value in [("complete", 0.5), ("pruned", 0.1), ("complete", 0.3), ("failed", 0.2), ("complete", 0.3)]:
        study.add({}, state, [{"epoch": 0, "val_loss": value}])
    assert [trial.number for trial in study.ranking] == [3, 5, 1]


def test_a_trial_that_broke_down_has_no_value_and_the_study_goes_on(begin):
    study = begin()
    run(study, 4)
    assert study.add(study.propose().params, "failed", []).value is None
    assert [trial.number for trial in run(study, 7)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"number": 1}]', '[{"number": "1", "params": {}, "state": "complete"}]'])
def test_a_damaged_file_is_one_line(begin, tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(PipelineError) as error:
        begin()
    assert str(error.value) == f"{tmp_path}/study.json: is damaged; remove it, and the study begins anew"
