"""The artifacts of a run: the results, the figures as images, the answers as a table, the model's folder."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking import evaluation_table, images

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAGS = {"mlflow.loggedImages": "True", "mlflow.loggedArtifacts": evaluation_table.TAG}  # by which MLflow's page finds both


def log_files(client: "MlflowClient", run: "Run", model: Path, results: Path) -> None:
    """Log all files, each under a name that is the same every time."""
    client.log_artifacts(run.info.run_id, str(model), f"models/{model.name}")
    client.log_artifacts(run.info.run_id, str(results))  # the page «Compare» lays side by side what stands at the root of each run
    with tempfile.TemporaryDirectory() as folder:
        images.write_images(Path(folder) / images.FOLDER, results, run.info.start_time)
        evaluation_table.write_evaluation_table(Path(folder) / evaluation_table.FILE, results / "predictions.csv")
        client.log_artifacts(run.info.run_id, folder)


def contradicts_files(client: "MlflowClient", run: "Run", results: Path) -> bool:
    """Whether the run shows a figure or holds a result that is no more: what is logged cannot be taken back."""
    names = images.image_names(results, run.info.start_time).values()
    wanted = {f"{images.FOLDER}/{name}{ending}" for name in names for ending in (".png", "+compressed.webp")}
    wanted |= {path.name for path in results.iterdir()} | {"models", images.FOLDER, evaluation_table.FILE}
    found = {file.path for folder in (None, images.FOLDER) for file in client.list_artifacts(run.info.run_id, folder)}
    return not found <= wanted
