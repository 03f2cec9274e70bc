"""The names of a network's classes: told by a file, by the publisher of its weights, or in a file that holds nothing else."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.models import zoo

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
