"""The side heads of Inception and GoogLeNet, which help their early layers to learn: there in training alone."""

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.files import read_json
from pipeline.models import zoo
from pipeline.models.classifier import Classifier
from pipeline.models.halves import noise, run_front
from pipeline.models.maps import watched

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
            seen = [stack.enter_context(watched(network.get_submodule(layer))) for layer in self.layers]
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
