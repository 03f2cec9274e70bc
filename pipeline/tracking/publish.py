"""Publish: make MLflow show what the files contain, whatever was there before. Publishing adds: a run of other contents stays."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file
from pipeline.core.params import BASELINE, model_names
from pipeline.core.stage import import_closure
from pipeline.networks.artifact import identity, read_facts
from pipeline.networks.onnx_file import data_path
from pipeline.tracking.connection import RunLocked, connect, creation_lock, lock_run, mlflow_errors, server_lock, tracking_uri
from pipeline.tracking.contents import CONTENTS, PUBLISHED, RunContents, contradicts, log_contents, read_contents
from pipeline.tracking.internals import resume, write_beside_others
from pipeline.tracking.runs import KEY, MODEL, REQUEST, close_stale_runs, create_run, find_runs, is_of_this_machine, log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SUPERSEDED = "pipeline.superseded_by"  # the tag with the id of a newer run of the same model
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")  # of the logged model


def publish(data: Path, models: Path, results: Path) -> list[str]:
    """Make the newest run of each model equal to its files, and return a line per model for which it was not. Raises PipelineError."""
    names = [name for name in (BASELINE, *model_names()) if (results / name / "scores.json").is_file()]
    if not names:
        raise PipelineError(f"{results}: contains no scores of a model; run `dvc repro` or `dvc checkout`")
    needed = [data / "manifest.csv", data / "source.json", *(models / name / "model.onnx" for name in names)]
    if missing := [path for path in needed if not path.exists()]:
        raise PipelineError(f"{missing[0]}: does not exist; run `dvc checkout`")
    with mlflow_errors():
        client, experiment_id = connect()
        published = [read_contents(data, models / name, results / name) for name in names]
        with server_lock(client), creation_lock():
            close_stale_runs(client, experiment_id)
            lines = [_publish_model(client, experiment_id, contents) for contents in published]
    return [line for line in lines if line]


def log_stored_model(client: "MlflowClient", experiment_id: str, folder: Path, sha256: str) -> None:
    """Log a model whose data are gone: its facts, its curve, its scores (`results` in the folder) and model.onnx, as the run of that file.

    Call it under `creation_lock()`. If `publish` sees the model again, it completes this run. Raises PipelineError if the folder contains
    another model, RunLocked if it is being trained.
    """
    facts = read_facts(folder)
    if not facts["model_sha256"] == sha256_of_file(folder / "model.onnx") == sha256:
        raise PipelineError(f"{folder}/model.onnx: is not the model {sha256}; run `dvc checkout`")
    close_stale_runs(client, experiment_id)
    with lock_run(identity(facts)):
        runs = [run for run in find_runs(client, experiment_id, identity(facts)) if run.data.tags.get(MODEL) == sha256]
        run = runs[0] if runs else create_run(client, experiment_id, facts, {MODEL: sha256})
        if (scores := folder / "results/scores.json").is_file():
            contents = RunContents(folder, scores.parent, facts, read_json(scores), {}, [])
            if not contradicts(client, run, contents):
                log_metrics(client, run, contents.metrics(run.info.start_time))
        if not _has_logged_model(client, run, sha256):
            _log_model(run.info.run_id, folder, facts)
        if run.info.status != "FINISHED":
            client.set_terminated(run.info.run_id, "FINISHED")


def _publish_model(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    try:
        with lock_run(identity(contents.facts)):
            return _publish_run(client, experiment_id, contents)
    except RunLocked:
        return f"{contents.facts['model']}: is being trained; publish it when the training has ended"


def _publish_run(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    runs = _runs_of_model(client, experiment_id, contents)
    run = _choose_run(client, runs, contents)
    has_model = run is not None and _has_logged_model(client, run, contents.facts["model_sha256"])
    if run and has_model and _is_complete(run, contents):
        return f"{contents.facts['model']}: run {run.info.run_id} is the newest again" if _supersede(client, runs, run) else None
    tags = {MODEL: contents.facts["model_sha256"], CONTENTS: contents.digest}
    run = run or create_run(client, experiment_id, contents.facts, tags)
    log_contents(client, run, contents)
    if not has_model:
        _log_model(run.info.run_id, contents.model_dir, contents.facts)
    write_beside_others(client.set_tag, run.info.run_id, PUBLISHED, contents.edition_digest)
    client.set_terminated(run.info.run_id, "FINISHED")
    _supersede(client, runs, run)
    return f"{contents.facts['model']}: published as run {run.info.run_id}"


def _runs_of_model(client: "MlflowClient", experiment_id: str, contents: RunContents) -> list["Run"]:
    """The runs of these model bytes, and those of its training that name no model yet. Deletes empty twins of a run.

    Equal inputs give other bytes on another processor, so that the identity alone does not tell whose run it is.
    """
    model_sha256 = contents.facts["model_sha256"]
    runs = [run for run in find_runs(client, experiment_id, identity(contents.facts)) if run.data.tags.get(MODEL) in (None, model_sha256)]
    twins = [twin for place, twin in enumerate(runs) if any(_is_empty_twin(client, twin, run) for run in runs[:place])]
    for twin in twins:
        client.delete_run(twin.info.run_id)
    return [run for run in runs if run not in twins]


def _is_empty_twin(client: "MlflowClient", twin: "Run", run: "Run") -> bool:
    """Whether MLflow's client repeated the request that created the run, and nobody wrote to what the first one created."""
    request = twin.data.tags.get(REQUEST)
    if request is None or request != run.data.tags.get(REQUEST) or not twin.data.tags.keys() <= run.data.tags.keys():
        return False
    inputs = twin.inputs.dataset_inputs if twin.inputs else []
    return not (twin.data.metrics or twin.data.params or inputs or client.list_artifacts(twin.info.run_id))


def _choose_run(client: "MlflowClient", runs: Sequence["Run"], contents: RunContents) -> "Run | None":
    """The run that has these contents, in part or whole; else one that was only logged live and can be completed."""
    if same := [run for run in runs if run.data.tags.get(CONTENTS) == contents.digest]:
        return same[0]
    live = (run for run in runs if CONTENTS not in run.data.tags)
    return next((run for run in live if not (_is_written_elsewhere(run) or contradicts(client, run, contents))), None)


def _is_written_elsewhere(run: "Run") -> bool:
    return run.info.status == "RUNNING" and not is_of_this_machine(run)


def _is_complete(run: "Run", contents: RunContents) -> bool:
    return run.info.status == "FINISHED" and run.data.tags.get(PUBLISHED) == contents.edition_digest


def _supersede(client: "MlflowClient", runs: Sequence["Run"], newest: "Run") -> bool:
    """Tag the other published runs of the same model with the newest one. Returns whether a tag changed. Nothing is deleted."""
    newest_id = newest.info.run_id
    others = [run for run in runs if MODEL in run.data.tags and run.info.run_id != newest_id]
    stale = [run for run in others if run.data.tags.get(SUPERSEDED) != newest_id]
    for run in stale:
        write_beside_others(client.set_tag, run.info.run_id, SUPERSEDED, newest_id)
    if SUPERSEDED in newest.data.tags:
        client.delete_tag(newest_id, SUPERSEDED)
    return bool(stale) or SUPERSEDED in newest.data.tags


def _has_logged_model(client: "MlflowClient", run: "Run", model_sha256: str) -> bool:
    """Whether the run has a complete logged model of that file. Deletes what an interrupted publication left incomplete."""
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    ours = [logged for logged in found if KEY in logged.tags and logged.tags.get(MODEL) == model_sha256]
    for logged in ours:
        if logged.status != "READY":
            client.delete_logged_model(logged.model_id)
    return any(logged.status == "READY" for logged in ours)


def _log_model(run_id: str, model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Log model.onnx as a pyfunc."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    text, number = DataType.string, DataType.double
    answer = Schema(
        [
            ColSpec(text, "predicted", required=False),
            ColSpec(number, "probability", required=False),
            ColSpec(Array(number), "probabilities", required=False),
            ColSpec(text, "fault", required=False),
        ]
    )
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "picture")]), answer)
    root, graph = Path(__file__).parent.parent.parent, model_dir / "model.onnx"
    mlflow.set_tracking_uri(tracking_uri())
    with tempfile.TemporaryDirectory() as folder, resume(run_id), warnings.catch_warnings():
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
            tags={MODEL: facts["model_sha256"], KEY: identity(facts)},
        )
