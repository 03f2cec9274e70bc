"""Bring MLflow up to date from the files: every model's run as the outs say, whatever was there before."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import BASELINE
from pipeline.evaluation.scoring import flat
from pipeline.files import read_json, read_table, sha256_of_file, sha256_of_json
from pipeline.models.artifact import identity, read_facts
from pipeline.params import parse_yaml, read_params
from pipeline.tracking.connection import connect, mendable, one_at_a_time
from pipeline.tracking.logged_model import has_logged_model, log_model, logged_models
from pipeline.tracking.ownership import OwnedByAnother, own
from pipeline.tracking.runs import Row, close_abandoned, create_run, find_runs, flatten, metrics_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Facts = Mapping[str, Any]

_OTHER_STAGES = ("download", "split", "backbone", "embed")


def publish(models: Path, results: Path) -> list[str]:
    """Make each model's run equal to its files, and return a line for each that was not. Raises PipelineError."""
    names = [name for name in (BASELINE, *read_params()["models"]) if (results / name / "scores.json").is_file()]
    if not names:
        raise PipelineError(f"{results}: holds no scores of a model; run `dvc repro` or `dvc checkout`")
    if missing := [path for name in names if not (path := models / name / "model.onnx").exists()]:
        raise PipelineError(f"{missing[0]}: is not there; run `dvc checkout`")
    with mendable():
        client, experiment_id = connect()
        with one_at_a_time():
            close_abandoned(client, experiment_id)
            lines = [_publish_model(client, experiment_id, models / name, results / name) for name in names]
    return [line for line in lines if line]


def _publish_model(client: "MlflowClient", experiment_id: str, model: Path, results: Path) -> str | None:
    facts, scores = _read(model, results / "scores.json")
    try:
        with own(identity(facts)):
            return _publish_run(client, experiment_id, facts, scores, [model, results])
    except OwnedByAnother:
        return f"{facts['model']}: is being trained; publish it when that is done"


def _publish_run(client: "MlflowClient", experiment_id: str, facts: Facts, scores: Facts, paths: Sequence[Path]) -> str | None:
    model = paths[0]
    wanted = _digest([file for path in paths for file in (path.iterdir() if path.is_dir() else [path])])
    run = _the_run(client, experiment_id, facts, model, scores)
    is_there = run is not None and has_logged_model(client, experiment_id, run, facts)
    if run and is_there and run.info.status == "FINISHED" and run.data.tags.get("published_sha256") == wanted:
        return None
    run = run or create_run(client, experiment_id, facts)
    _write_numbers(client, run, facts, scores, model)
    _write_files(client, run.info.run_id, paths)
    if not is_there:
        log_model(run.info.run_id, model, facts)
    client.set_tag(run.info.run_id, "published_sha256", wanted)
    client.set_terminated(run.info.run_id, "FINISHED")
    return f"{facts['model']}: published as run {run.info.run_id}"


def _read(model: Path, scores_json: Path) -> tuple[Facts, Facts]:
    """The facts and the scores of a model. Raises PipelineError where they are not of one and the same file."""
    facts, scores = read_facts(model), read_json(scores_json)
    if scores["model_sha256"] != facts["model_sha256"]:
        raise PipelineError(f"{scores_json}: tells of another model than {model}; run `dvc repro`")
    if sha256_of_file(model / "model.onnx") != facts["model_sha256"]:
        raise PipelineError(f"{model}/model.onnx: is not the file that model.json describes; run `dvc checkout`")
    return facts, scores


def _the_run(client: "MlflowClient", experiment_id: str, facts: Facts, model: Path, scores: Facts) -> "Run | None":
    """The model's run, where it says nothing else than the files. One that does is deleted, and so are empty twins."""
    runs = find_runs(client, experiment_id, identity(facts))
    for twin in runs[1:]:
        if not twin.data.metrics:  # a request to make the run was repeated
            _delete(client, experiment_id, twin)
    run = runs[0] if runs else None
    if run and _contradicts(client, run, facts, model, scores):
        _delete(client, experiment_id, run)
        return None
    return run


def _digest(paths: list[Path]) -> str:
    return sha256_of_json(sorted((path.name, sha256_of_file(path)) for path in paths))


def _wanted_params(facts: Facts) -> dict[str, str]:
    """The model's own params, and those of the stages before and after it as dvc.lock says that they ran."""
    stages = _stages_that_ran()
    ran = (stages[name]["params"]["params.yaml"] for name in (*_OTHER_STAGES, f"evaluate@{facts['model']}") if name in stages)
    others = {key: value for params in ran for key, value in flatten(params).items()}
    wanted = {**others, **flatten(facts["params"]), **facts["hardware"]}
    return {key: re.sub(r"//[^/@\s]*@", "//", str(value)) for key, value in wanted.items()}  # an address without its password


def _stages_that_ran() -> Mapping[str, Any]:
    try:
        lock = parse_yaml(Path("dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError("dvc.lock: is not there; run `dvc repro`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"dvc.lock: is not YAML: {' '.join(str(error).split())}; run `git checkout dvc.lock`") from None
    stages: Mapping[str, Any] = lock["stages"]
    return stages


def _wanted_metrics(model: Path, scores: Facts, start: int) -> list["Metric"]:
    rows: list[Row] = [{name: float(value) for name, value in row.items() if value != ""} for row in read_table(model / "history.csv")]
    test: Row = {"step": 0, **{f"test_{name}": value for name, value in flat(scores["figures"]).items() if value is not None}}
    return [*(metric for row in rows for metric in metrics_of(row, start)), *metrics_of(test, start + 1000 * len(rows))]


def _contradicts(client: "MlflowClient", run: "Run", facts: Facts, model: Path, scores: Facts) -> bool:
    """Whether the run says of anything something else than the files: it can be added to, but not changed."""
    params = _wanted_params(facts)
    if any(params.get(key, value) != value for key, value in run.data.params.items()):
        return True
    wanted = {(metric.key, metric.step, metric.value) for metric in _wanted_metrics(model, scores, run.info.start_time)}
    found = {
        (metric.key, metric.step, metric.value) for key in run.data.metrics for metric in client.get_metric_history(run.info.run_id, key)
    }
    return not found <= wanted


def _write_numbers(client: "MlflowClient", run: "Run", facts: Facts, scores: Facts, model: Path) -> None:
    from mlflow.entities import Param, RunTag

    params = [Param(key, value) for key, value in _wanted_params(facts).items()]
    tags = [RunTag("model_sha256", facts["model_sha256"])]
    client.log_batch(run.info.run_id, _wanted_metrics(model, scores, run.info.start_time), params, tags)


def _write_files(client: "MlflowClient", run_id: str, paths: Sequence[Path]) -> None:
    model, results = paths
    client.log_artifacts(run_id, str(model), f"models/{model.name}")
    client.log_artifacts(run_id, str(results), f"results/{model.name}")


def _delete(client: "MlflowClient", experiment_id: str, run: "Run") -> None:
    for logged in logged_models(client, experiment_id, run):
        client.delete_logged_model(logged.model_id)
    client.delete_run(run.info.run_id)
