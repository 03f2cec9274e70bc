"""Run one architecture through all that the pipeline does with a network, on eight generated pictures and without downloads."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.files import read_json, sha256_of_file
from pipeline.core.hardware import Hardware
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
from pipeline.networks.embedding import export_backbone, takes_size
from pipeline.networks.onnx_file import check_parity, read_onnx
from pipeline.networks.regimes import RegimePlan, WithSideHeads, add_side_heads, make_plan
from pipeline.networks.splitting import split_at
from pipeline.networks.weights import package_of, write_backbone
from pipeline.training.loop import Trainer, train_epoch
from pipeline.training.recipe import Recipe

_SIDES = (64, 96, 128)  # the smallest that the network accepts is used, or else its own
_LABELS = torch.arange(8) % 2
_STEPS = 3
_LARGE_PICTURES = 2  # training pictures of a network with side heads, which accept no maps of small ones
_SIDE_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # their names in torchvision
_NORM_REPEATS = 4  # BatchNorm takes its statistics from so many times the pictures
_RATES = (1e-5, 1e-4, 1e-3, 1e-6)  # one of them must lower the loss: random weights have features of any scale
_RECIPE = Recipe(
    seed=0, threads=1, regime="finetuned", stages=1, start="fresh", batchnorm="auto", epochs=1, batch_size=8, accumulate=1,
    optimiser="adamw", learning_rate=1e-3, layer_decay=1, momentum=0.9, weight_decay=0.01, clip_norm=None, schedule="constant", warmup=0,
    ema=0, label_smoothing=0, balance="none", dropout=0, min_crop_area=1, flip=False, augment="none", mixup=0, cutmix=0,
    monitor="val_loss", patience=1, train_image_size=None, precision="fp32",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A network with a new head of two classes: the folder of its files, the content of backbone.json, and eight pictures."""

    folder: Path
    facts: dict
    classifier: Classifier
    pixels: np.ndarray

    @property
    def side(self) -> int:
        """The side of the pictures."""
        return int(self.pixels.shape[1])

    @property
    def inputs(self) -> Tensor:
        """The pictures as torch takes them."""
        return torch.from_numpy(self.pixels)

    @property
    def has_side_heads(self) -> bool:
        """Whether the architecture has side heads."""
        return any(key.startswith(_SIDE_HEADS) for key in self.facts["head_tensors"])

    def plan(self, regime: str) -> RegimePlan:
        """The plan of a regime; `partial` trains the last stage."""
        return make_plan(regime, 1, "auto", 1, False, self.classifier.backbone, self.side)


def try_out(name: str, folder: Path) -> dict[str, str]:
    """Return what the network is, and the result of each step: yes, or in one line why not. Files are written to `folder`."""
    torch.manual_seed(0)
    try:
        subject = build_subject(name, folder)
    except Exception as error:
        return {"name": name, "built": _reason(error)}
    result = {
        "name": name,
        "parameters": f"{subject.facts['parameters']:,}",
        "px": str(subject.side),
        "features": str(subject.facts["num_features"]),
        "head": subject.facts["head"],
        "built": "yes",
    }
    for step, check in STEPS.items():
        try:
            result[step] = check(subject)
        except Exception as error:
            result[step] = _reason(error)
    return result


def build_subject(name: str, folder: Path) -> Subject:
    """Build a network with the weights of its package, or with random ones, and put a new head on it."""
    architecture = zoo.find_architecture(name)
    weights, digest = ("packaged", None) if package_of(name) else _draw_weights(architecture, folder / "random.safetensors")
    write_backbone(folder / "backbone", name, weights, digest, seed=0)
    body, num_features = load_backbone(folder / "backbone")
    pixels = draw_pictures(_LABELS, _smallest_side(body, architecture))
    return Subject(folder, read_json(folder / "backbone" / "backbone.json"), Classifier(body, num_features, 2), pixels)


def draw_pictures(labels: Tensor, side: int) -> np.ndarray:
    """Return noise that is dark in its left or its right half, according to the label: uint8 (pictures, side, side, 3)."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        half = slice(side // 2) if label else slice(side // 2, None)
        picture[:, half] //= 4
    return pixels


def keep_frozen(subject: Subject) -> str:
    """In the regime `frozen` only the head learns."""
    classifier = copy.deepcopy(subject.classifier)
    _train(classifier, classifier, subject.plan("frozen"), subject.inputs, _LABELS, 1e-3)
    before, after = subject.classifier.state_dict(), classifier.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    return _yes(changed == {"head.weight", "head.bias"}, "not the head alone moved")


def embed(subject: Subject) -> str:
    """The exported backbone, and the model with the head behind it, answer as torch does."""
    classifier, model = subject.classifier, subject.folder / "model"
    path = export_backbone(subject.folder / "backbone", subject.side, subject.pixels, torch.get_num_threads())
    model.mkdir()
    weight, bias = (tensor.detach().numpy() for tensor in (classifier.head.weight, classifier.head.bias))
    write_facts(model, append_head(read_onnx(path), weight, bias, 1.0), {"class_names": ["left", "right"]}, [{"epoch": 0}])
    verify_model(model)
    network = with_feature_map(WithProbs(classifier, 1.0), classifier.backbone, subject.facts["feature_map"])
    check_parity(model / "model.onnx", network, subject.pixels, 1)
    return "yes"


def train(subject: Subject) -> str:
    """A few steps of the whole network, with its side heads, lower the loss of its own head."""
    inputs, labels = subject.inputs, _LABELS
    if subject.has_side_heads:
        labels = _LABELS[:_LARGE_PICTURES]
        inputs = torch.from_numpy(draw_pictures(labels, subject.facts["architecture"]["image_size"]))

    def learns(rate: float) -> bool:
        classifier = copy.deepcopy(subject.classifier)
        model = add_side_heads(classifier, subject.folder / "backbone", True, inputs.shape[1])
        if isinstance(model, WithSideHeads) != subject.has_side_heads:
            raise ValueError("its side heads are left out")
        return _learns(model, classifier, subject.plan("finetuned"), inputs, labels, rate)

    return _yes(any(map(learns, _RATES)), "the loss does not fall")


def train_last_stage(subject: Subject) -> str:
    """In the regime `partial` a few steps of the last stage lower the loss, and the output of the front stays the same."""
    plan = subject.plan("partial")
    if not plan.has_front:
        return "yes"  # of one stage: the whole network is the last

    def learns(rate: float) -> bool:
        classifier = copy.deepcopy(subject.classifier)
        model, front = split_at(classifier, plan.front_end, subject.side)
        run_front = torch.no_grad()(front)
        activations = run_front(subject.inputs)
        has_learnt = _learns(model, classifier, plan, activations, _LABELS, rate)
        if not torch.equal(run_front(subject.inputs), activations):
            raise ValueError("the front moved")
        return has_learnt

    return _yes(any(map(learns, _RATES)), "the loss does not fall")


def store(subject: Subject) -> str:
    """A saved classifier, loaded again, answers the same."""
    path = subject.folder / "stored"
    path.mkdir()
    save_classifier(subject.classifier, path / "model.safetensors")
    loaded = load_classifier(subject.folder / "backbone", path, 2)
    with torch.inference_mode():
        return _yes(torch.equal(loaded(subject.inputs), subject.classifier.eval()(subject.inputs)), "it answers otherwise")


def explain(subject: Subject) -> str:
    """Grad-CAM returns a finite map of the picture."""
    layer = subject.facts["feature_map"] or last_map(subject.classifier.backbone, subject.side)
    if layer is None:
        return "no feature map"
    heat = grad_cam(subject.classifier, layer, subject.pixels[0], 0)
    return _yes(heat.ndim == 2 and bool(np.isfinite(heat).all()), "the map is not finite")


STEPS: dict[str, Callable[[Subject], str]] = {
    "frozen": keep_frozen,
    "in ONNX": embed,
    "trained": train,
    "last stage": train_last_stage,  # not a column of docs/zoo.md
    "stored": store,
    "Grad-CAM": explain,
}


def _draw_weights(architecture: zoo.Architecture, path: Path) -> tuple[str, str | None]:
    """Return `none` for random weights; with BatchNorm, a file and its sha256: deep networks overflow without statistics of pictures."""
    network = zoo.build(architecture).eval()
    body = Backbone(network, architecture.mean, architecture.std)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return "none", None
    pixels = torch.from_numpy(draw_pictures(_LABELS.repeat(_NORM_REPEATS), _smallest_side(body, architecture)))
    for layer in norms:
        layer.train().momentum = None  # the mean of all batches
    with torch.no_grad():
        body(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(network.state_dict(), path)
    return str(path.resolve()), sha256_of_file(path)


def _smallest_side(body: nn.Module, architecture: zoo.Architecture) -> int:
    sides = () if architecture.fixed_size else _SIDES
    return next((side for side in sides if takes_size(body, side)), architecture.image_size)


def _learns(model: nn.Module, classifier: Classifier, plan: RegimePlan, inputs: Tensor, labels: Tensor, rate: float) -> bool:
    """Whether a few steps lower the loss of the model in eval mode."""
    before = _loss(model, inputs, labels)
    _train(model, classifier, plan, inputs, labels, rate)
    return _loss(model, inputs, labels) < before


def _train(model: nn.Module, classifier: Classifier, plan: RegimePlan, inputs: Tensor, labels: Tensor, rate: float) -> None:
    """Train `model`, which contains the classifier, for an epoch of a few steps."""
    recipe, hardware = _RECIPE.model_copy(update={"learning_rate": rate}), Hardware(torch.device("cpu"), "fp32")
    trainer = Trainer(model, classifier, plan.regime, recipe, [(inputs, labels)] * _STEPS, [], np.zeros(0, bool), labels.tolist(), hardware)
    trainer.begin_epoch(1)
    train_epoch(trainer, f"rate {rate:g}")


@torch.no_grad()
def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return nn.functional.cross_entropy(model.eval()(inputs), labels).item()


def _yes(is_so: bool, otherwise: str) -> str:
    return "yes" if is_so else otherwise


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
