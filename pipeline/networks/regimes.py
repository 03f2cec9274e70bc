"""Regimes: which part of a network is trained, and the side heads of Inception and GoogLeNet."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.networks import zoo
from pipeline.networks.classifier import Backbone, Classifier, record_output
from pipeline.networks.splitting import measure, noise, run_front


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


_WHOLE = ("finetuned", "scratch")


@dataclass(frozen=True)
class RegimePlan:
    """A regime, and the front of the network that never moves and is run once a picture, if it `has_front`.

    `front_end`: the layer that ends it; None where it is the whole network.
    """

    regime: Regime
    has_front: bool = False
    front_end: str | None = None


def make_plan(name: str, stages: int, batchnorm: str, epochs: int, by_stage: bool, backbone: Backbone, image_size: int) -> RegimePlan:
    """The regime of that name: frozen, partial (the last `stages`), gradual (over the first half of the epochs), finetuned or scratch.

    `batchnorm`: training (where its stage learns), frozen, or auto, which is frozen but for scratch; `by_stage`: whether the
    rates differ by stage. Raises PipelineError.
    """
    norms = name == "scratch" if batchnorm == "auto" else batchnorm == "training"
    if name in _WHOLE and not by_stage:
        return RegimePlan(Regime(norms=norms))
    if name == "frozen":
        return RegimePlan(Regime(first=1, norms=norms), has_front=True)
    depth = measure(backbone, image_size)
    if name == "partial" and stages > depth.count:
        ends = ", ".join((*depth.ends, "the features"))
        raise PipelineError(
            f"params.yaml: models: stages: {stages} are more than the {depth.count} that the backbone has, which end at {ends}; say fewer"
        )
    first = depth.count - stages if name == "partial" else 0
    thaw_epochs = max(1, epochs // 2) if name == "gradual" else 0
    regime = Regime(depth.count, depth.stage_of, first, thaw_epochs, norms)
    return RegimePlan(regime, first > 0, depth.ends[first - 1] if first > 0 else None)


# Of a torchvision network: the side head behind each of these layers.
_PLACES = {"inception_v3": {"Mixed_6e": "AuxLogits"}, "googlenet": {"inception4a": "aux1", "inception4d": "aux2"}}


class WithSideHeads(nn.Module):
    """A classifier that in training answers with the logits of its side heads too: (logits, side logits, …), each (N, classes)."""

    def __init__(self, classifier: Classifier, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.classifier = classifier
        self.layers = list(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.training:
            return self.classifier(pixels)  # type: ignore[no-any-return]
        with ExitStack() as stack:
            network = self.classifier.backbone.network
            seen = [stack.enter_context(record_output(network.get_submodule(layer))) for layer in self.layers]
            logits = self.classifier(pixels)
        return (logits, *(head(maps[-1]) for head, maps in zip(self.heads, seen, strict=True)))


def add_side_heads(classifier: Classifier, backbone: Path, with_weights: bool, image_size: int) -> nn.Module:
    """The classifier with side heads for its classes where its architecture has them, and as it is where not.

    As it is also where the maps of small pictures are smaller than Inception's side head takes.

    `backbone`: the folder that the stage `backbone` wrote; all of a side head but its last layer takes its weights from there.
    """
    architecture = zoo.Architecture(**read_json(backbone / "backbone.json")["architecture"])
    places = _PLACES.get(architecture.name)
    if places is None:
        return classifier
    network = zoo.build(architecture)
    if with_weights:
        network.load_state_dict(load_file(backbone / "weights.safetensors"))
    heads = {layer: network.get_submodule(name) for layer, name in places.items()}
    for head in heads.values():
        name, last = [(name, layer) for name, layer in head.named_modules() if isinstance(layer, nn.Linear)][-1]
        head.set_submodule(name, nn.Linear(last.in_features, classifier.head.out_features))
    try:
        with torch.no_grad():
            for layer, head in heads.items():
                head.eval()(run_front(classifier.backbone, layer, noise(image_size)))
    except RuntimeError:
        return classifier
    return WithSideHeads(classifier, heads)


def main_logits(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The logits of an answer, and those of side heads, of which most networks have none."""
    if isinstance(answer, Tensor):
        return answer, ()
    return answer[0], answer[1:]
