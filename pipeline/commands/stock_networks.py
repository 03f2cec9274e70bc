"""What commands that ask a stock network share: which network, with which weights, on which device."""

import argparse
from typing import TYPE_CHECKING

from pipeline.commands.pictures import whole

if TYPE_CHECKING:
    import torch

    from pipeline.stock.networks import Wanted


def add_network_arguments(parser: argparse.ArgumentParser, model: str, models: str) -> None:
    """Let the parser take a network; `model` where nothing is said, one of those that `models` describes."""
    parser.add_argument("--model", metavar="NAME", default=model, help=f"{models} (default: {model})")
    parser.add_argument(
        "--weights", metavar="W", help="packaged, pretrained (as published), or a file of your own (default: packaged where they are)"
    )
    parser.add_argument("--classes", metavar="FILE", help="the names of the classes of your own weights, one a line, in their order")
    parser.add_argument("--fetch", action="store_true", help="fetch published weights that are not on this disk")


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """Let the parser take the size at which pictures go through the network."""
    parser.add_argument("--image-size", type=whole, metavar="PX", help="resize the shorter side to this (default: as published)")


def wanted(parsed: argparse.Namespace) -> "Wanted":
    """The network that the command line asks for."""
    from pipeline.stock.networks import Wanted

    size = getattr(parsed, "image_size", None)
    return Wanted(parsed.model, parsed.here, parsed.weights, parsed.classes, size, parsed.fetch)


def prepare_torch(threads: int) -> "torch.device":
    """Let torch use so many threads, and say where it computes."""
    import torch

    from pipeline.training.runtime import choose_device

    torch.set_num_threads(threads)
    return choose_device()
