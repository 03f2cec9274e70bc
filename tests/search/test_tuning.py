"""The section `tune` of params.yaml: what may be varied, and how each fault of it is told."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.params import parse_yaml
from pipeline.search.tuning import Choices, Range, read_space

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
        ("{monitor: {choices: [val_loss]}}", "monitor: tells which trial is the best; leave it out"),
        ("{learning_rate: {low: 0, high: 0.1, log: true}}", "learning_rate.low: 0 is not 'auto' and is not above 0"),
        ("{learning_rate: {low: 0.1, hgh: 1, log: true}}", "learning_rate.hgh: unknown key; did you mean 'high'?"),
        ("{learning_rate: {low: 0.1, high: 1}}", "learning_rate.log: is missing"),
        (
            "{learning_rate: {low: auto, high: 1, log: true}}",
            "learning_rate.low: 'auto' is not a finite number; list what to try as choices: […]",
        ),
        (
            "{learning_rate: {low: 0.1, high: .inf, log: true}}",
            "learning_rate.high: inf is not a finite number; list what to try as choices: […]",
        ),
        ("{flip: {low: false, high: true, log: false}}", "flip.low: False is not a finite number; list what to try as choices: […]"),
        ("{weight_decay: {low: 0.2, high: 0.1, log: false}}", "weight_decay.high: 0.1 is not above low, 0.2"),
        ("{weight_decay: {low: 0.1, high: 0.1, log: false}}", "weight_decay.high: 0.1 is not above low, 0.1"),
        ("{weight_decay: {low: 0, high: 0.1, log: true}}", "weight_decay.low: 0.0 has no logarithm; say log: false, or begin above 0"),
        ("{momentum: {low: 0.5, high: 1.0, log: false}}", "momentum.high: 1.0 is not below 1"),
        ("{dropout: {choices: [0.1, 1.5]}}", "dropout.choices.1: 1.5 is not below 1"),
        ("{learning_rate: {choices: [0.1, .inf]}}", "learning_rate.choices: inf is not a finite number"),
        ("{optimiser: {choices: []}}", "optimiser.choices: [] is refused: List should have at least 1 item after validation, not 0"),
        ("{optimiser: {choices: [adamw, lion]}}", "optimiser.choices.1: 'lion' is not 'adamw', 'adam' or 'sgd'"),
        ("{epochs: {low: 1.5, high: 3, log: false}}", "epochs.low: 1.5 is not 'auto' and is not a whole number"),
    ],
)
def test_a_fault_of_the_space_is_one_line_that_names_the_key(space, fault):
    write(space)
    with pytest.raises(PipelineError) as error:
        read_space()
    assert str(error.value) == f"params.yaml: tune.space.{fault}"


def test_a_space_that_names_nothing_is_told_what_it_may_name():
    write("{}")
    with pytest.raises(PipelineError, match=r"^params\.yaml: tune\.space: names nothing to vary; known are regime, stages, .*, precision$"):
        read_space()


def test_no_trials_are_refused():
    write(f"{{learning_rate: {RANGE}}}", trials="0")
    with pytest.raises(PipelineError) as error:
        read_space()
    assert str(error.value) == "params.yaml: tune.trials: 0 is not above 0"


def test_the_space_of_this_project_is_sound(monkeypatch):
    root = Path(__file__).parent.parent.parent
    assert list(read_space(root / "params.yaml")) == list(parse_yaml((root / "params.yaml").read_text())["tune"]["space"])
