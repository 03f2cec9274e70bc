"""What the contenders that are not this pipeline share: arguments, the pretrained network, the pictures, and how they report."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import datasets, transforms

NETWORK, IMAGE_SIZE, MEAN_STD = "tf_efficientnet_lite0", 224, ([0.5] * 3, [0.5] * 3)
BATCH_SIZE = 32
WORKERS = os.cpu_count() or 1
TRANSFORMS = {
    "train": transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*MEAN_STD),
        ]
    ),
    "val": transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(IMAGE_SIZE), transforms.ToTensor(), transforms.Normalize(*MEAN_STD)]
    ),
}


def arguments(description: str | None, works: Sequence[str]) -> argparse.Namespace:
    """The command line of a contender."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", choices=works)
    parser.add_argument("weights", type=Path, help="of tf_efficientnet_lite0, safetensors")
    parser.add_argument("pictures", type=Path, help="a folder with the folders train and val; of `predict`, a picture")
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args()


def load_network(weights: Path, num_classes: int) -> nn.Module:
    """The pretrained network with a new head, or without one if `num_classes` is 0."""
    network: nn.Module = timm.create_model(NETWORK, num_classes=num_classes)
    load_body(network, weights)
    return network


def load_body(network: nn.Module, weights: Path) -> None:
    """Load the weights of everything but the head. Raises ValueError if others are missing or left over."""
    body = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier.")}
    keys = network.load_state_dict(body, strict=False)
    if keys.unexpected_keys or any(not name.startswith("classifier.") for name in keys.missing_keys):
        raise ValueError(f"{weights}: not the weights of {NETWORK}: {keys}")


def image_folder(pictures: Path, phase: str, transform: str) -> datasets.ImageFolder:
    """The pictures of a phase."""
    return datasets.ImageFolder(str(pictures / phase), TRANSFORMS[transform])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of pictures whose largest logit is that of their class."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def report(**figures: Any) -> None:
    """Print the figures as the last line."""
    print(json.dumps(figures))
