"""Values set in params.yaml: in any layout, and no other byte changes."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.params import parse_yaml, set_params, spell


@pytest.fixture(autouse=True)
def inside_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("models:\n  b:\n    kind: x   # b\n\nseed: 0\n", "models:\n  b:\n    kind: x   # b\n  a: {kind: y}\n\nseed: 0\n"),
        ("models:\n  b:\n    list:\n      - 1\n      - 2\n", "models:\n  b:\n    list:\n      - 1\n      - 2\n  a: {kind: y}\n"),
        ("models:\n  b: {kind: x}\n", "models:\n  b: {kind: x}\n  a: {kind: y}\n"),
    ],
)
def test_an_entry_follows_the_last_one_however_that_is_written(before, after):
    Path("params.yaml").write_text(before)
    set_params({"models.a": {"kind": "y"}})
    assert Path("params.yaml").read_text() == after


def after_setting(text, **values):
    Path("params.yaml").write_bytes(text.encode())
    set_params({f"models.a.{key}": value for key, value in values.items()})
    return Path("params.yaml").read_bytes().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("models:\n  a: {rate: auto}   # mine\n", "models:\n  a: {rate: 0.5, new: 2}   # mine\n"),
        ("models:\n  a: {}\n", "models:\n  a: {rate: 0.5, new: 2}\n"),
        ("models: {a: {kind: x, rate: 1,}, b: {rate: 1}}\n", "models: {a: {kind: x, rate: 0.5, new: 2,}, b: {rate: 1}}\n"),
        ("models:\n  a: {kind: x,\n      rate: 1}  # end\n", "models:\n  a: {kind: x,\n      rate: 0.5, new: 2}  # end\n"),
        (
            "models:\n  a:\n    rate: auto   # auto\n    kind: x      # é 🙂\n\n  # b\n  b: {rate: 1}\n",
            "models:\n  a:\n    rate: 0.5   # auto\n    kind: x      # é 🙂\n    new: 2\n\n  # b\n  b: {rate: 1}\n",
        ),
        ("models:\n  a:\n    kind: x", "models:\n  a:\n    kind: x\n    rate: 0.5\n    new: 2"),
        ("models:\r\n  a:\r\n    rate: 1\r\nseed: 0\r\n", "models:\r\n  a:\r\n    rate: 0.5\r\n    new: 2\r\nseed: 0\r\n"),
        ("models:\n  a:\n    rate:\n    kind: x\n", "models:\n  a:\n    rate: 0.5\n    kind: x\n    new: 2\n"),
        ("models:\n  a:\n    kind: [x,\n      y]   # two\n", "models:\n  a:\n    kind: [x,\n      y]   # two\n    rate: 0.5\n    new: 2\n"),
        ("b: {a: {rate: 1}}\nmodels: {a: {rate: 1}}\n", "b: {a: {rate: 1}}\nmodels: {a: {rate: 0.5, new: 2}}\n"),
        ("x: &x {rate: 1}\nmodels: {a: {<<: *x, k: 1}}\n", "x: &x {rate: 1}\nmodels: {a: {<<: *x, k: 1, rate: 0.5, new: 2}}\n"),
    ],
)
def test_a_value_takes_the_place_of_the_old_one_or_follows_the_last_key(before, after):
    assert after_setting(before, rate=0.5, new=2) == after


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {rate: 1}\nmodels: {a: *x, b: *x}\n",
        "x: &x {rate: 1}\nmodels: {a: {<<: *x}, b: *x}\n",
        "models:\n  a: &x\n    rate: 1\n  b: *x\n",
        "models:\n  a:\n    rate: {low: 1}\n    kind: |\n      a\n      b\n  b: {}\n",
    ],
)
def test_what_cannot_be_set_alone_is_refused_and_nothing_changes(text):
    with pytest.raises(PipelineError, match=r"^params\.yaml: models\.a\.rate, models\.a\.new: "):
        after_setting(text, rate=0.5, new=2)
    assert Path("params.yaml").read_text() == text


@pytest.mark.parametrize("text", ["models:\n  b: {}\n", "models:\n  a:\n", "seed: 0\n", "models: [a]\n"])
def test_a_missing_section_is_named(text):
    with pytest.raises(PipelineError, match=r"^params\.yaml: models\.a: is missing$"):
        after_setting(text, rate=0.5)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (1e-05, "1.0e-05"), (1.5e-07, "1.5e-07"), (1e22, "1.0e+22"), (0.01, "0.01"), (-1e-05, "-1.0e-05"), (3, "3"), (True, "true"),
        (None, "null"), ("adamw", "adamw"), ("true", '"true"'), ("12", '"12"'), ("a: b", '"a: b"'),
    ],
)  # fmt: skip
def test_a_value_is_spelled_so_that_it_is_read_back(value, spelled):
    assert spell(value) == spelled
    assert parse_yaml(spelled) == value
