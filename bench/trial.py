"""One architecture through all that the pipeline does with a network, on eight generated pictures, with no file from the network."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.files import read_json, sha256_of_file
from pipeline.evaluation.galleries import grad_cam
from pipeline.networks import zoo
from pipeline.networks.artifact import append_head, verify_model, write_facts
from pipeline.networks.classifier import (
    Backbone,
    Classifier,
    WithProbs,
    last_map,
    load_backbone,
    load_classifier,
    save_classifier,
    save_tensors,
    with_feature_map,
)
from pipeline.networks.embedding import export_backbone
from pipeline.networks.onnx_file import check_parity, read_onnx
from pipeline.networks.regimes import RegimePlan, WithSideHeads, add_side_heads, make_plan
from pipeline.networks.splitting import split_at
from pipeline.networks.weights import package_of
from pipeline.stages import backbone as backbone_stage
from pipeline.training.loop import Trainer
from pipeline.training.recipe import Recipe

_SIDES = (64, 96, 128)  # the least that the network takes, else its own
_LABELS = torch.arange(8) % 2
_STEPS_TAKEN = 3
_LARGE_ONES = 2  # pictures of the own side of a network with side heads
_SIDE_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # so torchvision calls them
_TIMES = 4  # the pictures of which BatchNorm takes its statistics
_RATES = (1e-5, 1e-4, 1e-3, 1e-6)  # of which one must lower the loss: random weights have features of any scale
_SETTINGS = Recipe(
    seed=0, threads=1, regime="finetuned", stages=1, start="fresh", batchnorm="auto", epochs=1, batch_size=8, accumulate=1,
    optimiser="adamw", learning_rate=1e-3, layer_decay=1, momentum=0.9, weight_decay=0.01, clip_norm=None, schedule="constant", warmup=0,
    ema=0, label_smoothing=0, balance="none", dropout=0, min_crop_area=1, flip=False, augment="none", mixup=0, cutmix=0,
    monitor="val_loss", patience=1, precision="fp32",
)  # fmt: skip


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
    """In the regime `frozen` the head alone learns, and the backbone stays as it was."""
    classifier = copy.deepcopy(bench.classifier)
    _take_steps(classifier, classifier, _plan("frozen", bench), bench.inputs, bench.labels, 1e-3)
    before, after = bench.classifier.state_dict(), classifier.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    return _yes(changed == {"head.weight", "head.bias"}, "not the head alone moved")


def embed(bench: Bench) -> str:
    """The exported backbone, and the model with the head behind it, answer as torch does."""
    head, body = bench.classifier.head, bench.classifier.backbone
    path = export_backbone(bench.folder / "backbone", bench.pixels.shape[1], bench.pixels, torch.get_num_threads())
    model = bench.folder / "model"
    model.mkdir()
    weight, bias = (tensor.detach().numpy() for tensor in (head.weight, head.bias))
    write_facts(model, append_head(read_onnx(path), weight, bias, 1.0), {"class_names": ["left", "right"]}, [{"epoch": 0}])
    verify_model(model)
    check_parity(
        model / "model.onnx", with_feature_map(WithProbs(bench.classifier, 1.0), body, bench.facts["feature_map"]), bench.pixels, 1
    )
    return "yes"


def train(bench: Bench) -> str:
    """A few steps of the whole network, with the side heads that it has, lower the loss of its own head."""
    inputs, labels = _pictures_to_train(bench)

    def learns(rate: float) -> bool:
        classifier = copy.deepcopy(bench.classifier)
        model = add_side_heads(classifier, bench.folder / "backbone", True, inputs.shape[1])
        if isinstance(model, WithSideHeads) != _has_side_heads(bench):
            raise ValueError("its side heads are left out")
        return _learns(model, classifier, _plan("finetuned", bench), inputs, labels, rate)

    return _yes(any(map(learns, _RATES)), "the loss does not fall")


def train_last_stage(bench: Bench) -> str:
    """In the regime `partial` a few steps of the last stage lower the loss, and the front before it gives what it gave."""
    plan, side = _plan("partial", bench), bench.pixels.shape[1]
    if not plan.has_front:
        return "yes"  # of one stage: the whole network is the last

    def learns(rate: float) -> bool:
        classifier = copy.deepcopy(bench.classifier)
        model, front = split_at(classifier, plan.front_end, side)
        run_front = torch.no_grad()(front)
        activations = run_front(bench.inputs)
        has_learnt = _learns(model, classifier, plan, activations, bench.labels, rate)
        if not torch.equal(run_front(bench.inputs), activations):
            raise ValueError("the front moved")
        return has_learnt

    return _yes(any(map(learns, _RATES)), "the loss does not fall")


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
    "last stage": train_last_stage,  # no column of docs/zoo.md
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


def _plan(regime: str, bench: Bench) -> RegimePlan:
    return make_plan(regime, 1, "auto", 1, False, bench.classifier.backbone, bench.pixels.shape[1])


def _has_side_heads(bench: Bench) -> bool:
    return any(key.startswith(_SIDE_HEADS) for key in bench.facts["head_tensors"])


def _pictures_to_train(bench: Bench) -> tuple[Tensor, Tensor]:
    """Those on the bench; for side heads, which take no maps of small pictures, some of the network's own side."""
    if not _has_side_heads(bench):
        return bench.inputs, bench.labels
    labels = bench.labels[:_LARGE_ONES]
    return torch.from_numpy(draw_pictures(labels, bench.facts["architecture"]["image_size"])), labels


def _learns(model: nn.Module, classifier: Classifier, plan: RegimePlan, inputs: Tensor, labels: Tensor, rate: float) -> bool:
    """Whether a few steps lower the loss, as it is in use."""
    before = _final_loss(model, inputs, labels)
    _take_steps(model, classifier, plan, inputs, labels, rate)
    return _final_loss(model, inputs, labels) < before


def _take_steps(model: nn.Module, classifier: Classifier, plan: RegimePlan, inputs: Tensor, labels: Tensor, rate: float) -> None:
    """Train `model`, which holds the classifier, for an epoch of the project's recipe."""
    settings = _SETTINGS.model_copy(update={"learning_rate": rate})
    recipe = Trainer(model, classifier, plan.regime, settings, _STEPS_TAKEN, labels.tolist())
    recipe.begin_epoch(1)
    for number in range(1, _STEPS_TAKEN + 1):
        recipe.step(recipe.loss(inputs, labels)[0], number, f"rate {rate:g}")


@torch.no_grad()
def _final_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return nn.functional.cross_entropy(model.eval()(inputs), labels).item()


def _yes(is_so: bool, otherwise: str) -> str:
    return "yes" if is_so else otherwise


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
