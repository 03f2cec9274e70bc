"""What there is to take: each model of torchvision and timm with its size, its work, and its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.models import published, zoo

_COUNTED = 50  # of timm's models: it has no table of sizes, so that each is built, without memory, and counted


@dataclass(frozen=True)
class Entry:
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


def list_entries(names: Sequence[str]) -> Iterator[Entry]:
    """What there is to know of models without the network. Those of timm are counted where they are at most fifty."""
    architectures = [zoo.find_architecture(name) for name in names]
    of_timm = sum(architecture.library == "timm" for architecture in architectures)
    for architecture in architectures:
        parameters, gflops = _size(architecture, of_timm <= _COUNTED)
        url, licence = published.published_source(architecture) or ("", "-")
        yield Entry(
            architecture.name, architecture.library, parameters, gflops, architecture.image_size,
            licence.partition(" (")[0], _publisher(url), published.whereabouts(architecture),
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
