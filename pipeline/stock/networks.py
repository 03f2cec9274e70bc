"""Stock networks: which exist, their weights, and the names of their classes."""

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.networks.weights import (
    PACKAGED,
    State,
    check_fit,
    fetch_published,
    kept_file,
    package_of,
    packaged_file,
    published_source,
    read_state,
    whereabouts,
    with_todays_names,
)

if TYPE_CHECKING:
    from torch import nn

Task = Literal["classify", "segment", "detect"]
_TASKS: tuple[Task, ...] = ("classify", "segment", "detect")
_NAMES_KEY = "class_names"  # in the metadata of a safetensors file: a JSON list
_TRAINING_ONLY = "aux_classifier."  # a second head of FCN and DeepLabV3, which answers nothing
_COUNTED = 50  # models of timm: it has no table of sizes, so that each has to be built


@dataclass(frozen=True)
class NetworkRequest:
    """The network that a user asks for. Relative paths start at `here`.

    `weights`: packaged, pretrained, a path, or None for packaged if a package has them, else pretrained. `classes`: the
    path of a file of names, or None. `image_size`: the side to which pictures are resized, or None for the publisher's.
    `fetch`: whether to fetch published weights that are not on this disk.
    """

    model: str
    here: Path
    weights: str | None = None
    classes: str | None = None
    image_size: int | None = None
    fetch: bool = False


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, its name in messages, who made it, and the names of its classes if they came with it."""

    path: Path
    name: str
    kind: Literal["packaged", "published", "own"]
    class_names: list[str] | None = None


@dataclass(frozen=True)
class ModelListing:
    """A model as params.yaml names it. `gmacs`: billions of multiply-adds per picture; None: not counted.

    `source`: who publishes its weights; `disk`: packaged, in store, or -.
    """

    name: str
    library: str
    parameters: int | None
    gmacs: float | None
    image_size: int
    licence: str
    source: str
    disk: str


def published_names(architecture: zoo.Architecture) -> list[str]:
    """The classes of a model's published weights, each name once. Raises PipelineError if they have none."""
    if architecture.library == "torchvision":
        return list(zoo.torchvision_weights(architecture.name).meta["categories"])
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = zoo.timm_published(architecture.name).num_classes
    if count == 1000:  # torchvision's names of ImageNet's classes are distinct, timm's are not
        return list(zoo.torchvision_weights("resnet18").meta["categories"])
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        raise PipelineError(f"--model {architecture.name}: its published weights have features, not classes; use another model")
    return distinct(list(ImageNetInfo(subset).label_descriptions()))


def read_names(path: Path, named: str) -> list[str]:
    """The names in a text file, one per line. Raises PipelineError; `named` is the path as the user wrote it."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise PipelineError(f"--classes {named}: {error.strerror}; name a text file with one class per line") from None
    except UnicodeDecodeError:
        raise PipelineError(f"--classes {named}: is not UTF-8 text; name a text file with one class per line") from None
    if not _are_names(names):
        raise PipelineError(f"--classes {named}: {'has a line that is not a name' if names else 'is empty'}; write one class per line")
    return distinct(names)


def names_inside(path: Path) -> list[str] | None:
    """The names in the metadata of a safetensors file, a JSON list under `class_names`; None if there are none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names: Any = json.loads((file.metadata() or {})[_NAMES_KEY])
    except (SafetensorError, KeyError, ValueError, RecursionError):
        return None
    return distinct(names) if _are_names(names) else None


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) and name and name.isprintable() for name in names)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, each once: a name that several classes share gets the number of the class, as in `crane (134)`."""
    counts = Counter(names)
    if max(counts.values()) == 1:
        return list(names)
    return distinct([f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)])


def check_model(task: Task, name: str) -> None:
    """Raise PipelineError if a command has no such model, with the command that has it and the nearest names."""
    if _has(task, name):
        return
    other = next((other for other in _TASKS if _has(other, name)), None)
    fault = f"is a model of `pipeline {other}`" if other else "is not a model of these commands"
    near = zoo.nearest_names(name) if task == "classify" else difflib.get_close_matches(name, _names(task), n=5, cutoff=0.0)
    raise PipelineError(f"--model {name}: {fault}; the nearest models of `pipeline {task}` are {', '.join(near)}")


def _has(task: Task, name: str) -> bool:
    return zoo.library_of(name) is not None if task == "classify" else name in _names(task)


def _names(task: Task) -> list[str]:
    """torchvision's models for a task, without Keypoint R-CNN, which finds the joints of persons."""
    import torchvision

    module = torchvision.models.segmentation if task == "segment" else torchvision.models.detection
    return [name for name in torchvision.models.list_models(module=module) if not name.startswith("keypoint")]


def find_weights(wanted: NetworkRequest, url: str | None) -> WeightsFile:
    """The file of the requested weights, fetched if allowed; `url`: where they are published. Raises PipelineError."""
    package = package_of(wanted.model)
    weights = wanted.weights or ("packaged" if package else "pretrained")
    if weights not in ("packaged", "pretrained"):
        return _own_file(wanted, weights)
    if wanted.classes:
        raise PipelineError(f"--classes {wanted.classes}: names the classes of your own weights; name these with --weights")
    if weights == "packaged":
        if package is None:
            raise PipelineError(f"--weights packaged: no package contains weights of {wanted.model}, only of {', '.join(PACKAGED)}")
        return WeightsFile(packaged_file(package), f"package {package}", "packaged")
    if url is None:
        raise PipelineError(f"--model {wanted.model}: has no published weights; name a file with --weights")
    path = kept_file(url) or (fetch_published(url) if wanted.fetch else None)
    if path is None:
        raise PipelineError(
            f"--model {wanted.model}: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
        )
    return WeightsFile(path, url, "published")


def _own_file(wanted: NetworkRequest, named: str) -> WeightsFile:
    path = wanted.here / named
    if not path.is_file():
        raise PipelineError(f"--weights {named}: no such file; write packaged, pretrained or the path of a file")
    names = read_names(wanted.here / wanted.classes, wanted.classes) if wanted.classes else names_inside(path)
    return WeightsFile(path, named, "own", names)


def fill(network: "nn.Module", file: WeightsFile, model: str) -> "nn.Module":
    """Load a file into a network and return it in eval mode. Raises PipelineError if the file does not fit.

    torchvision's layers know the names that their tensors had in older files.
    """
    state = read_state(file.path, file.name)
    if file.kind == "packaged":  # the package names tensors in its own way, but in the same order
        state = dict(zip(network.state_dict(), state.values(), strict=True))
    state = with_todays_names({key: tensor for key, tensor in state.items() if not key.startswith(_TRAINING_ONLY)})
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(network.state_dict(), state, file, model, error) from None
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise PipelineError(f"{file.name}: contains numbers that are not finite; train it again, or use an earlier state")
    return network.eval()


def _misfit(wanted: State, state: State, file: WeightsFile, model: str, error: RuntimeError) -> PipelineError:
    """The error for tensors that a network did not load."""
    try:
        check_fit(wanted, state, file.name, model)
    except PipelineError as fault:
        unnamed = file.kind == "own" and file.class_names is None
        return PipelineError(f"{fault}{', or its classes with --classes' * unnamed}")
    reason = str(error).strip().splitlines()[-1].strip()
    return PipelineError(f"{file.name}: does not fit {model}: {reason}; save a state dict, best as .safetensors")


def find_names(search: str, library: str | None) -> list[str]:
    """The names that contain a text, torchvision's before timm's. A name in both libraries is timm's as `timm/<name>`."""
    known = zoo.torchvision_names()
    names = known if library != "timm" else []
    if library != "torchvision":
        names = [*names, *(f"timm/{name}" if name in known else name for name in zoo.timm_names())]
    return [name for name in names if search.lower() in name.lower()]


def list_entries(names: Sequence[str]) -> Iterator[ModelListing]:
    """What is known of models without their weights. timm's models are counted if there are at most fifty of them."""
    architectures = [zoo.find_architecture(name) for name in names]
    of_timm = sum(architecture.library == "timm" for architecture in architectures)
    for architecture in architectures:
        parameters, gmacs = _size(architecture, of_timm <= _COUNTED)
        url, licence = published_source(architecture) or ("", "-")
        yield ModelListing(
            architecture.name, architecture.library, parameters, gmacs, architecture.image_size,
            licence.partition(" (")[0], _publisher(url), whereabouts(architecture),
        )  # fmt: skip


def _size(architecture: zoo.Architecture, counted: bool) -> tuple[int | None, float | None]:
    """The parameters of a network and its billions of multiply-adds; None for what is not counted."""
    if architecture.library == "torchvision":
        meta = zoo.torchvision_weights(architecture.name).meta
        return int(meta["num_params"]), float(meta["_ops"])
    return _count(architecture) if counted else (None, None)


def _count(architecture: zoo.Architecture) -> tuple[int, float | None]:
    """Count on a network whose tensors have shapes but no memory; some operations do not work without memory: None."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = architecture.image_size
    with torch.device("meta"), torch.no_grad():
        network = zoo.build(architecture).eval()
        parameters = sum(tensor.numel() for tensor in network.parameters())
        try:
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, 3, side, side))
        except (RuntimeError, NotImplementedError):
            return parameters, None
    return parameters, counter.get_total_flops() / 2e9


def _publisher(url: str) -> str:
    """The owner's name within a URL: download.pytorch.org is pytorch."""
    parts = (urlsplit(url).hostname or "").split(".")
    return parts[-2] if len(parts) > 1 else "-"
