"""Stock networks: which there are, their weights, and the names of their classes."""

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pipeline.core.errors import PipelineError
from pipeline.networks import weights, zoo
from pipeline.networks.weights import (
    PACKAGED,
    State,
    check_fit,
    fetch_published,
    kept_file,
    package_of,
    packaged_file,
    read_state,
    with_todays_names,
)

if TYPE_CHECKING:
    from torch import nn

_KEY = "class_names"  # in the metadata of a safetensors file: a JSON list


def published_names(architecture: zoo.Architecture) -> list[str]:
    """The classes of a classification model's published weights, each with a name of its own. Raises PipelineError where they have none."""
    if architecture.library == "torchvision":
        return list(zoo.torchvision_weights(architecture.name).meta["categories"])
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = zoo.timm_published(architecture.name).num_classes
    if count == 1000:
        return list(zoo.torchvision_weights("resnet18").meta["categories"])
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        raise PipelineError(f"--model {architecture.name}: its published weights give features, no classes of ImageNet; take another model")
    return distinct(list(ImageNetInfo(subset).label_descriptions()))


def read_names(path: Path, named: str) -> list[str]:
    """The names in a text file, one a line. Raises PipelineError."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise PipelineError(f"--classes {named}: {error.strerror}; name a text file with a class a line") from None
    except UnicodeDecodeError:
        raise PipelineError(f"--classes {named}: is no UTF-8 text; name a text file with a class a line") from None
    if not _are_names(names):
        raise PipelineError(f"--classes {named}: {'has a line that is no name' if names else 'is empty'}; write a class a line")
    return distinct(names)


def names_inside(path: Path) -> list[str] | None:
    """The names that a safetensors file tells under `class_names`, as a JSON list, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found: Any = json.loads((file.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, ValueError, RecursionError):
        return None
    return distinct(found) if _are_names(found) else None


def _are_names(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(name, str) and name and name.isprintable() for name in found)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with its number behind each that several classes have, until each has its own."""
    counts = Counter(names)
    if max(counts.values()) == 1:
        return list(names)
    return distinct([f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)])


Task = Literal["classify", "segment", "detect"]
_TASKS: tuple[Task, ...] = ("classify", "segment", "detect")
_FOR_TRAINING = "aux_classifier."  # of FCN and DeepLabV3: what it says is never shown


@dataclass(frozen=True)
class NetworkRequest:
    """A network as it was asked for. Relative paths start at `here`.

    `weights`: packaged, pretrained or a path; None: packaged where a package carries them. `classes`: the path of a file
    of names, or None. `image_size`: to which side pictures are resized, or None: as its publisher did. `fetch`: whether
    weights that are not on this disk may be fetched.
    """

    model: str
    here: Path
    weights: str | None = None
    classes: str | None = None
    image_size: int | None = None
    fetch: bool = False


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, its name for people, and the classes that are told with it. `kind`: who made it."""

    path: Path
    name: str
    kind: Literal["packaged", "published", "own"]
    class_names: list[str] | None = None


def check_model(task: Task, name: str) -> None:
    """Raise PipelineError with the nearest names where a command has no such model; it says which command has."""
    if _has(task, name):
        return
    other = next((other for other in _TASKS if _has(other, name)), None)
    belongs = f"belongs to `pipeline {other}`" if other else "is no model of these commands"
    near = zoo.nearest_names(name) if task == "classify" else difflib.get_close_matches(name, _names(task), n=5, cutoff=0.0)
    raise PipelineError(f"--model {name}: {belongs}; of those that {task} takes the nearest are {', '.join(near)}")


def _has(task: Task, name: str) -> bool:
    return zoo.library_of(name) is not None if task == "classify" else name in _names(task)


def _names(task: Task) -> list[str]:
    """torchvision's models for a task. Keypoint R-CNN is left out: it finds joints of persons."""
    import torchvision

    module = torchvision.models.segmentation if task == "segment" else torchvision.models.detection
    return [name for name in torchvision.models.list_models(module=module) if not name.startswith("keypoint")]


def find_weights(wanted: NetworkRequest, url: str | None) -> WeightsFile:
    """Where the weights lie that are wanted; `url`: where they are published. Raises PipelineError."""
    package = package_of(wanted.model)
    weights = wanted.weights or ("packaged" if package else "pretrained")
    if weights not in ("packaged", "pretrained"):
        return _own(wanted, weights)
    if wanted.classes:
        raise PipelineError(f"--classes {wanted.classes}: names the classes of a file of your own; name that with --weights")
    if weights == "packaged":
        if package is None:
            raise PipelineError(f"--weights packaged: no package carries weights of {wanted.model}, only of {', '.join(PACKAGED)}")
        return WeightsFile(packaged_file(package), f"package {package}", "packaged")
    if url is None:
        raise PipelineError(f"--model {wanted.model}: nobody publishes weights of it; name a file with --weights")
    path = kept_file(url) or (fetch_published(url) if wanted.fetch else None)
    if path is None:
        raise PipelineError(
            f"--model {wanted.model}: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
        )
    return WeightsFile(path, url, "published")


def _own(wanted: NetworkRequest, named: str) -> WeightsFile:
    path = wanted.here / named
    if not path.is_file():
        raise PipelineError(f"--weights {named}: no such file; say packaged, pretrained or name a file")
    names = read_names(wanted.here / wanted.classes, wanted.classes) if wanted.classes else names_inside(path)
    return WeightsFile(path, named, "own", names)


def fill(network: "nn.Module", file: WeightsFile, model: str) -> "nn.Module":
    """Load a file into a network and return it in eval mode. Raises PipelineError where it does not fit.

    torchvision's layers know the names that their tensors had in older files.
    """

    state = read_state(file.path, file.name)
    if file.kind == "packaged":
        state = dict(zip(network.state_dict(), state.values(), strict=True))
    state = with_todays_names({key: tensor for key, tensor in state.items() if not key.startswith(_FOR_TRAINING)})
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(network.state_dict(), state, file, model, error) from None
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise PipelineError(f"{file.name}: holds numbers that are not finite; train it anew, or take an earlier state")
    return network.eval()


def _misfit(wanted: State, state: State, file: WeightsFile, model: str, error: RuntimeError) -> PipelineError:
    """What to say of tensors that a network did not take."""
    try:
        check_fit(wanted, state, file.name, model)
    except PipelineError as fault:
        unnamed = file.kind == "own" and file.class_names is None
        return PipelineError(f"{fault}{', or its classes with --classes' * unnamed}")
    reason = str(error).strip().splitlines()[-1].strip()
    return PipelineError(f"{file.name}: does not fit {model}: {reason}; save a state dict, best as .safetensors")


_COUNTED = 50  # of timm's models: it has no table of sizes, so that each is built, without memory, and counted


@dataclass(frozen=True)
class ModelListing:
    """A model as params.yaml names it; `gflops` are thousand millions of multiply-adds a picture. None: not counted.

    `source`: who publishes its weights; `disk`: packaged, in store, or -.
    """

    name: str
    library: str
    parameters: int | None
    gflops: float | None
    image_size: int
    licence: str
    source: str
    disk: str


def find_names(search: str, library: str | None) -> list[str]:
    """The names that hold a text, torchvision's before timm's; where both have one, timm's is called `timm/<name>`."""
    known = zoo.torchvision_names()
    names = known if library != "timm" else []
    if library != "torchvision":
        names = [*names, *(f"timm/{name}" if name in known else name for name in zoo.timm_names())]
    return [name for name in names if search.lower() in name.lower()]


def list_entries(names: Sequence[str]) -> Iterator[ModelListing]:
    """What there is to know of models without the network. Those of timm are counted where they are at most fifty."""
    architectures = [zoo.find_architecture(name) for name in names]
    of_timm = sum(architecture.library == "timm" for architecture in architectures)
    for architecture in architectures:
        parameters, gflops = _size(architecture, of_timm <= _COUNTED)
        url, licence = weights.published_source(architecture) or ("", "-")
        yield ModelListing(
            architecture.name, architecture.library, parameters, gflops, architecture.image_size,
            licence.partition(" (")[0], _publisher(url), weights.whereabouts(architecture),
        )  # fmt: skip


def _size(architecture: zoo.Architecture, counted: bool) -> tuple[int | None, float | None]:
    if architecture.library == "torchvision":
        told = zoo.torchvision_weights(architecture.name).meta
        return int(told["num_params"]), float(told["_ops"])
    return _count(architecture) if counted else (None, None)


def _count(architecture: zoo.Architecture) -> tuple[int, float | None]:
    """Build a network whose tensors hold no numbers, and count; None where it does not work without them."""
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
    """The one word of a URL's host that names its owner: download.pytorch.org is pytorch."""
    parts = (urlsplit(url).hostname or "").split(".")
    return parts[-2] if len(parts) > 1 else "-"
