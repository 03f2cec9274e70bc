"""A stored model as MLflow serves it: logged once for its run."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.artifact import identity
from pipeline.models.session import data_path
from pipeline.provenance import import_closure
from pipeline.tracking.connection import tracking_uri
from pipeline.tracking.runs import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


def has_logged_model(client: "MlflowClient", experiment_id: str, run: "Run", facts: Mapping[str, Any]) -> bool:
    """Whether the run has its logged model. What a publication that broke off left of others is deleted."""
    found = logged_models(client, experiment_id, run)
    whole = [logged for logged in found if logged.status == "READY" and logged.tags.get("model_sha256") == facts["model_sha256"]]
    for logged in found:
        if logged not in whole[:1]:
            client.delete_logged_model(logged.model_id)
    return bool(whole)


def logged_models(client: "MlflowClient", experiment_id: str, run: "Run") -> Sequence["LoggedModel"]:
    """What MLflow lists as logged models of a run, whole or not."""
    return client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'")


def log_model(run_id: str, model: Path, facts: Mapping[str, Any]) -> None:
    """Log the stored file as a pyfunc that carries the few modules of ours that it needs."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    probabilities = ColSpec(Array(DataType.double), "probabilities")
    answer = Schema([ColSpec(DataType.string, "predicted"), ColSpec(DataType.double, "probability"), probabilities])
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "picture")]), answer)
    root, graph = Path(__file__).parent.parent.parent, model / "model.onnx"
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
            artifacts={"model": str(graph), **({"tensors": str(data_path(graph))} if data_path(graph).is_file() else {})},
            code_paths=[str(Path(folder) / "pipeline")],
            signature=signature,
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            tags={"model_sha256": facts["model_sha256"], KEY: identity(facts)},
        )
