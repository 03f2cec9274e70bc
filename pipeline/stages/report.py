"""Report: compare the models on the same pictures, make the page, and tell MLflow."""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline import stage
from pipeline.errors import PipelineError
from pipeline.evaluation import page
from pipeline.evaluation.comparison import BASELINE, best_epoch, compare, verdict
from pipeline.files import read_json, read_table, write_json
from pipeline.params import Section, read_params
from pipeline.tracking.publish import publish


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


def run(params: Params, models: Path, results: Path, metrics: Path, report: Path, comparison_json: Path) -> None:
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
    page.write_page(report, scores, told, histories, results)
    write_json(comparison_json, comparison)
    try:
        publish(models, results, metrics)
    except PipelineError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
