"""The model folder: model.safetensors, model.onnx, model.json, golden.json, history.csv; and the check that they agree."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table, read_value, sha256_of_file, sha256_of_json, write_json, write_table
from pipeline.core.params import BASELINE, PARAMS, read_params
from pipeline.pictures.images import Array, Preprocessing

if TYPE_CHECKING:
    import onnx

    from pipeline.core.sections import Section

BACKBONE = Path("models/backbone")
GOLDEN = "golden.json"
_GOLDEN_TILES, _GOLDEN_TOLERANCE = (2, 4, 8, 16), 1e-3  # tiles a side of each golden picture; of a probability, on any hardware
_SUMS = {"model.onnx": "model_sha256", "model.onnx.data": "data_sha256", "model.safetensors": "weights_sha256"}  # their keys in model.json


def append_head(backbone: "onnx.ModelProto", weight: Any, bias: Any, temperature: float) -> "onnx.ModelProto":
    """Append a linear head and a softmax to a backbone: from `features` (N, D) to `probs` (N, classes), the first output.

    `weight`: float32 (classes, D); `bias`: float32 (classes,). The outputs of the backbone remain.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = backbone.graph
    scale = np.array(temperature, np.float32)
    tensors = {"head.weight": weight, "head.bias": bias, "temperature": scale}
    graph.initializer.extend([numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()])
    graph.node.append(helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1))
    graph.node.append(helper.make_node("Div", ["logits", "temperature"], ["scaled_logits"], "temperature"))
    graph.node.append(helper.make_node("Softmax", ["scaled_logits"], ["probs"], "probs", axis=1))
    others = list(graph.output)
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", len(bias)]), *others])
    return backbone


def describe_model(
    name: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    params: "Section",
    code: str,
    inputs: Mapping[str, Path],
    hardware: Mapping[str, str | int],
    learned: str,
) -> dict[str, Any]:
    """Return the facts of a model: its classes, its params, and the sha256 of its inputs and of its code.

    `code`: the module that trains it; `inputs`: files; `hardware`: whatever else decides its bytes; `learned`: the record of all pictures
    that its weights ever learned from, train and val, see `record_of`.
    """
    from pipeline.core.stage import code_digest

    params_json = params.model_dump(mode="json")
    sums = {key: sha256_of_file(path) for key, path in inputs.items()}
    return {
        "model": name,
        "class_names": list(class_names),
        "preprocessing": asdict(preprocessing),
        "params": params_json,
        "inputs_sha256": {**sums, "params": sha256_of_json(params_json), "code": code_digest(code)},
        "hardware": dict(hardware),
        "learned": learned,
    }


def identity(facts: Mapping[str, Any]) -> str:
    """Return the sha256 of all that decides a model's bytes: its inputs, device, precision and threads."""
    return sha256_of_json([facts["model"], facts["inputs_sha256"], facts["hardware"]])


def write_facts(folder: Path, model: "onnx.ModelProto", facts: Mapping[str, Any], history: Sequence[Mapping[str, object]]) -> None:
    """Complete a model folder: model.onnx with the facts, model.json with the facts and the sha256 of the files, history.csv.

    The graph stores the sha256 of model.onnx.data, so that `model_sha256` identifies both files.
    """
    import onnx

    from pipeline.networks.onnx_file import add_facts, data_path, move_tensors_out, write_onnx

    path, weights = folder / "model.onnx", folder / "model.safetensors"
    if move_tensors_out(model, path):
        facts = {**facts, "data_sha256": sha256_of_file(data_path(path))}
    add_facts(model, facts)
    write_onnx(model, path)
    onnx.checker.check_model(path)
    sums = {"model_sha256": sha256_of_file(path)} | ({"weights_sha256": sha256_of_file(weights)} if weights.is_file() else {})
    write_json(folder / "model.json", {**facts, **sums})
    write_table(folder / "history.csv", list(history[-1]), history)


def golden_pixels(image_size: int) -> Array:
    """Return the pictures of the golden answers, uint8 (4, S, S, 3): coloured tiles, always the same."""
    generator = np.random.default_rng(0)
    grids = [generator.integers(0, 256, (tiles, tiles, 3), np.uint8) for tiles in _GOLDEN_TILES]
    places = [np.arange(image_size) * tiles // image_size for tiles in _GOLDEN_TILES]
    return np.stack([grid[np.ix_(place, place)] for grid, place in zip(grids, places, strict=True)])


def write_golden(folder: Path, threads: int) -> None:
    """Write golden.json: the probabilities of `golden_pixels` by model.onnx, by which a server checks the model that it loads."""
    from pipeline.networks.onnx_file import open_session, run_in_parts

    facts = read_facts(folder)
    pixels = golden_pixels(facts["preprocessing"]["image_size"])
    probs = run_in_parts(open_session(folder / "model.onnx", threads), ["probs"], pixels, threads)[0]
    write_json(folder / GOLDEN, {"model_sha256": facts["model_sha256"], "probs": [[round(float(p), 6) for p in row] for row in probs]})


def golden_fault(folder: Path, predict: Callable[[Array], Array]) -> str | None:
    """Return how the answers of a loaded model differ from golden.json; None if they agree, or if the model was stored without one.

    `predict`: from pixels, uint8 (N, S, S, 3), to probabilities, float32 (N, classes).
    """
    golden, facts = read_value(folder / GOLDEN), read_facts(folder)
    if golden is None:
        return None
    expected = np.array(golden["probs"])
    difference = float(np.abs(predict(golden_pixels(facts["preprocessing"]["image_size"])) - expected).max())
    return None if difference <= _GOLDEN_TOLERANCE else f"{folder}: its golden answers differ by {difference:.2g}"


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of model.json. Raises PipelineError if the folder contains no model, or if the file is damaged."""
    path = folder / "model.json"
    if not path.is_file():
        raise PipelineError(f"{folder}: contains no model; run `dvc repro`")
    facts: dict[str, Any] | None = read_value(path)
    if not isinstance(facts, dict):
        raise PipelineError(f"{path}: is damaged; run `dvc checkout`")
    return facts


def verify_model(folder: Path) -> str:
    """Check that model.json agrees with the files beside it, and return the sha256 of model.onnx. Raises PipelineError."""
    import onnx

    from pipeline.networks.onnx_file import METADATA_KEY

    facts = read_facts(folder)
    for path, sha256 in [(folder / name, facts[key]) for name, key in _SUMS.items() if key in facts]:
        if not path.is_file():
            raise PipelineError(f"{path}: is not there; run `dvc checkout`")
        if (found := sha256_of_file(path)) != sha256:
            raise PipelineError(f"{path}: its sha256 is {found}, model.json states another; run `dvc checkout`")
    expected = {key: value for key, value in facts.items() if key not in ("model_sha256", "weights_sha256")}
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    stored = {entry.key: entry.value for entry in graph.metadata_props}
    if json.loads(stored[METADATA_KEY]) != expected:
        raise PipelineError(f"{folder}: model.json differs from the metadata of model.onnx; run `dvc checkout`")
    return str(facts["model_sha256"])


def kept_row(folder: Path) -> dict[str, str]:
    """Return the row of history.csv whose weights are stored: the best by the param `monitor`, or else by val loss."""
    monitor = read_json(folder / "model.json").get("params", {}).get("monitor", "val_loss")
    sign = 1 if monitor.endswith("loss") else -1
    rows = [row for row in read_table(folder / "history.csv") if row[monitor]]
    return min(rows, key=lambda row: sign * float(row[monitor]))


def find_model(named: str | None, models: Path, here: Path) -> Path:
    """Return the folder of a named model, below `models` or as a path below `here`; without a name the best on val.

    Raises PipelineError if there is none, or if it is a stray of the project or was trained on another manifest than the present one.
    """
    if named is None:
        return best_model(models)
    for folder in (models / named, here / named):
        if named and (folder / "model.onnx").is_file():
            if folder.resolve().parent == models.resolve():
                _check_answers(models / folder.resolve().name, models)
            return folder
    available = ", ".join(folder.name for folder in _known(models)) or "none; run `dvc repro`"
    raise PipelineError(f"--model {named}: there is no such model, neither in {models} nor as a folder; available: {available}")


def best_model(models: Path) -> Path:
    """Return the model with the lowest val loss, the first by name of equals; test is not used. Raises PipelineError.

    The baseline and the entries of params.yaml take part, all of them trained on the present manifest.
    """
    folders = [folder for folder in _known(models) if (folder / "history.csv").is_file()]
    for folder in folders:
        _check_answers(folder, models)
    losses = {folder: float(kept_row(folder)["val_loss"]) for folder in folders}
    if not losses:
        raise PipelineError(f"{models}: contains no model; run `dvc repro`")
    return min(losses, key=lambda folder: losses[folder])


def find_strays(project: Path) -> list[Path]:
    """Return what stages wrote for models that have left params.yaml: folders in models/ and results/, files in metrics/."""
    names = _named(project)
    described = {path.parent: path for pattern in ("models/*/model.json", "results/*/scores.json") for path in project.glob(pattern)}
    described |= {path: path for path in project.glob("metrics/*.json")}
    by_name = [(place, path, place.name.removesuffix(".json")) for place, path in described.items()]
    return sorted(place for place, path, name in by_name if names is not None and name not in names and _is_of_model(path, name))


def _check_answers(folder: Path, models: Path) -> None:
    """Raise PipelineError if a model of the project is a stray, or was trained on another manifest."""
    if folder in find_strays(models.parent):
        raise PipelineError(f"{folder}: is a stray, {PARAMS} has no such entry of `models`; add it, or run `pipeline mend --strays`")
    manifest = models.parent / "data" / "manifest.csv"
    if manifest.is_file() and read_facts(folder).get("inputs_sha256", {}).get("data") != sha256_of_file(manifest):
        raise PipelineError(f"{folder}: was trained on other pictures than those of {manifest}; run `dvc repro`")


def _known(models: Path) -> list[Path]:
    """The stored models that params.yaml names, and the baseline."""
    names = _named(models.parent)
    stored = sorted(path.parent for path in models.glob("*/model.onnx"))
    return [folder for folder in stored if names is None or folder.name in names]


def _named(project: Path) -> tuple[str, ...] | None:
    """The baseline and the entries of `models` in params.yaml; None if nothing says which models there are."""
    path = project / PARAMS
    if not path.is_file() or "models" not in (params := read_params(path)):
        return None
    return (BASELINE, *(params["models"] or {}))


def _is_of_model(path: Path, name: str) -> bool:
    """Whether a stage wrote this JSON file for the model of that name."""
    try:
        content = read_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and (content.get("model") == name or list(content) == [name])


def read_backbone() -> dict[str, Any]:
    """Return the content of backbone.json. Raises PipelineError if it is missing or of another network than params.yaml names."""
    path = BACKBONE / "backbone.json"
    if not path.is_file():
        raise PipelineError(f"{BACKBONE}: is not there; run `dvc repro backbone`")
    facts: dict[str, Any] = read_json(path)
    stored, wanted = facts["architecture"]["name"], (read_params().get("backbone") or {}).get("name")
    if stored != wanted:
        raise PipelineError(f"{BACKBONE}: is {stored}, params.yaml names {wanted}; run `dvc repro backbone`")
    return facts


def check_backbone(model: Path) -> None:
    """Raise PipelineError if the model of a folder was trained on another backbone than the present one."""
    if read_facts(model)["inputs_sha256"].get("architecture") != sha256_of_file(BACKBONE / "backbone.json"):
        raise PipelineError(f"{model}: was trained on another backbone than {BACKBONE}; run `dvc repro`, or name another model")
