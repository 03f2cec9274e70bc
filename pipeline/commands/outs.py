"""What commands that train take from `dvc repro`: an entry of `models`, and the outs of the stages before."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.params import read_params

if TYPE_CHECKING:
    from pipeline.training.course import Inputs

_MADE_BY_REPRO = (
    "data/manifest.csv",
    "data/splits/train",
    "data/splits/val",
    "data/embeddings/embedding.json",
    "models/backbone/backbone.json",
    "models/baseline/model.safetensors",
)


def choose_entry(command: str, named: str | None) -> str:
    """The entry of `models` of that name, or the first one. Raises PipelineError."""
    names = list(read_params().get("models") or {})
    name = str(named or next(iter(names), ""))
    if name not in names:
        raise PipelineError(f"{command} {name}: is no entry of `models` in params.yaml; there: {', '.join(names) or 'none'}")
    return name


def find_inputs() -> "Inputs":
    """The outs that training reads. Raises PipelineError where one is missing."""
    for path in _MADE_BY_REPRO:
        if not Path(path).exists():
            raise PipelineError(f"{path}: is not there; run `dvc repro`")
    from pipeline.training.course import Inputs

    data, models = Path("data"), Path("models")
    return Inputs(
        data / "splits/train", data / "splits/val", data / "manifest.csv", models / "backbone", data / "embeddings", models / "baseline"
    )
