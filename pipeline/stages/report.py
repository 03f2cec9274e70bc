"""Report: compare the models on the same pictures, show what was found in the data, make the page, and tell MLflow."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline import stage
from pipeline.data.audit import thumbnail_url
from pipeline.data.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.evaluation import page
from pipeline.evaluation.comparison import BASELINE, best_epoch, compare, verdict
from pipeline.evaluation.predictions import most_doubted
from pipeline.files import read_json, read_table, write_json
from pipeline.params import Section, read_params
from pipeline.tracking.publish import publish

_SHOWN_DOUBTS = 12


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


def read_doubts(data: Path, out_of_fold: Path) -> list[Mapping[str, str]]:
    """The train and val pictures whose labels the baseline doubts most, each with a `thumbnail`."""
    paths = {picture.image_id: data / "splits" / picture.split / picture.path for picture in read_manifest(data / "manifest.csv")}
    doubted = most_doubted(read_table(out_of_fold), _SHOWN_DOUBTS)
    return [{**row, "thumbnail": thumbnail_url(paths[row["image_id"]].read_bytes())} for row in doubted]


def run(params: Params, data: Path, models: Path, results: Path, metrics: Path, report: Path, comparison_json: Path) -> None:
    """Compare every model with the baseline, write the page, and bring MLflow up to date where it can be reached."""
    names = [BASELINE, *read_params()["models"]]
    scores = {name: read_json(metrics / f"{name}.json") for name in names}
    predictions = {name: read_table(results / name / "predictions.csv") for name in names}
    histories = {name: read_table(models / name / "history.csv") for name in names}
    comparison: dict[str, dict[str, Any]] = {}
    for name in names[1:]:
        facts = compare(predictions[BASELINE], predictions[name], params.confidence, params.seed)
        comparison[name] = {"against": BASELINE, "best_epoch": best_epoch(histories[name]), **facts}
    told = {name: {**facts, "verdict": verdict(name, facts, len(predictions[name]))} for name, facts in comparison.items()}
    audit, doubts = read_json(data / "audit.json"), read_doubts(data, models / "out_of_fold.csv")
    page.write_page(report, scores, told, histories, results, audit, doubts)
    write_json(comparison_json, comparison)
    try:
        publish(data, models, results, metrics)
    except PipelineError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
