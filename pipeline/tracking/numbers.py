"""Params and metrics of a run: what the files say, within what MLflow takes, and whether a run says otherwise."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import PipelineError
from pipeline.evaluation.scoring import flat
from pipeline.files import read_table
from pipeline.params import parse_yaml
from pipeline.tracking.runs import Row, flatten, metrics_of, params_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_OTHER_STAGES = ("download", "split", "backbone", "embed")
_KEY_LENGTH = 250  # of a metric, the longest that MLflow takes


def wanted_params(facts: Mapping[str, Any]) -> dict[str, str]:
    """The model's own params, and those of the stages before and after it as dvc.lock says that they ran. Raises PipelineError."""
    stages = _stages_that_ran()
    evaluated = [name for name in stages if name.startswith("evaluate") and name.endswith(f"@{facts['model']}")]
    ran = (stages[name]["params"]["params.yaml"] for name in (*_OTHER_STAGES, *evaluated) if name in stages)
    others = {key: value for params in ran for key, value in flatten(params).items()}
    return params_of({**others, **flatten(facts["params"]), **facts["hardware"]})


def figures_of(scores: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of scores.json that is defined, with the ends of its interval as `<name>_low` and `<name>_high`."""
    return {name: value for name, value in flat(scores["figures"]).items() if value is not None}


def wanted_metrics(history: Path, figures: Mapping[str, float], start: int) -> list["Metric"]:
    """The curves of a history, a point a row, and the figures on the test pictures as `test_<name>` at step 0."""
    rows: list[Row] = [{name: float(value) for name, value in row.items() if value != ""} for row in read_table(history)]
    test: Row = {"step": 0, **{_metric_key(f"test_{name}"): value for name, value in figures.items()}}
    return [*(metric for row in rows for metric in metrics_of(row, start)), *metrics_of(test, start + 1000 * len(rows))]


def contradicts_numbers(client: "MlflowClient", run: "Run", params: Mapping[str, str], metrics: list["Metric"]) -> bool:
    """Whether the run says of any number something else: it can be added to, but not changed."""
    if any(params.get(key, value) != value for key, value in run.data.params.items()):
        return True
    wanted = {(metric.key, metric.step, metric.value) for metric in metrics}
    found = {
        (metric.key, metric.step, metric.value) for key in run.data.metrics for metric in client.get_metric_history(run.info.run_id, key)
    }
    return not found <= wanted


def _metric_key(name: str) -> str:
    return re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII)[:_KEY_LENGTH]


def _stages_that_ran() -> Mapping[str, Any]:
    try:
        lock = parse_yaml(Path("dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError("dvc.lock: is not there; run `dvc repro`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"dvc.lock: is not YAML: {' '.join(str(error).split())}; run `git checkout dvc.lock`") from None
    stages: Mapping[str, Any] = lock["stages"]
    return stages
