"""The contents of a run: params, metrics, inputs, images, tables, description."""

import json
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import read_json, read_table, sha256_of_json
from pipeline.core.params import parse_yaml
from pipeline.evaluation.scores import flat
from pipeline.pictures.manifest import SPLITS, Picture, read_manifest
from pipeline.tracking.runs import StepMetrics, flatten, metrics_of, params_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

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
    rows: list[StepMetrics] = [{name: float(value) for name, value in row.items() if value != ""} for row in read_table(history)]
    test: StepMetrics = {"step": 0, **{_metric_key(f"test_{name}"): value for name, value in figures.items()}}
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
    except ValueError as error:
        raise PipelineError(f"dvc.lock: is not YAML: {error}; run `git checkout dvc.lock`") from None
    stages: Mapping[str, Any] = lock["stages"]
    return stages


_DIGEST_LENGTH = 16  # of sha256 in hex; MLflow takes 36, and its columns show so many
_NAME_LENGTH = 500
_SCHEMA = json.dumps({"image_id": "string", "path": "string", "sha256": "string", "label": "string", "width": "long", "height": "long"})


def run_inputs(manifest: Path, source_json: Path) -> list["DatasetInput"]:
    """An input for each split that has pictures. Its digest covers the pictures, their labels and all else that is said of them.

    A split whose pictures are the same has the same digest, whatever changed in the others.
    """
    source, table = read_json(source_json), read_manifest(manifest)
    splits = {split: table.split(split) for split in SPLITS}
    return [_input(source, split, pictures) for split, pictures in splits.items() if pictures]


def contradicts_inputs(run: "Run", wanted: list["DatasetInput"]) -> bool:
    """Whether the run names an input that is none of these."""
    logged = run.inputs.dataset_inputs if run.inputs else []
    found = {(entry.dataset.name, entry.dataset.digest) for entry in logged}
    return not found <= {(entry.dataset.name, entry.dataset.digest) for entry in wanted}


def _input(source: dict[str, Any], split: str, pictures: list[Picture]) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    title = without_password(source["source"])
    where = json.dumps({"uri": title, "licence": source["licence"]}, ensure_ascii=False)
    profile = json.dumps({"pictures": len(pictures), "classes": dict(sorted(Counter(picture.label for picture in pictures).items()))})
    rows = [[picture.image_id, picture.sha256, picture.label] for picture in pictures]
    digest = sha256_of_json([split, where, _SCHEMA, profile, rows])[:_DIGEST_LENGTH]  # MLflow keeps what it first heard of a digest
    dataset = Dataset(title[:_NAME_LENGTH], digest, "local", where, _SCHEMA, profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])


FOLDER = "images"  # MLflow's page looks for them there
_SMALL_PIXELS = 768  # the longer side of what the grid shows


def image_names(figures: Path, start: int) -> dict[Path, str]:
    """Each PNG of a folder, and what MLflow calls it without its ending. `start`: the run's, in milliseconds.

    MLflow's own `log_image` draws a new name at each call; a name that follows from the figure's alone leaves no twins.
    """
    paths = sorted(figures.glob("*.png"))
    return {path: f"{_key(path)}+step+0+timestamp+{start}+{uuid.uuid5(uuid.NAMESPACE_OID, path.stem)}" for path in paths}


def write_images(folder: Path, figures: Path, start: int) -> None:
    """Write the figures, large and small, into a new folder as they are to be logged."""
    folder.mkdir()
    for path, name in image_names(figures, start).items():
        shutil.copyfile(path, folder / f"{name}.png")
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((_SMALL_PIXELS, _SMALL_PIXELS))
        small.save(folder / f"{name}+compressed.webp", quality=85)


def _key(path: Path) -> str:
    return re.sub(r"[^a-zA-Z0-9_. -]", "_", path.stem)  # all that MLflow takes in the name of an image, but for slashes


FILE = "predictions_table.json"
TAG = json.dumps([{"path": FILE, "type": "table"}])  # of `mlflow.loggedArtifacts`, by which the view finds it
_COLUMNS = ("image_id", "predicted", "label", "probability", "right")  # the view groups by the first and compares the second


def write_evaluation_table(path: Path, predictions: Path) -> None:
    """Write a row a picture, with the probability of the answer alone: a hundred classes would be a hundred columns.

    The form is that of MLflow's `log_table` (pandas, orient «split»), which appends where a file is there; this replaces it.
    """
    rows = read_table(predictions)
    data = [
        [row["image_id"], row["predicted"], row["label"], float(row[f"prob_{row['predicted']}"]), row["predicted"] == row["label"]]
        for row in rows
    ]
    path.write_text(json.dumps({"columns": _COLUMNS, "data": data}), encoding="utf-8")


TAGS = {"mlflow.loggedImages": "True", "mlflow.loggedArtifacts": TAG}  # by which MLflow's page finds both


def log_files(client: "MlflowClient", run: "Run", model: Path, results: Path) -> None:
    """Log all files, each under a name that is the same every time."""
    client.log_artifacts(run.info.run_id, str(model), f"models/{model.name}")
    client.log_artifacts(run.info.run_id, str(results))  # the page «Compare» lays side by side what stands at the root of each run
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / FOLDER, results, run.info.start_time)
        write_evaluation_table(Path(folder) / FILE, results / "predictions.csv")
        client.log_artifacts(run.info.run_id, folder)


def contradicts_files(client: "MlflowClient", run: "Run", results: Path) -> bool:
    """Whether the run shows a figure or holds a result that is no more: what is logged cannot be taken back."""
    names = image_names(results, run.info.start_time).values()
    wanted = {f"{FOLDER}/{name}{ending}" for name in names for ending in (".png", "+compressed.webp")}
    wanted |= {path.name for path in results.iterdir()} | {"models", FOLDER, FILE}
    found = {file.path for folder in (None, FOLDER) for file in client.list_artifacts(run.info.run_id, folder)}
    return not found <= wanted


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
