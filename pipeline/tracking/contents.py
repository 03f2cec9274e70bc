"""What the run of a model contains, all of it read from files: params, metrics, datasets, figures, a table, a description.

Every name, digest and timestamp follows from the files and from when the run began, so that logging twice changes nothing.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import cache_dir, read_json, read_table, sha256_of_file, sha256_of_json
from pipeline.core.params import parse_yaml
from pipeline.evaluation.comparison import other_test_set
from pipeline.evaluation.scores import flat
from pipeline.networks.artifact import identity, read_facts
from pipeline.pictures.manifest import SPLITS, Picture, read_manifest
from pipeline.tracking.connection import DECIDED
from pipeline.tracking.internals import IMAGES, NOTE, PAGE_TAGS, SPLIT, TABLE, write_beside_others, write_images, write_predictions_table
from pipeline.tracking.runs import KEY, MODEL, StepMetrics, flatten, log_metrics, metrics_of, params_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

# Tags. A publication sets CONTENTS first and PUBLISHED last, each to a digest of the files: without them, `publish` would have to download
# all that a run contains to see whose it is, and whether it is complete.
CONTENTS = "pipeline.contents"
PUBLISHED = "published_sha256"
TEST_SET = "test_sha256"  # a tag, too: of the test pictures, so that a later run can tell whether its scores are of the same ones
_EDITION = 4  # of the contents of a run; raise it when they change, and `publish` completes the runs of before

_OTHER_STAGES = ("download", "split", "backbone", "embed")
_SCHEMA = json.dumps({"image_id": "string", "path": "string", "sha256": "string", "label": "string", "width": "long", "height": "long"})

# MLflow's limits, in characters.
_METRIC_LENGTH = 250
_DATASET_LENGTH = 500
_DIGEST_LENGTH = 16  # it takes 36, and its page shows 16
# Limits of ours, so that the description stays below MLflow's 8,000 characters.
_FIGURE_ROWS, _CHANGE_LINES, _VALUE_LENGTH = 12, 20, 60
_EARLIER_RUNS = 50  # among which the previous one of the same name is searched for


@dataclass(frozen=True)
class RunContents:
    """The contents of one model's run. `facts` is model.json, `scores` is scores.json."""

    model_dir: Path
    results_dir: Path
    facts: Mapping[str, Any]
    scores: Mapping[str, Any]
    params: Mapping[str, str]
    datasets: list["DatasetInput"]

    @property
    def figures(self) -> dict[str, float]:
        """Every figure of the scores that is defined, with the ends of its interval as `<name>_low` and `<name>_high`."""
        return {name: value for name, value in flat(self.scores["figures"]).items() if value is not None}

    @cached_property
    def digest(self) -> str:
        """One sha256 of all the files and params that are published."""
        paths = [*self.model_dir.rglob("*"), *self.results_dir.rglob("*")]
        files = sorted((path.name, sha256_of_file(path)) for path in paths if path.is_file())
        return sha256_of_json([self.params, [entry.dataset.digest for entry in self.datasets], files])

    @property
    def edition_digest(self) -> str:
        """`digest` with the edition: what the tag PUBLISHED of a complete run says."""
        return sha256_of_json([_EDITION, self.digest])

    def metrics(self, start: int) -> list["Metric"]:
        """One point per row of the history and metric, and the figures as `test_<name>` at step 0. `start`: of the run, in milliseconds."""
        table = read_table(self.model_dir / "history.csv")
        history: list[StepMetrics] = [{name: float(value) for name, value in row.items() if value != ""} for row in table]
        test: StepMetrics = {"step": 0, **{metric_name(f"test_{name}"): value for name, value in self.figures.items()}}
        return [*(metric for row in history for metric in metrics_of(row, start)), *metrics_of(test, start + 1000 * len(history))]


def read_contents(data: Path, model_dir: Path, results_dir: Path) -> RunContents:
    """Read what a run must contain. Raises PipelineError if the files are not of one and the same model."""
    facts, scores = read_facts(model_dir), read_json(results_dir / "scores.json")
    if scores["model_sha256"] != facts["model_sha256"]:
        raise PipelineError(f"{results_dir}/scores.json: are the scores of another model than {model_dir}; run `dvc repro`")
    if sha256_of_file(model_dir / "model.onnx") != facts["model_sha256"]:
        raise PipelineError(f"{model_dir}/model.onnx: is not the file that model.json describes; run `dvc checkout`")
    manifest = data / "manifest.csv"
    if sha256_of_file(manifest) != facts["inputs_sha256"]["data"]:
        raise PipelineError(f"{manifest}: is not the table that {model_dir} was trained with; run `dvc repro`")
    return RunContents(model_dir, results_dir, facts, scores, _params(facts), dataset_inputs(manifest, data / "source.json"))


def log_contents(client: "MlflowClient", run: "Run", contents: RunContents) -> None:
    """Log everything but the tag PUBLISHED. What the run contains already does not change."""
    from mlflow.entities import Param, RunTag

    model_sha256 = contents.facts["model_sha256"]
    tags = {
        MODEL: model_sha256,
        CONTENTS: contents.digest,
        TEST_SET: contents.scores["test_sha256"],
        NOTE: describe_run(contents, _previous_run(client, run, contents)),
        **_speed_tags(model_sha256),
        **PAGE_TAGS,
    }
    params = [Param(key, value) for key, value in contents.params.items()]
    write_beside_others(client.log_batch, run.info.run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
    log_metrics(client, run, contents.metrics(run.info.start_time))
    write_beside_others(client.log_inputs, run.info.run_id, contents.datasets)
    client.log_artifacts(run.info.run_id, str(contents.model_dir), f"models/{contents.model_dir.name}")
    client.log_artifacts(run.info.run_id, str(contents.results_dir))  # MLflow's page compares the files at the root of each run
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / IMAGES, contents.results_dir, run.info.start_time)
        write_predictions_table(Path(folder) / TABLE, contents.results_dir / "predictions.csv")
        client.log_artifacts(run.info.run_id, folder)


def contradicts(client: "MlflowClient", run: "Run", contents: RunContents) -> bool:
    """Whether a param or a point of ours in the run is not that of `contents`. What others added does not count."""
    if any(run.data.params.get(key, value) != value for key, value in contents.params.items()):
        return True
    wanted = {(metric.key, metric.step, metric.value) for metric in contents.metrics(run.info.start_time)}
    places = {(key, step) for key, step, _ in wanted}
    for key in {key for key, _ in places} & run.data.metrics.keys():
        points = {(key, metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)}
        if not {point for point in points if point[:2] in places} <= wanted:
            return True
    return False


# Params and metrics


def _params(facts: Mapping[str, Any]) -> dict[str, str]:
    """The model's own params, and those with which dvc.lock says that the stages before and after it ran."""
    stages = _stages_that_ran()
    evaluated = [name for name in stages if name.startswith("evaluate") and name.endswith(f"@{facts['model']}")]
    sections = (stages[name]["params"]["params.yaml"] for name in (*_OTHER_STAGES, *evaluated) if name in stages)
    others = {key: value for section in sections for key, value in flatten(section).items()}
    return params_of({**others, **flatten(facts["params"]), **facts["hardware"]})


def _stages_that_ran() -> Mapping[str, Any]:
    try:
        lock = parse_yaml(Path("dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError("dvc.lock: does not exist; run `dvc repro`") from None
    except ValueError as error:
        raise PipelineError(f"dvc.lock: is not YAML: {error}; run `git checkout dvc.lock`") from None
    stages: Mapping[str, Any] = lock["stages"]
    return stages


def metric_name(name: str) -> str:
    """A name cut to what MLflow takes, with `_` for each character that it refuses."""
    return re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII)[:_METRIC_LENGTH]


def _speed_tags(model_sha256: str) -> dict[str, str]:
    """How fast this machine evaluated the model; empty if another one did. A tag, because a metric may not change."""
    path = cache_dir("timings") / f"{model_sha256}.json"
    return {key: str(value) for key, value in read_json(path).items()} if path.is_file() else {}


# Datasets


def dataset_inputs(manifest: Path, source_json: Path) -> list["DatasetInput"]:
    """One dataset per split that has pictures. Its digest covers the pictures, their labels, the source and the licence.

    A split keeps its digest when only the other splits change.
    """
    source, table = read_json(source_json), read_manifest(manifest)
    splits = {split: table.split(split) for split in SPLITS}
    return [_dataset_input(source, split, pictures) for split, pictures in splits.items() if pictures]


def _dataset_input(source: dict[str, Any], split: str, pictures: list[Picture]) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    title = without_password(source["source"])
    origin = json.dumps({"uri": title, "licence": source["licence"]}, ensure_ascii=False)
    profile = json.dumps({"pictures": len(pictures), "classes": dict(sorted(Counter(picture.label for picture in pictures).items()))})
    rows = [[picture.image_id, picture.sha256, picture.label] for picture in pictures]
    # All that is logged is in the digest, because MLflow keeps what it was first given under a digest.
    digest = sha256_of_json([split, origin, _SCHEMA, profile, rows])[:_DIGEST_LENGTH]
    dataset = Dataset(title[:_DATASET_LENGTH], digest, "local", origin, _SCHEMA, profile)
    return DatasetInput(dataset, [InputTag(SPLIT, split)])


# Description


def _previous_run(client: "MlflowClient", run: "Run", contents: RunContents) -> "Run | None":
    """The published run of another model of this name that began last before this one, so that the answer stays the same later."""
    own = (identity(contents.facts), contents.facts["model_sha256"])
    query = f"attributes.status = 'FINISHED' and attributes.start_time < {run.info.start_time}"
    earlier = client.search_runs([run.info.experiment_id], query, max_results=_EARLIER_RUNS, order_by=["attributes.start_time DESC"])
    others = (other for other in earlier if other.info.run_name == run.info.run_name and PUBLISHED in other.data.tags)
    return next((other for other in others if (other.data.tags.get(KEY), other.data.tags.get(MODEL)) != own), None)


def describe_run(contents: RunContents, previous: "Run | None") -> str:
    """Markdown of bounded length: the figures that have an interval, and what changed since the previous run."""
    facts, scores, figures = contents.facts, contents.scores, contents.figures
    old = {name: previous.data.metrics.get(f"test_{name}") for name in figures} if previous else {}
    lines = [
        f"{_code(facts['model'])}, {len(facts['class_names'])} classes, scored on {scores['test_pictures']} test pictures; "
        f"intervals of {100 * scores['confidence']:g} %.",
        "",
        f"| figure | value | interval |{' before | change |' * bool(previous)}",
        f"| --- | --- | --- |{' --- | --- |' * bool(previous)}",
        *(_figure_row(name, figures, old.get(name)) for name in figures if f"{name}_low" in figures),
    ][: 4 + _FIGURE_ROWS]
    note = other_test_set(previous.data.tags.get(TEST_SET), scores["test_sha256"]) if previous else []
    return "\n".join([*lines, "", *(f"Note: {each}.\n" for each in note), *_changes(contents, previous)])


def _figure_row(name: str, figures: Mapping[str, float], old: float | None) -> str:
    value, low, high = figures[name], figures[f"{name}_low"], figures[f"{name}_high"]
    change = "" if old is None else f" {old:.3f} | {value - old:+.3f} |"
    return f"| {_code(name)} | {value:.3f} | {low:.3f} to {high:.3f} |{change}"


def _changes(contents: RunContents, previous: "Run | None") -> list[str]:
    if previous is None:
        return ["The first published run of this name."]
    # The digest of the params is left out, because each param that changed has its own line.
    digests = {name: sha[:12] for name, sha in contents.facts["inputs_sha256"].items() if name != "params"}
    tags = previous.data.tags
    old_digests = {name: tags[f"{name}_sha256"][:12] for name in digests if f"{name}_sha256" in tags}
    old_params = {name: value for name, value in previous.data.params.items() if name not in DECIDED}
    changes = [*_changed_values(old_params, contents.params), *_changed_values(old_digests, digests)]
    if not changes:
        return [f"No param and no input differs from run {_code(previous.info.run_id)}."]
    more = [f"- and {len(changes) - _CHANGE_LINES} more"] if len(changes) > _CHANGE_LINES else []
    return [f"Changed since run {_code(previous.info.run_id)}:", "", *changes[:_CHANGE_LINES], *more]


def _changed_values(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    return [f"- {_code(name)}: {_code(old.get(name, 'absent'))} → {_code(new.get(name, 'absent'))}" for name in names]


def _code(text: str) -> str:
    """A text of bounded length on one line, in which nothing is Markdown."""
    line = " ".join(text.replace("`", "'").replace("|", "¦").split())
    return f"`{line if len(line) <= _VALUE_LENGTH else line[: _VALUE_LENGTH - 1] + '…'}`"
