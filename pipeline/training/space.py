"""What `pipeline tune` varies: the section `tune` of params.yaml, its bounds and choices of the types that the recipe wants."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, create_model

from pipeline.errors import PipelineError
from pipeline.params import Section, nearest, read_section
from pipeline.training.settings import Settings

_JUDGE = "monitor"
_TUNABLE = [key for key in Settings.model_fields if key not in ("seed", "threads", _JUDGE)]


class Params(Section):  # section `tune` of params.yaml
    trials: PositiveInt
    startup_trials: PositiveInt  # drawn at random; none of them is pruned
    space: dict[str, dict[str, Any]]


class Range(Section):
    """All numbers from `low` to `high`, or, with `log`, all orders of magnitude alike; whole numbers where the ends are."""

    low: Any
    high: Any
    log: bool


class Choices(Section):
    """One of several values."""

    choices: list[Any]


Space = dict[str, Range | Choices]


def read_space(path: Path = Path("params.yaml")) -> Space:
    """What each key of `tune.space` may be. Raises PipelineError where it is no key of the recipe, or a bound no value of it."""
    entries = read_section("tune", Params, path).space
    if not entries:
        raise PipelineError(f"{path}: tune.space: names nothing to vary; known are {', '.join(_TUNABLE)}")
    return {key: _read_entry(key, entry, path) for key, entry in entries.items()}


def _read_entry(key: str, entry: dict[str, Any], path: Path) -> Range | Choices:
    where = f"{path}: tune.space.{key}"
    if key == _JUDGE:
        raise PipelineError(f"{where}: tells which trial is the best; leave it out")
    if key not in _TUNABLE:
        raise PipelineError(f"{where}: unknown key{nearest(key, _TUNABLE)}")
    kind: Any = Settings.model_fields[key].rebuild_annotation()
    if "choices" in entry:
        several = Annotated[list[kind], Field(min_length=1)]
        choices = read_section(f"tune.space.{key}", create_model("Choices", __base__=Choices, choices=(several, ...)), path)
        if endless := [value for value in choices.choices if isinstance(value, float) and not math.isfinite(value)]:
            raise PipelineError(f"{where}.choices: {endless[0]} is not a finite number")
        return choices
    found = read_section(f"tune.space.{key}", create_model("Range", __base__=Range, low=(kind, ...), high=(kind, ...)), path)
    _check_range(found, where)
    return found


def _check_range(found: Range, where: str) -> None:
    for end in ("low", "high"):
        value = getattr(found, end)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise PipelineError(f"{where}.{end}: {value!r} is not a finite number; list what to try as choices: […]")
    if found.low >= found.high:
        raise PipelineError(f"{where}.high: {found.high} is not above low, {found.low}")
    if found.log and found.low <= 0:
        raise PipelineError(f"{where}.low: {found.low} has no logarithm; say log: false, or begin above 0")
