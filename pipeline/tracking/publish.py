"""Bring MLflow up to date from the files: every model's run as the outs say, whatever was there before."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import BASELINE
from pipeline.files import cache_dir, read_json, sha256_of_file, sha256_of_json
from pipeline.models.artifact import identity, read_facts
from pipeline.params import model_names
from pipeline.tracking.connection import connect, mendable, one_at_a_time
from pipeline.tracking.description import PUBLISHED, describe_run, predecessor
from pipeline.tracking.logged_model import has_logged_model, log_model, logged_models
from pipeline.tracking.numbers import contradicts_numbers, figures_of, wanted_metrics, wanted_params
from pipeline.tracking.ownership import OwnedByAnother, own
from pipeline.tracking.run_files import TAGS, contradicts_files, log_files
from pipeline.tracking.run_inputs import contradicts_inputs, run_inputs
from pipeline.tracking.runs import close_abandoned, create_run, find_runs, log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

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
