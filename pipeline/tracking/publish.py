"""Publish: bring MLflow up to date from the files."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir, read_json, sha256_of_file, sha256_of_json
from pipeline.core.params import model_names
from pipeline.core.stage import import_closure
from pipeline.evaluation.comparison import BASELINE
from pipeline.networks.artifact import identity, read_facts
from pipeline.networks.onnx_file import data_path
from pipeline.tracking.connection import OwnedByAnother, connect, mendable, one_at_a_time, own, tracking_uri
from pipeline.tracking.contents import (
    PUBLISHED,
    TAGS,
    contradicts_files,
    contradicts_inputs,
    contradicts_numbers,
    describe_run,
    figures_of,
    log_files,
    predecessor,
    run_inputs,
    wanted_metrics,
    wanted_params,
)
from pipeline.tracking.runs import KEY, close_abandoned, create_run, find_runs, log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run

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


_EDITION = 2  # of what a publication holds: raised where that changes, so that runs of before are completed


@dataclass(frozen=True)
class _Model:
    """What the files say of one model."""

    folder: Path
    results: Path
    facts: Mapping[str, Any]
    scores: Mapping[str, Any]
    params: Mapping[str, str]
    inputs: list["DatasetInput"]

    @property
    def figures(self) -> Mapping[str, float]:
        """The numbers to log, by their names."""
        return figures_of(self.scores)

    @property
    def digest(self) -> str:
        """One sum over all that is published."""
        paths = [*self.folder.rglob("*"), *self.results.rglob("*")]
        sums = sorted((path.name, sha256_of_file(path)) for path in paths if path.is_file())
        return sha256_of_json([_EDITION, self.params, [entry.dataset.digest for entry in self.inputs], sums])


def publish(data: Path, models: Path, results: Path) -> list[str]:
    """Make each model's run equal to its files, and return a line for each that was not. Raises PipelineError."""
    names = [name for name in (BASELINE, *model_names()) if (results / name / "scores.json").is_file()]
    if not names:
        raise PipelineError(f"{results}: holds no scores of a model; run `dvc repro` or `dvc checkout`")
    wanted = [data / "manifest.csv", data / "source.json", *(models / name / "model.onnx" for name in names)]
    if missing := [path for path in wanted if not path.exists()]:
        raise PipelineError(f"{missing[0]}: is not there; run `dvc checkout`")
    with mendable():
        client, experiment_id = connect()
        found = [_read(data, models / name, results / name) for name in names]
        with one_at_a_time():
            close_abandoned(client, experiment_id)
            lines = [_publish_model(client, experiment_id, model) for model in found]
    return [line for line in lines if line]


def _read(data: Path, folder: Path, results: Path) -> _Model:
    """What the files say. Raises PipelineError where they are not of one and the same model."""
    facts, scores = read_facts(folder), read_json(results / "scores.json")
    if scores["model_sha256"] != facts["model_sha256"]:
        raise PipelineError(f"{results}/scores.json: tells of another model than {folder}; run `dvc repro`")
    if sha256_of_file(folder / "model.onnx") != facts["model_sha256"]:
        raise PipelineError(f"{folder}/model.onnx: is not the file that model.json describes; run `dvc checkout`")
    manifest = data / "manifest.csv"
    if sha256_of_file(manifest) != facts["inputs_sha256"]["data"]:
        raise PipelineError(f"{manifest}: is not the table that {folder} was trained by; run `dvc repro`")
    return _Model(folder, results, facts, scores, wanted_params(facts), run_inputs(manifest, data / "source.json"))


def _publish_model(client: "MlflowClient", experiment_id: str, model: _Model) -> str | None:
    try:
        with own(identity(model.facts)):
            return _publish_run(client, experiment_id, model)
    except OwnedByAnother:
        return f"{model.facts['model']}: is being trained; publish it when that is done"


def _publish_run(client: "MlflowClient", experiment_id: str, model: _Model) -> str | None:
    run = _the_run(client, experiment_id, model)
    is_there = run is not None and has_logged_model(client, experiment_id, run, model.facts)
    if run and is_there and run.info.status == "FINISHED" and run.data.tags.get(PUBLISHED) == model.digest:
        return None
    run = run or create_run(client, experiment_id, model.facts)
    _write(client, experiment_id, run, model)
    if not is_there:
        log_model(run.info.run_id, model.folder, model.facts)
    client.set_tag(run.info.run_id, PUBLISHED, model.digest)
    client.set_terminated(run.info.run_id, "FINISHED")
    return f"{model.facts['model']}: published as run {run.info.run_id}"


def _the_run(client: "MlflowClient", experiment_id: str, model: _Model) -> "Run | None":
    """The model's run, where it says nothing else than the files. One that does is deleted, and so are empty twins."""
    runs = find_runs(client, experiment_id, identity(model.facts))
    for twin in runs[1:]:
        if not twin.data.metrics:  # a request to make the run was repeated
            _delete(client, experiment_id, twin)
    run = runs[0] if runs else None
    if run and _contradicts(client, run, model):
        _delete(client, experiment_id, run)
        return None
    return run


def _contradicts(client: "MlflowClient", run: "Run", model: _Model) -> bool:
    metrics = wanted_metrics(model.folder / "history.csv", model.figures, run.info.start_time)
    return (
        contradicts_numbers(client, run, model.params, metrics)
        or contradicts_inputs(run, model.inputs)
        or contradicts_files(client, run, model.results)
    )


def _write(client: "MlflowClient", experiment_id: str, run: "Run", model: _Model) -> None:
    from mlflow.entities import Param, RunTag

    before = predecessor(client, experiment_id, run)
    note = describe_run(model.facts, model.params, model.scores, model.figures, before)
    tags = {"model_sha256": model.facts["model_sha256"], "mlflow.note.content": note, **speed_tags(model.facts["model_sha256"]), **TAGS}
    metrics = wanted_metrics(model.folder / "history.csv", model.figures, run.info.start_time)
    params = [Param(key, value) for key, value in model.params.items()]
    client.log_batch(run.info.run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
    log_metrics(client, run, metrics)
    client.log_inputs(run.info.run_id, model.inputs)
    log_files(client, run, model.folder, model.results)


def speed_tags(model_sha256: str) -> dict[str, str]:
    """How fast the model was where it was evaluated; nothing where it was evaluated elsewhere. A tag: it may change, a metric may not."""
    path = cache_dir("timings") / f"{model_sha256}.json"
    return {key: str(value) for key, value in read_json(path).items()} if path.is_file() else {}


def _delete(client: "MlflowClient", experiment_id: str, run: "Run") -> None:
    for logged in logged_models(client, experiment_id, run):
        client.delete_logged_model(logged.model_id)
    client.delete_run(run.info.run_id)
