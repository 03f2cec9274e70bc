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
from pipeline.tracking.connection import (
    KEPT,
    NO,
    STORED,
    YES,
    RunLocked,
    agree_on_model,
    agree_on_run,
    connect,
    copy_id,
    creation_lock,
    is_unwritten,
    lock_run,
    mlflow_errors,
    tracking_uri,
    wait_for_writer,
)
from pipeline.tracking.contents import CONTENTS, PUBLISHED, RunContents, contradicts, log_contents, read_contents
from pipeline.tracking.internals import NOTE, resume, write_beside_others
from pipeline.tracking.runs import (
    KEY,
    MODEL,
    REQUEST,
    close_stale_runs,
    create_run,
    find_runs,
    is_of_this_machine,
    log_metrics,
    log_params,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

SUPERSEDED = "pipeline.superseded_by"  # the tag with the id of a newer run of the same model
COPY = "pipeline.copy"  # the tag of a logged model with the working copy that logged it
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
        with creation_lock():
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

    def find() -> list["Run"]:
        return [run for run in find_runs(client, experiment_id, identity(facts)) if run.data.tags.get(MODEL) == sha256]

    with lock_run(identity(facts)):
        finished = [run for run in _delete_empty_twins(client, find()) if run.info.status == "FINISHED"]
        if finished:
            run = finished[0]
        else:
            run, is_ours = agree_on_run(client, STORED, find, lambda: create_run(client, experiment_id, facts, {MODEL: sha256}))
            run = run if is_ours else wait_for_writer(client, run)
        log_params(client, run, facts)
        if (scores := folder / "results/scores.json").is_file():
            contents = RunContents(folder, scores.parent, facts, read_json(scores), {}, [])
            if not contradicts(client, run, contents):
                log_metrics(client, run, contents.metrics(run.info.start_time))
        if not _has_logged_model(client, run, sha256):
            _log_model(client, run, folder, facts)
        write_beside_others(client.set_terminated, run.info.run_id, "FINISHED")


def _publish_model(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    try:
        with lock_run(identity(contents.facts)):
            return _publish_run(client, experiment_id, contents)
    except RunLocked:
        return f"{contents.facts['model']}: is being trained; publish it when the training has ended"


def _publish_run(client: "MlflowClient", experiment_id: str, contents: RunContents) -> str | None:
    runs = _runs_of_model(client, experiment_id, contents)
    run = _choose_run(client, runs, contents)
    model_sha256 = contents.facts["model_sha256"]
    if run and _is_complete(run, contents) and _has_logged_model(client, run, model_sha256):
        return f"{contents.facts['model']}: run {run.info.run_id} is the newest again" if _supersede(client, runs, run) else None
    run, is_ours = _agree(client, experiment_id, run, contents)
    run = run if is_ours else wait_for_writer(client, run)
    has_model = _has_logged_model(client, run, model_sha256)
    if not (has_model and _is_complete(run, contents)):
        log_contents(client, run, contents)
        if not has_model:
            _log_model(client, run, contents.model_dir, contents.facts)
        write_beside_others(client.set_tag, run.info.run_id, PUBLISHED, contents.edition_digest)
        write_beside_others(client.set_terminated, run.info.run_id, "FINISHED")
    _supersede(client, runs, run)
    return f"{contents.facts['model']}: published as run {run.info.run_id}"


def _agree(client: "MlflowClient", experiment_id: str, chosen: "Run | None", contents: RunContents) -> tuple["Run", bool]:
    """The run of these contents that all machines complete, and whether this machine created it or is to complete its own live run."""
    tags = {MODEL: contents.facts["model_sha256"], CONTENTS: contents.digest}
    is_live = chosen is not None and CONTENTS not in chosen.data.tags
    if chosen and is_live:
        for key, value in tags.items():
            write_beside_others(client.set_tag, chosen.info.run_id, key, value)

    def find() -> list["Run"]:
        runs = find_runs(client, experiment_id, identity(contents.facts))
        return [run for run in runs if tags.items() <= run.data.tags.items()]

    run, is_ours = agree_on_run(client, KEPT, find, lambda: create_run(client, experiment_id, contents.facts, tags))
    return run, is_ours or (is_live and chosen is not None and run.info.run_id == chosen.info.run_id)


def _runs_of_model(client: "MlflowClient", experiment_id: str, contents: RunContents) -> list["Run"]:
    """The runs of these model bytes, and those of its training that name no model yet. Deletes empty twins of a run.

    Equal inputs give other bytes on another processor, so that the identity alone does not tell whose run it is.
    """
    model_sha256 = contents.facts["model_sha256"]
    runs = [run for run in find_runs(client, experiment_id, identity(contents.facts)) if run.data.tags.get(MODEL) in (None, model_sha256)]
    return _delete_empty_twins(client, runs)


def _delete_empty_twins(client: "MlflowClient", runs: Sequence["Run"]) -> list["Run"]:
    """Delete the empty twins among runs of one model, and return the others."""
    twins = [twin for place, twin in enumerate(runs) if any(_is_empty_twin(client, twin, run) for run in runs[:place])]
    for twin in twins:
        client.delete_run(twin.info.run_id)
    return [run for run in runs if run not in twins]


def _is_empty_twin(client: "MlflowClient", twin: "Run", run: "Run") -> bool:
    """Whether MLflow's client repeated the request that created the run, or several machines created it, and nobody wrote to the twin."""
    request = twin.data.tags.get(REQUEST)
    is_repeated = request is not None and request == run.data.tags.get(REQUEST)
    is_given_up = NO in (twin.data.params.get(KEPT), twin.data.params.get(STORED))
    return (is_repeated or is_given_up) and twin.data.tags.keys() <= run.data.tags.keys() - {NOTE} and is_unwritten(client, twin)


def _choose_run(client: "MlflowClient", runs: Sequence["Run"], contents: RunContents) -> "Run | None":
    """The run that has these contents, in part or whole; else one that was only logged live and can be completed."""
    if same := [run for run in runs if run.data.tags.get(CONTENTS) == contents.digest and run.data.params.get(KEPT) != NO]:
        return next((run for run in same if run.data.params.get(KEPT) == YES), same[0])
    live = (run for run in runs if CONTENTS not in run.data.tags)
    return next((run for run in live if not (_is_written_elsewhere(run) or contradicts(client, run, contents))), None)


def _is_written_elsewhere(run: "Run") -> bool:
    return run.info.status == "RUNNING" and not is_of_this_machine(run)


def _is_complete(run: "Run", contents: RunContents) -> bool:
    return run.info.status == "FINISHED" and run.data.tags.get(PUBLISHED) == contents.edition_digest


def _supersede(client: "MlflowClient", runs: Sequence["Run"], newest: "Run") -> bool:
    """Tag the other published runs of the same model with the newest one. Returns whether a tag changed. Nothing is deleted."""
    newest_id = newest.info.run_id
    # A run without metrics shows no figure, and may be one that the machine which created it deletes at this moment.
    others = [run for run in runs if MODEL in run.data.tags and run.data.metrics and run.info.run_id != newest_id]
    stale = [run for run in others if run.data.tags.get(SUPERSEDED) != newest_id]
    for run in stale:
        write_beside_others(client.set_tag, run.info.run_id, SUPERSEDED, newest_id)
    if SUPERSEDED in newest.data.tags:
        client.delete_tag(newest_id, SUPERSEDED)
    return bool(stale) or SUPERSEDED in newest.data.tags


def _has_logged_model(client: "MlflowClient", run: "Run", model_sha256: str) -> bool:
    """Whether the run has a complete logged model of that file. Deletes what other publications of this working copy left.

    The run is locked in this working copy, so that no other process of it logs the model at this moment.
    """
    models = _logged_models(client, run, model_sha256)
    kept = agree_on_model(client, run, models)
    for logged in models:
        if logged.tags.get(COPY) == copy_id() and not (kept and logged.model_id == kept.model_id):
            client.delete_logged_model(logged.model_id)
    return kept is not None


def kept_model(client: "MlflowClient", run: "Run", model_sha256: str) -> "LoggedModel | None":
    """The complete logged model of that file in the run; of several the one that all machines keep."""
    return agree_on_model(client, run, _logged_models(client, run, model_sha256))


def _logged_models(client: "MlflowClient", run: "Run", model_sha256: str) -> list["LoggedModel"]:
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [logged for logged in found if KEY in logged.tags and logged.tags.get(MODEL) == model_sha256]


def _log_model(client: "MlflowClient", run: "Run", model_dir: Path, facts: Mapping[str, Any]) -> None:
    """Log model.onnx as a pyfunc, unless another machine was faster: then what this one logged is deleted."""
    write_beside_others(_log_pyfunc, run.info.run_id, model_dir, facts)
    _has_logged_model(client, run, facts["model_sha256"])


def _log_pyfunc(run_id: str, model_dir: Path, facts: Mapping[str, Any]) -> None:
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
            ColSpec(DataType.boolean, "unfamiliar", required=False),
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
            tags={MODEL: facts["model_sha256"], KEY: identity(facts), COPY: copy_id()},
        )
