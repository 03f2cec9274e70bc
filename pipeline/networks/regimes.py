"""Regimes: the part of a network that is trained, and the side heads of Inception and GoogLeNet."""

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
from pipeline.networks.classifier import Backbone, Classifier, random_pixels, record_output
from pipeline.networks.splitting import measure, run_front

_WHOLE = ("finetuned", "scratch")  # regimes that train all stages from the first epoch on
# The torchvision networks with side heads: each layer that has one, and the name of the side head.
_SIDE_HEADS = {"inception_v3": {"Mixed_6e": "AuxLogits"}, "googlenet": {"inception4a": "aux1", "inception4d": "aux2"}}


@dataclass(frozen=True)
class Regime:
    """The part of a classifier that is trained: its head, the stages of its network from `first` on, and BatchNorm if `norms`.

    `stages`: their number; `stage_of`: the stage of each layer of the network, 0 if a layer is not listed. With `thaw_epochs` the
    stages join one by one, the last first, over so many epochs (gradual unfreezing: Howard and Ruder, 2018); 0: all at once.
    """

    stages: int = 1
    stage_of: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    thaw_epochs: int = 0
    norms: bool = False

    def first_stage(self, epoch: int) -> int:
        """Return the first stage that is trained in an epoch, counted from 1."""
        if epoch >= self.thaw_epochs:
            return self.first
        return self.stages - math.ceil((self.stages - self.first) * epoch / self.thaw_epochs)

    def train_mode(self, model: nn.Module, classifier: Classifier, epoch: int) -> None:
        """Switch `model`, which contains the classifier, to training. Frozen layers are in eval mode and have no gradients."""
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
        """Return the stage of every parameter that is trained at last: `stages` for those outside the network, such as the head's."""
        self.train_mode(model, classifier, self.thaw_epochs)
        layers = classifier.backbone.network.named_modules()
        inside = {parameter: self.stage_of.get(name, 0) for name, layer in layers for parameter in layer.parameters(recurse=False)}
        return {parameter: inside.get(parameter, self.stages) for parameter in model.parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class RegimePlan:
    """A regime, and whether the network `has_front`: a part that never changes and runs once per picture.

    `front_end`: the layer that ends the front; None if the front is the whole network.
    """

    regime: Regime
    has_front: bool = False
    front_end: str | None = None


class WithSideHeads(nn.Module):
    """A classifier that in training also returns the logits of its side heads: (logits, side logits, …), each (N, classes)."""

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
            outputs = [stack.enter_context(record_output(network.get_submodule(layer))) for layer in self.layers]
            logits = self.classifier(pixels)
        return (logits, *(head(maps[-1]) for head, maps in zip(self.heads, outputs, strict=True)))


def freeze_norms(model: nn.Module) -> None:
    """Freeze the statistics and the weights of BatchNorm."""
    # The published statistics are of a million pictures. A few small batches estimate worse ones, and the network, whose other layers
    # expect the old scale, loses what it has learnt.
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval().requires_grad_(False)


def make_plan(name: str, stages: int, batchnorm: str, epochs: int, by_stage: bool, backbone: Backbone, image_size: int) -> RegimePlan:
    """Return the regime of that name: frozen, partial (the last `stages`), gradual (over half of the epochs), finetuned or scratch.

    `batchnorm`: training (if its stage is trained), frozen, or auto: frozen unless from scratch; `by_stage`: whether the learning
    rates differ by stage. Raises PipelineError if there are fewer stages.
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
            f"params.yaml: models: stages: {stages} are more than the {depth.count} of this backbone, which end at {ends}; choose fewer"
        )
    first = depth.count - stages if name == "partial" else 0
    thaw_epochs = max(1, epochs // 2) if name == "gradual" else 0
    regime = Regime(depth.count, depth.stage_of, first, thaw_epochs, norms)
    return RegimePlan(regime, first > 0, depth.ends[first - 1] if first > 0 else None)


def add_side_heads(classifier: Classifier, backbone: Path, with_weights: bool, image_size: int) -> nn.Module:
    """Return the classifier with side heads for its classes, or the classifier itself if its architecture has none.

    `backbone`: the folder written by the stage `backbone`. It contains the weights of a side head but for its last layer.
    """
    architecture = zoo.Architecture(**read_json(backbone / "backbone.json")["architecture"])
    names = _SIDE_HEADS.get(architecture.name)
    if names is None:
        return classifier
    network = zoo.build(architecture)
    if with_weights:
        network.load_state_dict(load_file(backbone / "weights.safetensors"))
    heads = {layer: network.get_submodule(name) for layer, name in names.items()}
    for head in heads.values():
        name, last = [(name, layer) for name, layer in head.named_modules() if isinstance(layer, nn.Linear)][-1]
        head.set_submodule(name, nn.Linear(last.in_features, classifier.head.out_features))
    try:  # the maps of small pictures may be smaller than a kernel of Inception's side head
        with torch.no_grad():
            for layer, head in heads.items():
                head.eval()(run_front(classifier.backbone, layer, random_pixels(image_size)))
    except RuntimeError:
        return classifier
    return WithSideHeads(classifier, heads)


def main_logits(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the logits of an answer, and the logits of side heads, of which most networks have none."""
    if isinstance(answer, Tensor):
        return answer, ()
    return answer[0], answer[1:]
