"""A backbone and a head, from pixels to logits; and what of them is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.answer(self.backbone(pixels))

    def answer(self, features: Tensor) -> Tensor:
        """The logits (N, classes) of features (N, D)."""
        return cast(Tensor, self.head(self.dropout(features)))


@dataclass(frozen=True)
class Regime:
    """What of a classifier is trained: its head, the stages of its network from `first` on, BatchNorm where `norms` says so.

    `stages`: how many there are; `stage_of`: the stage of each layer of the network, 0 where it is not named. The stages
    join from the last to the first over `thaw_epochs` epochs, one after the other (Howard and Ruder, 2018); 0: at once.
    """

    stages: int = 1
    stage_of: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    thaw_epochs: int = 0
    norms: bool = False

    def first_stage(self, epoch: int) -> int:
        """The first stage that is trained in an epoch, counted from 1."""
        if epoch >= self.thaw_epochs:
            return self.first
        return self.stages - math.ceil((self.stages - self.first) * epoch / self.thaw_epochs)

    def train_mode(self, model: nn.Module, classifier: Classifier, epoch: int) -> None:
        """Switch `model`, which holds the classifier, to training: what is frozen, BatchNorm too, neither moves nor varies."""
        model.train().requires_grad_(True)
        first = self.first_stage(epoch)
        for name, layer in classifier.backbone.network.named_modules():
            if self.stage_of.get(name, 0) < first:
                layer.training = False
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad_(False)
        if not self.norms:
            freeze_norms(model)

    def stages_of(self, model: nn.Module, classifier: Classifier) -> dict[nn.Parameter, int]:
        """The stage of every parameter that is trained in the end; `stages` for what lies behind the network, as the head."""
        self.train_mode(model, classifier, self.thaw_epochs)
        layers = classifier.backbone.network.named_modules()
        inside = {parameter: self.stage_of.get(name, 0) for name, layer in layers for parameter in layer.parameters(recurse=False)}
        return {parameter: inside.get(parameter, self.stages) for parameter in model.parameters() if parameter.requires_grad}


def freeze_norms(model: nn.Module) -> None:
    """Let neither the statistics of BatchNorm move nor its weights."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval().requires_grad_(False)


class WithProbs(nn.Module):
    """A classifier that answers with probabilities, softmax(logits / temperature), (N, classes): what is exported and served."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, (self.classifier(pixels) / self.temperature).softmax(dim=1))


def load_backbone(folder: Path, with_weights: bool = True) -> tuple[Backbone, int]:
    """The backbone of a folder that the stage `backbone` wrote, in eval mode, and the number of its features.

    Its weights are those of the folder, or, without, drawn from torch's current random state.
    """
    facts = read_json(folder / "backbone.json")
    architecture = zoo.Architecture(**facts["architecture"])
    backbone = headless(zoo.build(architecture), architecture)
    if with_weights:
        tensors = load_file(folder / "weights.safetensors")
        fill(backbone.network, {key: tensor for key, tensor in tensors.items() if key not in facts["head_tensors"]})
    return backbone.eval(), facts["num_features"]


def headless(network: nn.Module, architecture: zoo.Architecture) -> Backbone:
    """Take the head and side heads away from a network. Raises PipelineError where there is none."""
    zoo.take_head_away(network, architecture)
    return Backbone(network, architecture.mean, architecture.std)


def load_classifier(backbone: Path, model: Path, num_classes: int) -> Classifier:
    """The classifier that a model folder stores, in eval mode."""
    body, num_features = load_backbone(backbone)
    classifier = Classifier(body, num_features, num_classes)
    fill(classifier, load_file(model / "model.safetensors"))
    return classifier.eval()


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors of a module, as of the versions that its layers have here: MNASNet refuses those of none."""
    state = module.state_dict()
    state.clear()  # the versions stay
    state.update(tensors)
    module.load_state_dict(state)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write all tensors of a classifier."""
    save_tensors(classifier.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, each by itself: what layers of a network share (as in CoaT) is there for each of them."""
    save_file({key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}, path)
