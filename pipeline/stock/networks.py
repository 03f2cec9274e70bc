"""Networks as a person asks for them: to which command a model belongs, where its weights lie, and filling it with them."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import PipelineError
from pipeline.models import zoo
from pipeline.models.published import PACKAGED, kept_file, package_of
from pipeline.models.weights import State, check_fit, fetch_published, packaged_file, read_state, with_todays_names
from pipeline.stock.class_names import names_inside, read_names

if TYPE_CHECKING:
    from torch import nn

Task = Literal["classify", "segment", "detect"]

_TASKS: tuple[Task, ...] = ("classify", "segment", "detect")
_FOR_TRAINING = "aux_classifier."  # of FCN and DeepLabV3: what it says is never shown


@dataclass(frozen=True)
class Wanted:
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


def find_weights(wanted: Wanted, url: str | None) -> WeightsFile:
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


def _own(wanted: Wanted, named: str) -> WeightsFile:
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
