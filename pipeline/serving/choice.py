"""Which stored model answers, and opening it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.models.history import kept_row

if TYPE_CHECKING:
    from pipeline.serving.predictor import Predictor


def find_model(named: str | None, models: Path, here: Path) -> Path:
    """The folder of the model that is named, below `models` or, as a path, below `here`; without a name the best on val.

    Raises PipelineError where there is none.
    """
    if named is None:
        return best_model(models)
    for folder in (models / named, here / named):
        if named and (folder / "model.onnx").is_file():
            return folder
    there = ", ".join(folder.name for folder in _stored(models)) or "none; run `dvc repro`"
    raise PipelineError(f"--model {named}: neither {models} nor that folder holds such a model; there: {there}")


def best_model(models: Path) -> Path:
    """The model with the lowest val loss, the first by name of equals; test has no say. Raises PipelineError."""
    losses = {folder: float(kept_row(folder)["val_loss"]) for folder in _stored(models) if (folder / "history.csv").is_file()}
    if not losses:
        raise PipelineError(f"{models}: holds no model; run `dvc repro`")
    return min(losses, key=lambda folder: losses[folder])


def open_model(folder: Path, threads: int) -> "Predictor":
    """Open a stored model. Raises PipelineError where the file is none of ours."""
    from pipeline.models.session import ORT_FAULTS
    from pipeline.serving.predictor import Predictor

    try:
        return Predictor.load(folder / "model.onnx", threads)
    except (*ORT_FAULTS, KeyError):
        raise PipelineError(f"{folder}/model.onnx: is no model of this pipeline, or damaged; run `dvc checkout`") from None


def _stored(models: Path) -> list[Path]:
    return sorted(path.parent for path in models.glob("*/model.onnx"))
