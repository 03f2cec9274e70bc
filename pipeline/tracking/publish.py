"""Bring MLflow up to date from the files: every model's run as the outs say, whatever was there before."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import BASELINE
from pipeline.files import read_json, read_table, sha256_of_file, sha256_of_json
from pipeline.models.artifact import identity, read_facts
from pipeline.params import parse_yaml, read_params
from pipeline.provenance import import_closure
from pipeline.tracking.runs import KEY, Row, connect, create_run, find_run, flatten, metrics_of, one_at_a_time, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run

_OTHER_STAGES = ("download", "split", "backbone", "embed")
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


def publish(models: Path, results: Path, metrics: Path) -> list[str]:
    """Make each model's run equal to its files, and return a line for each that was not. Raises PipelineError."""
    from mlflow.exceptions import MlflowException

    names = [name for name in (BASELINE, *read_params()["models"]) if (metrics / f"{name}.json").is_file()]
    if not names:
        raise PipelineError(f"{metrics}: holds no scores of a model; run `dvc repro`")
    if missing := [path for name in names for path in (models / name / "model.onnx", results / name) if not path.exists()]:
        raise PipelineError(f"{missing[0]}: is not there; run `dvc checkout`")
    try:
        client, experiment_id = connect()
        with one_at_a_time():
            lines = [_publish_model(client, experiment_id, models / name, results / name, metrics / f"{name}.json") for name in names]
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"MLflow at {re.sub('//[^/@]*@', '//', tracking_uri())}: {reason}; start the server, then run `pipeline publish`"
        ) from None
    return [line for line in lines if line]


def _publish_model(client: "MlflowClient", experiment_id: str, model: Path, results: Path, metrics_json: Path) -> str | None:
    facts, scores = read_facts(model), read_json(metrics_json)
    if scores["model_sha256"] != facts["model_sha256"]:
        raise PipelineError(f"{metrics_json}: tells of another model than {model}; run `dvc repro`")
    if sha256_of_file(model / "model.onnx") != facts["model_sha256"]:
        raise PipelineError(f"{model}/model.onnx: is not the file that model.json describes; run `dvc checkout`")
    run = find_run(client, experiment_id, identity(facts))
    if run and _contradicts(client, run, facts, model, scores):
        _delete(client, experiment_id, run)
        run = None
    before = run and run.data.tags.get("published_sha256")
    wanted = _digest([*model.iterdir(), *results.iterdir(), metrics_json])
    if run and before == wanted and run.info.status == "FINISHED" and _logged_model(client, experiment_id, run, facts):
        return None
    run = run or create_run(client, experiment_id, facts)
    _write_numbers(client, run, facts, scores, model)
    _write_files(client, run.info.run_id, model, results, metrics_json)
    if not _logged_model(client, experiment_id, run, facts):
        _log_model(run.info.run_id, model, facts)
    client.set_tag(run.info.run_id, "published_sha256", wanted)
    client.set_terminated(run.info.run_id, "FINISHED")
    return f"{facts['model']}: published as run {run.info.run_id}"


def _digest(paths: list[Path]) -> str:
    return sha256_of_json(sorted((path.name, sha256_of_file(path)) for path in paths))


def _wanted_params(facts: Mapping[str, Any]) -> dict[str, str]:
    """The model's own params, and those of the stages before and after it as dvc.lock says that they ran."""
    stages = parse_yaml(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    ran = (stages[name]["params"]["params.yaml"] for name in (*_OTHER_STAGES, f"evaluate@{facts['model']}") if name in stages)
    others = {key: value for params in ran for key, value in flatten(params).items()}
    return {key: str(value) for key, value in {**others, **flatten(facts["params"]), **facts["hardware"]}.items()}


def _wanted_metrics(model: Path, scores: Mapping[str, Any], start: int) -> list["Metric"]:
    rows: list[Row] = [{name: float(value) for name, value in row.items() if value != ""} for row in read_table(model / "history.csv")]
    test: Row = {"step": 0, **{f"test_{name}": scores[name] for name in scores if _is_figure(name, scores[name])}}
    return [*(metric for row in rows for metric in metrics_of(row, start)), *metrics_of(test, start + 1000 * len(rows))]


def _is_figure(name: str, value: object) -> bool:
    """Whether an entry of a metrics file says how well the model did, not on what."""
    return isinstance(value, int | float) and name not in ("confidence", "test_pictures")


def _contradicts(client: "MlflowClient", run: "Run", facts: Mapping[str, Any], model: Path, scores: Mapping[str, Any]) -> bool:
    """Whether the run says of anything something else than the files: it can be added to, but not changed."""
    params = _wanted_params(facts)
    if any(params.get(key, value) != value for key, value in run.data.params.items()):
        return True
    wanted = {(metric.key, metric.step, metric.value) for metric in _wanted_metrics(model, scores, run.info.start_time)}
    found = {
        (metric.key, metric.step, metric.value) for key in run.data.metrics for metric in client.get_metric_history(run.info.run_id, key)
    }
    return not found <= wanted


def _write_numbers(client: "MlflowClient", run: "Run", facts: Mapping[str, Any], scores: Mapping[str, Any], model: Path) -> None:
    from mlflow.entities import Param, RunTag

    params = [Param(key, value) for key, value in _wanted_params(facts).items()]
    tags = [RunTag("model_sha256", facts["model_sha256"])]
    client.log_batch(run.info.run_id, _wanted_metrics(model, scores, run.info.start_time), params, tags)


def _write_files(client: "MlflowClient", run_id: str, model: Path, results: Path, metrics_json: Path) -> None:
    client.log_artifacts(run_id, str(model), f"models/{model.name}")
    client.log_artifacts(run_id, str(results), f"results/{model.name}")
    client.log_artifact(run_id, str(metrics_json), "metrics")


def _delete(client: "MlflowClient", experiment_id: str, run: "Run") -> None:
    for logged in client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'"):
        client.delete_logged_model(logged.model_id)
    client.delete_run(run.info.run_id)


def _logged_model(client: "MlflowClient", experiment_id: str, run: "Run", facts: Mapping[str, Any]) -> "LoggedModel | None":
    for logged in client.search_logged_models([experiment_id], f"tags.model_sha256 = '{facts['model_sha256']}'"):
        if logged.source_run_id == run.info.run_id and logged.status == "READY":
            return logged
    return None


def _log_model(run_id: str, model: Path, facts: Mapping[str, Any]) -> None:
    """Log the stored file as a pyfunc that carries the few modules of ours that it needs."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    probabilities = ColSpec(Array(DataType.double), "probabilities")
    answer = Schema([ColSpec(DataType.string, "predicted"), ColSpec(DataType.double, "probability"), probabilities])
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "picture")]), answer)
    root = Path(__file__).parent.parent.parent
    mlflow.set_tracking_uri(tracking_uri())
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")  # the signature is stated, not guessed
        for name in import_closure("pipeline.serving.predictor"):
            for path in (Path(name), *(parent / "__init__.py" for parent in Path(name).parents if parent.name)):
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, Path(folder) / path)
        mlflow.pyfunc.log_model(
            name=facts["model"],
            python_model=str(root / "pipeline/serving/pyfunc.py"),
            artifacts={"model": str(model / "model.onnx")},
            code_paths=[str(Path(folder) / "pipeline")],
            signature=signature,
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            tags={"model_sha256": facts["model_sha256"], KEY: identity(facts)},
        )
