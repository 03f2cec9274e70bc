"""What commands take from `dvc repro`: an entry of `models`, the backbone and the models of it, the outs that training reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of_file
from pipeline.params import model_names, read_params

if TYPE_CHECKING:
    from pipeline.training.course import Inputs

BACKBONE = Path("models/backbone")

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
    names = model_names()
    name = str(named or next(iter(names), ""))
    if name not in names:
        raise PipelineError(f"{command} {name}: is no entry of `models` in params.yaml; there: {', '.join(names) or 'none'}")
    return name


def read_backbone() -> dict[str, Any]:
    """What backbone.json says. Raises PipelineError where it is not that of params.yaml."""
    path = BACKBONE / "backbone.json"
    if not path.is_file():
        raise PipelineError(f"{BACKBONE}: is not there; run `dvc repro backbone`")
    facts: dict[str, Any] = read_json(path)
    stored, wanted = facts["architecture"]["name"], (read_params().get("backbone") or {}).get("name")
    if stored != wanted:
        raise PipelineError(f"{BACKBONE}: holds {stored}, params.yaml names {wanted}; run `dvc repro backbone`")
    return facts


def check_backbone(model: Path) -> None:
    """Raise PipelineError where the model of a folder was not trained on the backbone that is there."""
    from pipeline.models.artifact import read_facts

    if read_facts(model)["inputs_sha256"].get("architecture") != sha256_of_file(BACKBONE / "backbone.json"):
        raise PipelineError(f"{model}: was trained on another backbone than that in {BACKBONE}; run `dvc repro`")


def find_inputs() -> "Inputs":
    """The outs that training reads. Raises PipelineError where one is missing."""
    for path in _MADE_BY_REPRO:
        if not Path(path).exists():
            raise PipelineError(f"{path}: is not there; run `dvc repro`")
    read_backbone()
    check_backbone(Path("models/baseline"))
    from pipeline.training.course import Inputs

    data, models = Path("data"), Path("models")
    return Inputs(data / "splits/train", data / "splits/val", data / "manifest.csv", BACKBONE, data / "embeddings", models / "baseline")
