"""A backbone and a head, from pixels to logits; and what of them is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.files import read_json
from pipeline.models import zoo


class Backbone(nn.Module):
    """A network without its head: pixels (N, S, S, 3) uint8 to features (N, D) float32."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)
        self.register_buffer("offset", torch.tensor(mean).view(1, 3, 1, 1) / torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.permute(0, 3, 1, 2).float() * cast(Tensor, self.scale) - cast(Tensor, self.offset)
        return cast(Tensor, self.network(scaled)).float()


class Classifier(nn.Module):
    """A backbone and a linear head: pixels (N, S, S, 3) uint8 to logits (N, classes) float32."""

    def __init__(self, backbone: Backbone, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.backbone(pixels)))


class WithProbs(nn.Module):
    """A classifier that answers with probabilities, softmax(logits / temperature), (N, classes): what is exported and served."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, (self.classifier(pixels) / self.temperature).softmax(dim=1))


def load_backbone(folder: Path) -> tuple[Backbone, int]:
    """The frozen backbone of a folder that the stage `backbone` wrote, and the number of its features."""
    facts = read_json(folder / "backbone.json")
    architecture = zoo.Architecture(**facts["architecture"])
    backbone = headless(zoo.build(architecture), architecture)
    tensors = load_file(folder / "weights.safetensors")
    backbone.network.load_state_dict({key: tensor for key, tensor in tensors.items() if key not in facts["head_tensors"]})
    return backbone.eval(), facts["num_features"]


def headless(network: nn.Module, architecture: zoo.Architecture) -> Backbone:
    """Take the head and side heads away from a network. Raises PipelineError where there is none."""
    zoo.take_head_away(network, architecture)
    return Backbone(network, architecture.mean, architecture.std)


def load_classifier(backbone: Path, model: Path, num_classes: int) -> Classifier:
    """The classifier that a model folder stores, in eval mode."""
    body, num_features = load_backbone(backbone)
    classifier = Classifier(body, num_features, num_classes)
    classifier.load_state_dict(load_file(model / "model.safetensors"))
    return classifier.eval()


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write all tensors of a classifier."""
    save_file({key: tensor.contiguous() for key, tensor in classifier.state_dict().items()}, path)


def train_mode(classifier: Classifier) -> None:
    """Switch to training with BatchNorm frozen: neither its statistics nor its weights move."""
    classifier.train()
    for layer in classifier.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval().requires_grad_(False)
