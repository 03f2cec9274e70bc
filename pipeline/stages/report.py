"""Report: compare the models on the same pictures, write the page, and publish to MLflow."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table, table_rows, write_json
from pipeline.core.params import BASELINE, model_names
from pipeline.core.sections import Section
from pipeline.evaluation.answers import most_doubted
from pipeline.evaluation.comparison import compare_all, verdict, verdicts_against_best
from pipeline.evaluation.galleries import montage
from pipeline.evaluation.scores import flat, read_matrix
from pipeline.networks.artifact import kept_row
from pipeline.pictures.images import thumbnail_url
from pipeline.pictures.manifest import Picture, read_manifest
from pipeline.report import page
from pipeline.tracking.publish import publish

_MOST_DOUBTS = 12


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt  # of the bootstrap and of the montage
    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # of every interval


def extremes(pictures: Sequence[Picture]) -> tuple[page.Size, page.Size]:
    """Width and height of the picture with the fewest pixels and of the one with the most."""
    sizes = sorted(((picture.width, picture.height) for picture in pictures), key=lambda size: (size[0] * size[1], size))
    return sizes[0], sizes[-1]


def summarise(scores: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The content of comparison.json: every model's digest and figures with intervals, and its differences from others."""
    models = {
        facts["model"]: {**{key: facts[key] for key in ("model_sha256", "learned_test_pictures")}, **flat(facts["figures"])}
        for facts in scores
    }
    shared = {key: scores[0][key] for key in ("test_pictures", "test_groups", "test_sha256", "confidence")}
    return {**shared, "models": models, **comparison}


def read_doubts(data: Path, pictures: Sequence[Picture], out_of_fold: Path) -> list[Mapping[str, str]]:
    """The train and val pictures whose labels the baseline doubts most: rows of out_of_fold.csv, each with a `thumbnail`."""
    files = {picture.image_id: picture.source(data / "splits" / picture.split) for picture in pictures}
    doubted = most_doubted(table_rows(out_of_fold), _MOST_DOUBTS)
    return [{**row, "thumbnail": thumbnail_url(files[row["image_id"]])} for row in doubted]


def read_model(name: str, models: Path, results: Path, comparison: Mapping[str, Any] | None) -> page.Model:
    """Everything that the page shows of a model."""
    folder = results / name
    scores = read_json(folder / "scores.json")
    tables = {key: read_table(folder / f"{key}.csv") for key in ("reliability", "reliability_before", "coverage")}
    return page.Model(
        name, scores, read_json(models / name / "model.json"), read_table(models / name / "history.csv"),
        read_matrix(folder / "confusion_matrix.csv"), **tables, galleries=read_json(folder / "galleries.json"),
        comparison=comparison and {**comparison, "verdict": verdict(name, comparison, scores["test_pictures"])},
    )  # fmt: skip


def run(params: Params, data: Path, models: Path, results: Path, report: Path, comparison_json: Path) -> None:
    """Compare every model with the baseline, write the page, and update MLflow if it can be reached."""
    names = [BASELINE, *model_names()]
    for name in names:
        if not (results / name / "scores.json").is_file():
            raise PipelineError(f"{results / name}/scores.json: does not exist; run `dvc repro`")
    predictions = {name: table_rows(results / name / "predictions.csv") for name in names}
    comparison = compare_all(predictions, params.confidence, params.seed)
    for name, facts in comparison["differences"].items():
        facts["best_epoch"] = int(kept_row(models / name)["epoch"])
        facts["last_epoch"] = int(read_table(models / name / "history.csv")[-1]["epoch"])
        facts["epochs"] = read_json(models / name / "model.json")["params"]["epochs"]
    manifest = read_manifest(data / "manifest.csv")
    source, backbone = read_json(data / "source.json"), read_json(models / "backbone" / "backbone.json")
    shown = [read_model(name, models, results, comparison["differences"].get(name)) for name in names]
    content = page.Report(
        models=shown,
        source=source,
        backbone=backbone,
        embedding=read_json(data / "embeddings/embedding.json"),
        audit=read_json(data / "audit.json"),
        sizes=extremes(manifest.pictures),
        doubts=read_doubts(data, manifest.pictures, models / "out_of_fold.csv"),
        against_best=verdicts_against_best(comparison, shown[0].scores["test_pictures"]),
        montage=montage(manifest.train, data / "splits" / "train", params.seed),
        digests=page.input_digests(source, backbone, data, {name: results / name for name in names}),
        versions=page.library_versions(),
    )
    page.write_page(report, content)
    write_json(comparison_json, summarise([model.scores for model in content.models], comparison))
    try:
        publish(data, models, results)
    except PipelineError as error:  # the files are complete without MLflow, and `pipeline publish` updates it later
        print(error, file=sys.stderr)


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
