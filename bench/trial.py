"""One architecture through all that the pipeline does with a network, on eight generated pictures, with no file from the network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.gradcam import grad_cam
from pipeline.files import read_json, sha256_of_file
from pipeline.models import zoo
from pipeline.models.artifact import append_head, verify, write_facts
from pipeline.models.classifier import (
    Backbone,
    Classifier,
    Regime,
    WithProbs,
    load_backbone,
    load_classifier,
    save_classifier,
    save_tensors,
)
from pipeline.models.export import check_parity
from pipeline.models.maps import last_map, with_map
from pipeline.models.published import package_of
from pipeline.models.session import read_onnx
from pipeline.stages import backbone as backbone_stage
from pipeline.stages.embed import export_backbone

_SIDES = (64, 96, 128)  # the least that the network takes, else its own
_LABELS = torch.arange(8) % 2
_STEPS_TAKEN = 3
_TIMES = 4  # the pictures of which BatchNorm takes its statistics
_RATES = (1e-4, 1e-3, 1e-5, 1e-6)  # of which one must lower the loss: random weights have features of any scale


@dataclass(frozen=True)
class Bench:
    """A network with a new head of two classes on the table: its folder, its number of features, and the pictures before it."""

    folder: Path
    facts: dict
    classifier: Classifier
    pixels: np.ndarray
    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        """The pictures as torch takes them."""
        return torch.from_numpy(self.pixels)


def try_out(name: str, folder: Path) -> dict[str, str]:
    """What the network is, and what came of each step: yes, or in a line why not. `folder` takes its files."""
    torch.manual_seed(0)
    try:
        bench = lay_out(name, folder)
    except Exception as error:
        return {"name": name, "built": _reason(error)}
    result = {
        "name": name,
        "parameters": f"{bench.facts['parameters']:,}",
        "px": str(bench.pixels.shape[1]),
        "features": str(bench.facts["num_features"]),
        "head": bench.facts["head"],
        "built": "yes",
    }
    for step, check in STEPS.items():
        try:
            result[step] = check(bench)
        except Exception as error:
            result[step] = _reason(error)
    return result


def lay_out(name: str, folder: Path) -> Bench:
    """Build a network with the weights of its package, or with random ones, and put a new head on it."""
    architecture = zoo.find_architecture(name)
    weights, digest = ("packaged", None) if package_of(name) else _draw_weights(architecture, folder / "random.safetensors")
    backbone_stage.run(backbone_stage.Params(seed=0, name=name, weights=weights, digest=digest), folder / "backbone")
    body, num_features = load_backbone(folder / "backbone")
    side = _least_side(body, architecture)
    return Bench(
        folder, read_json(folder / "backbone" / "backbone.json"), Classifier(body, num_features, 2), draw_pictures(_LABELS, side), _LABELS
    )


def draw_pictures(labels: Tensor, side: int) -> np.ndarray:
    """Noise, dark in its left half or in its right one, as the label says: uint8 (pictures, side, side, 3)."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        half = slice(side // 2) if label else slice(side // 2, None)
        picture[:, half] //= 4
    return pixels


def keep_frozen(bench: Bench) -> str:
    """A step of the head alone leaves the backbone as it was."""
    classifier = copy.deepcopy(bench.classifier)
    classifier.backbone.requires_grad_(False)
    _take_steps(classifier, bench, 1e-3)
    before, after = bench.classifier.state_dict(), classifier.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    return _yes(changed == {"head.weight", "head.bias"}, "the backbone moved")


def embed(bench: Bench) -> str:
    """The exported backbone, and the model with the head behind it, answer as torch does."""
    head, body = bench.classifier.head, bench.classifier.backbone
    path = export_backbone(bench.folder / "backbone", bench.pixels.shape[1], bench.pixels, torch.get_num_threads())
    model = bench.folder / "model"
    model.mkdir()
    weight, bias = (tensor.detach().numpy() for tensor in (head.weight, head.bias))
    write_facts(model, append_head(read_onnx(path), weight, bias, 1.0), {"class_names": ["left", "right"]}, [{"epoch": 0}])
    verify(model)
    check_parity(model / "model.onnx", with_map(WithProbs(bench.classifier, 1.0), body, bench.facts["feature_map"]), bench.pixels, 1)
    return "yes"


def train(bench: Bench) -> str:
    """A few steps of the whole network lower the loss."""
    before = _final_loss(bench.classifier, bench)
    for rate in _RATES:
        classifier = copy.deepcopy(bench.classifier)
        Regime().train_mode(classifier, classifier, 1)
        _take_steps(classifier, bench, rate)
        if _final_loss(classifier, bench) < before:
            return "yes"
    return "the loss does not fall"


def store(bench: Bench) -> str:
    """What is saved comes back, and answers the same."""
    path = bench.folder / "stored"
    path.mkdir()
    save_classifier(bench.classifier, path / "model.safetensors")
    loaded = load_classifier(bench.folder / "backbone", path, 2)
    with torch.inference_mode():
        return _yes(torch.equal(loaded(bench.inputs), bench.classifier.eval()(bench.inputs)), "it answers otherwise")


def explain(bench: Bench) -> str:
    """Grad-CAM gives a map of the picture."""
    layer = bench.facts["feature_map"] or last_map(bench.classifier.backbone, bench.pixels.shape[1])
    if layer is None:
        return "no feature map"
    seen = grad_cam(bench.classifier, layer, bench.pixels[0], 0)
    return _yes(seen.ndim == 2 and bool(np.isfinite(seen).all()), "the map is not finite")


STEPS: dict[str, Callable[[Bench], str]] = {
    "frozen": keep_frozen,
    "in ONNX": embed,
    "trained": train,
    "stored": store,
    "Grad-CAM": explain,
}


def _draw_weights(architecture: zoo.Architecture, path: Path) -> tuple[str, str | None]:
    """Random weights: none, or with BatchNorm, which must know the pictures or deep networks overflow, a file and its sum."""
    network = zoo.build(architecture).eval()
    body = Backbone(network, architecture.mean, architecture.std)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return "none", None
    pixels = torch.from_numpy(draw_pictures(_LABELS.repeat(_TIMES), _least_side(body, architecture)))
    for layer in norms:
        layer.train().momentum = None  # the mean of what it sees
    with torch.no_grad():
        body(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(network.state_dict(), path)
    return str(path.resolve()), sha256_of_file(path)


def _least_side(body: nn.Module, architecture: zoo.Architecture) -> int:
    for side in () if architecture.fixed_size else _SIDES:
        try:
            with torch.inference_mode():
                body(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError):
            continue
        return side
    return architecture.image_size


def _take_steps(classifier: Classifier, bench: Bench, rate: float) -> None:
    trained = [tensor for tensor in classifier.parameters() if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, fused=True)
    for _ in range(_STEPS_TAKEN):
        optimiser.zero_grad()
        torch.autograd.backward(_loss(classifier, bench))
        optimiser.step()


def _loss(classifier: Classifier, bench: Bench) -> Tensor:
    return nn.functional.cross_entropy(classifier(bench.inputs), bench.labels)


@torch.no_grad()
def _final_loss(classifier: Classifier, bench: Bench) -> float:
    return _loss(classifier.eval(), bench).item()


def _yes(is_so: bool, otherwise: str) -> str:
    return "yes" if is_so else otherwise


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
