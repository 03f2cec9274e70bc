"""The text on a run's page: what the model is, how well it did, what changed since the last one of its name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PUBLISHED = "published_sha256"  # the tag that a whole publication ends with

_LOOKED_AT, _FIGURES, _CHANGES, _WORD = 50, 12, 20, 60  # runs, rows, lines, characters: MLflow takes 8,000 in all


def predecessor(client: "MlflowClient", experiment_id: str, run: "Run") -> "Run | None":
    """The published run of the same name that began last before this one: the same one whenever it is asked for."""
    query = f"attributes.status = 'FINISHED' and attributes.start_time < {run.info.start_time}"
    found = client.search_runs([experiment_id], query, max_results=_LOOKED_AT, order_by=["attributes.start_time DESC"])
    return next((other for other in found if other.info.run_name == run.info.run_name and PUBLISHED in other.data.tags), None)


def describe_run(facts: Mapping[str, Any], params: Mapping[str, str], scores: Mapping[str, Any], figures: Mapping[str, float],
                 before: "Run | None") -> str:  # fmt: skip
    """Markdown of bounded length. `figures`: names and numbers, an interval as `<name>_low` and `<name>_high`."""
    old = {name: before.data.metrics.get(f"test_{name}") for name in figures} if before else {}
    lines = [
        f"{_code(facts['model'])}, {len(facts['class_names'])} classes, scored on {scores['test_pictures']} test pictures; "
        f"intervals of {100 * scores['confidence']:g} %.",
        "",
        f"| figure | value | interval |{' before | change |' * bool(before)}",
        f"| --- | --- | --- |{' --- | --- |' * bool(before)}",
        *(_row(name, figures, old.get(name)) for name in figures if f"{name}_low" in figures),
    ][: 4 + _FIGURES]
    return "\n".join([*lines, "", *_difference(facts, params, before)])


def _difference(facts: Mapping[str, Any], params: Mapping[str, str], before: "Run | None") -> list[str]:
    if before is None:
        return ["The first published run of this name."]
    run = _code(before.info.run_id)
    changes = [*_changed_params(before.data.params, params), *_changed_inputs(before.data.tags, facts["inputs_sha256"])]
    if not changes:
        return [f"No param and no input differs from run {run}."]
    more = [f"- and {len(changes) - _CHANGES} more"] if len(changes) > _CHANGES else []
    return [f"Changed since run {run}:", "", *changes[:_CHANGES], *more]


def _row(name: str, figures: Mapping[str, float], old: float | None) -> str:
    value, low, high = figures[name], figures[f"{name}_low"], figures[f"{name}_high"]
    then = "" if old is None else f" {old:.3f} | {value - old:+.3f} |"
    return f"| {_code(name)} | {value:.3f} | {low:.3f} to {high:.3f} |{then}"


def _changed_params(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    return [f"- {_code(name)}: {_code(old.get(name, 'not there'))} → {_code(new.get(name, 'not there'))}" for name in names]


def _changed_inputs(tags: Mapping[str, str], sums: Mapping[str, str]) -> list[str]:
    """The sums of data, code and other inputs; that of the params is left out, since they are told one by one."""
    names = sorted(name for name in sums if name != "params" and tags.get(f"{name}_sha256") != sums[name])
    return [f"- {_code(name)}: {_code(tags.get(f'{name}_sha256', 'not there')[:12])} → {_code(sums[name][:12])}" for name in names]


def _code(text: str) -> str:
    """A text in which nothing is markup, of one line and bounded length."""
    word = " ".join(text.replace("`", "'").replace("|", "¦").split())
    return f"`{word if len(word) <= _WORD else word[: _WORD - 1] + '…'}`"
