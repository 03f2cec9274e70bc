"""Publish: make MLflow's runs equal to the files, whatever was there before."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.params import model_names
from pipeline.core.stage import import_closure
from pipeline.evaluation.comparison import BASELINE
from pipeline.networks.artifact import identity
from pipeline.networks.onnx_file import data_path
from pipeline.tracking.connection import RunLocked, connect, creation_lock, lock_run, mlflow_errors, tracking_uri
from pipeline.tracking.contents import PUBLISHED, RunContents, contradicts, log_contents, read_contents
from pipeline.tracking.runs import KEY, close_stale_runs, create_run, find_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")  # of the logged model


def publish(data: Path, models: Path, results: Path) -> list[str]:
    """Make each model's run equal to its files, and return a line per model whose run was not. Raises PipelineError."""
    names = [name for name in (BASELINE, *model_names()) if (results / name / "scores.json").is_file()]
    if not names:
        raise PipelineError(f"{results}: contains no scores of a model; run `dvc repro` or `dvc checkout`")
    needed = [data / "manifest.csv", data / "source.json", *(models / name / "model.onnx" for name in names)]
    if missing := [path for path in needed if not path.exists()]:
        raise PipelineError(f"{missing[0]}: does not exist; run `dvc checkout`")
    with mlflow_errors():
        client, experiment_id = connect()
        published = [read_contents(data, models / name, results / name) for name in names]
        with creation_lock():
            close_stale_runs(client, experiment_id)
            lines = [_publish_model(client, experiment_id, contents) for contents in published]
    return [line for line in lines if line]


def _publish_model(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    try:
        with lock_run(identity(contents.facts)):
            return _publish_run(client, experiment_id, contents)
    except RunLocked:
        return f"{contents.facts['model']}: is being trained; publish it when the training has ended"


def _publish_run(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    run = _find_run(client, experiment_id, contents)
    has_model = run is not None and _has_one_logged_model(client, run, contents.facts["model_sha256"])
    if run and has_model and run.info.status == "FINISHED" and run.data.tags.get(PUBLISHED) == contents.digest:
        return None
    run = run or create_run(client, experiment_id, contents.facts)
    log_contents(client, run, contents)
    if not has_model:
        _log_model(run.info.run_id, contents.model_dir, contents.facts)
    client.set_tag(run.info.run_id, PUBLISHED, contents.digest)
    client.set_terminated(run.info.run_id, "FINISHED")
    return f"{contents.facts['model']}: published as run {run.info.run_id}"


def _find_run(client: "MlflowClient", experiment_id: str, contents: RunContents) -> "Run | None":
    """The model's run, if it can be completed. Deletes a run that contradicts the files, and empty twins of a run."""
    runs = find_runs(client, experiment_id, identity(contents.facts))
    for twin in runs[1:]:
        if not twin.data.metrics:  # MLflow's client repeated the request to create the run
            _delete(client, twin)
    if runs and contradicts(client, runs[0], contents):
        _delete(client, runs[0])
        return None
    return runs[0] if runs else None


def _delete(client: "MlflowClient", run: "Run") -> None:
    for logged in _logged_models(client, run):
        client.delete_logged_model(logged.model_id)
    client.delete_run(run.info.run_id)


def _has_one_logged_model(client: "MlflowClient", run: "Run", model_sha256: str) -> bool:
    """Whether the run has a complete logged model of that file. Deletes every other one: those of interrupted publications, twins."""
    found = _logged_models(client, run)
    complete = [logged for logged in found if logged.status == "READY" and logged.tags.get("model_sha256") == model_sha256]
    for logged in found:
        if logged not in complete[:1]:
            client.delete_logged_model(logged.model_id)
    return bool(complete)


def _logged_models(client: "MlflowClient", run: "Run") -> Sequence["LoggedModel"]:
    """The logged models of a run, complete or not."""
    return client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")


def _log_model(run_id: str, model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Log model.onnx as a pyfunc."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    probabilities = ColSpec(Array(DataType.double), "probabilities")
    answer = Schema([ColSpec(DataType.string, "predicted"), ColSpec(DataType.double, "probability"), probabilities])
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "picture")]), answer)
    root, graph = Path(__file__).parent.parent.parent, model_dir / "model.onnx"
    mlflow.set_tracking_uri(tracking_uri())
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")  # the signature is stated, not inferred
        # Whoever loads the model need not have this project: the modules that read a picture and run the graph go with it.
        for name in ("pipeline/__init__.py", *import_closure("pipeline.serving.predictor")):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, Path(folder) / name)
        mlflow.pyfunc.log_model(
            name=facts["model"],
            python_model=str(root / "pipeline/serving/pyfunc.py"),
            artifacts={"model": str(graph), **({"tensors": str(data_path(graph))} if data_path(graph).is_file() else {})},
            code_paths=[str(Path(folder) / "pipeline")],
            signature=signature,
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            tags={"model_sha256": facts["model_sha256"], KEY: identity(facts)},
        )
