"""`tune.space`, and studies: a trial follows from those before it and from the seed alone, and all are in one file."""

import math
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.params import parse_yaml
from pipeline.search.tuning import Choices, Range, Study, read_space
from tests.checkout import ROOT

RANGE = "{low: 1e-5, high: 1e-2, log: true}"


@pytest.fixture(autouse=True)
def inside_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(space, trials="3"):
    Path("params.yaml").write_text(f"tune: {{trials: {trials}, startup_trials: 2, space: {space}}}\n")


def test_a_space_is_ranges_and_choices_in_the_order_of_params_yaml():
    write(f"{{learning_rate: {RANGE}, epochs: {{low: 2, high: 4, log: false}}, clip_norm: {{choices: [null, 1]}}}}")
    space = read_space()
    assert [(key, type(varied).__mro__[1]) for key, varied in space.items()] == [
        ("learning_rate", Range),
        ("epochs", Range),
        ("clip_norm", Choices),
    ]
    assert [varied.model_dump() for varied in space.values()] == [
        {"low": 1e-5, "high": 1e-2, "log": True},
        {"low": 2, "high": 4, "log": False},
        {"choices": [None, 1.0]},
    ]


def test_whole_numbers_are_numbers_where_the_recipe_takes_a_number():
    write("{dropout: {low: 0, high: 0.5, log: false}, learning_rate: {low: 1, high: 2, log: true}, mixup: {choices: [auto, 0]}}")
    values = [value for varied in read_space().values() for value in varied.model_dump().values()]
    assert [type(value) for value in (values[0], values[3], values[4], *values[6])] == [float, float, float, str, float]


@pytest.mark.parametrize(
    ("space", "fault"),
    [
        ("{learning_rat: {choices: [0.1]}}", "learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("{monitor: {choices: [val_loss]}}", "monitor: "),
        ("{learning_rate: {low: 0, high: 0.1, log: true}}", "learning_rate.low: 0 is not 'auto' and is not above 0"),
        ("{learning_rate: {low: 0.1, hgh: 1, log: true}}", "learning_rate.hgh: unknown key; did you mean 'high'?"),
        ("{learning_rate: {low: 0.1, high: 1}}", "learning_rate.log: is missing"),
        ("{learning_rate: {low: auto, high: 1, log: true}}", "learning_rate.low: 'auto' is not a finite number; "),
        ("{learning_rate: {low: 0.1, high: .inf, log: true}}", "learning_rate.high: inf is not a finite number; "),
        ("{flip: {low: false, high: true, log: false}}", "flip.low: False is not a finite number; "),
        ("{weight_decay: {low: 0.2, high: 0.1, log: false}}", "weight_decay.high: 0.1 is not above low, 0.2"),
        ("{weight_decay: {low: 0.1, high: 0.1, log: false}}", "weight_decay.high: 0.1 is not above low, 0.1"),
        ("{weight_decay: {low: 0, high: 0.1, log: true}}", "weight_decay.low: 0.0 has no logarithm; "),
        ("{momentum: {low: 0.5, high: 1.0, log: false}}", "momentum.high: 1.0 is not below 1"),
        ("{dropout: {choices: [0.1, 1.5]}}", "dropout.choices.1: 1.5 is not below 1"),
        ("{learning_rate: {choices: [0.1, .inf]}}", "learning_rate.choices: inf is not a finite number"),
        ("{optimiser: {choices: []}}", "optimiser.choices: [] is refused: "),
        ("{optimiser: {choices: [adamw, lionn]}}", "optimiser.choices.1: 'lionn' is refused: "),
        ("{epochs: {low: 1.5, high: 3, log: false}}", "epochs.low: 1.5 is not 'auto' and is not a whole number"),
    ],
)
def test_a_fault_of_the_space_is_one_line_that_names_the_key(space, fault):
    write(space)
    with pytest.raises(PipelineError) as error:
        read_space()
    assert str(error.value).startswith(f"params.yaml: tune.space.{fault}")


def test_an_empty_space_is_refused_with_all_keys_that_it_may_have():
    write("{}")
    with pytest.raises(PipelineError, match=r"^params\.yaml: tune\.space: .* regime, stages, .*, precision$"):
        read_space()


def test_no_trials_are_refused():
    write(f"{{learning_rate: {RANGE}}}", trials="0")
    with pytest.raises(PipelineError, match=r"tune\.trials: 0 "):
        read_space()


def test_the_space_of_this_project_is_sound():
    assert list(read_space(ROOT / "params.yaml")) == list(parse_yaml((ROOT / "params.yaml").read_text())["tune"]["space"])


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
    """The metrics of a training: the nearer the rate is to 0.01, the lower the loss of each epoch."""
    away = abs(math.log10(params["learning_rate"]) + 2)
    figures = [1.0, *(0.1 + 0.2 * away / epoch for epoch in range(1, 4))]
    return [{"epoch": epoch, monitor: value if monitor == "val_loss" else 1 - value} for epoch, value in enumerate(figures)]


def run(study, count):
    """Run trials until there are `count`."""
    while len(study.trials) < count:
        proposal, history, state = study.propose(), [], "complete"
        for row in curve(proposal.params, study.monitor):
            history.append(row)
            if proposal.is_hopeless(row):
                state = "pruned"
                break
        study.add(proposal.params, state, history)
    return study.trials


def test_proposals_are_in_the_space_and_have_few_digits(begin):
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


def test_the_best_of_the_trials_that_are_complete_is_first_and_of_equal_ones_the_earlier(begin):
    study = begin()
    for state, value in [("complete", 0.5), ("pruned", 0.1), ("complete", 0.3), ("failed", 0.2), ("complete", 0.3)]:
        study.add({}, state, [{"epoch": 0, "val_loss": value}])
    assert [trial.number for trial in study.ranking] == [3, 5, 1]


def test_a_trial_that_diverged_has_no_value_and_the_study_goes_on(begin):
    study = begin()
    run(study, 4)
    assert study.add(study.propose().params, "failed", []).value is None
    assert [trial.number for trial in run(study, 7)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"number": 1}]', '[{"number": "1", "params": {}, "state": "complete"}]'])
def test_a_damaged_file_is_one_line(begin, tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(PipelineError, match=f"{tmp_path}/study.json: is damaged; "):
        begin()
