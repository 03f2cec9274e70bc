"""The recipe of a training run: `auto`, optimiser, learning-rate schedule, augmentation, weight averaging, early stopping."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import torch
from PIL import Image
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from pipeline.core.errors import PipelineError
from pipeline.core.params import nearest
from pipeline.core.sections import Section
from pipeline.networks.embedding import SIZE_STEP

EpochMetrics = dict[str, float]  # `epoch`, `learning_rate`, then losses (nats) and accuracies (fractions) on train and val
Fraction = Annotated[float, Field(ge=0, lt=1)]

# `auto` of a pretrained network (False) and from scratch (True).
_PICTURES_SEEN = {False: 5_000, True: 25_000}  # in all epochs together
_EPOCHS = {False: (4, 12), True: (10, 50)}  # fewest and most
_RATES, _SGD_RATES = {False: 3e-4, True: 1e-3}, {False: 3e-3, True: 3e-2}
_SGD = ("sgd", "momentum", "nesterov")
_MANY_PICTURES = 20_000  # from which on BiT uses MixUp

_SMALLER_FROM, _SMALLER = 160, 5 / 7  # of training crops, in pixels
_DROP = 0.1
_DROPS_AT = (0.3, 0.6, 0.9)  # fractions of all steps, as in BiT
_PLATEAU_EPOCHS = 1  # epochs without a lower val loss that are tolerated
_MOMENTUM_DIP = 0.1  # of one_cycle


class DivergedError(PipelineError):
    """The loss is not finite. Another recipe may train well."""


def _check_optimiser(name: str) -> str:
    """The name, if timm has such an optimiser and the loop can run it."""
    from timm.optim import list_optimizers  # type: ignore[attr-defined]

    known = [str(each) for each in list_optimizers()]
    if name not in known:
        raise PydanticCustomError("optimiser", "timm has no such optimiser{nearest}", {"nearest": nearest(name, known)})
    if name == "adahessian":
        raise PydanticCustomError("optimiser", "it needs second derivatives, which the loop does not compute")
    return name


class Recipe(Section):
    """Section `recipe` of params.yaml; an entry of `models` replaces its values one by one."""

    seed: NonNegativeInt
    threads: PositiveInt
    regime: Literal["frozen", "finetuned", "partial", "gradual", "scratch"]
    stages: PositiveInt  # regime partial: how many of the last stages are trained
    start: Literal["probe", "fresh"]  # of the head: the baseline's (linear probing, then fine-tuning), or random
    batchnorm: Literal["auto", "frozen", "training"]  # auto: frozen, except from scratch
    epochs: Literal["auto"] | PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt  # batches per optimiser step
    optimiser: Annotated[str, AfterValidator(_check_optimiser)]  # any name of timm.optim.list_optimizers
    learning_rate: Literal["auto"] | PositiveFloat
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # learning rate of a stage, as a fraction of the next stage's
    momentum: Fraction  # of sgd and its kin
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"]
    warmup: Fraction  # of all steps
    ema: Fraction  # decay of the averaged weights, which are then scored and stored; 0: the last weights
    label_smoothing: Fraction
    balance: Literal["none", "loss", "sampling"]
    dropout: Fraction  # on the features, before the head
    train_image_size: Literal["auto"] | PositiveInt | None  # of the crops, in pixels: see `training_size`
    min_crop_area: Annotated[float, Field(gt=0, le=1)]  # smallest fraction of a picture that a random crop covers
    flip: Literal["auto"] | bool  # auto: not for tiny pictures, such as scanned characters
    augment: Literal["none", "trivial", "rand"]
    mixup: Literal["auto"] | NonNegativeFloat  # alpha of its Beta distribution
    cutmix: NonNegativeFloat
    monitor: Literal["val_loss", "val_accuracy"]  # ranks the epochs
    patience: PositiveInt  # epochs without a better one
    precision: Literal["auto", "fp32", "bf16", "fp16"]


RecipeType = TypeVar("RecipeType", bound=Recipe)


def resolve_auto(recipe: RecipeType, pictures: int) -> RecipeType:
    """The recipe with numbers in place of `auto`, for that many training pictures.

    Follows BiT's hyper-rule (Kolesnikov et al., 2020): the number of epochs follows from the size of the data, and only large data get
    MixUp (0.1).
    """
    from_scratch = recipe.regime == "scratch"
    fewest, most = _EPOCHS[from_scratch]
    resolved = {
        "epochs": min(most, max(fewest, math.ceil(_PICTURES_SEEN[from_scratch] / pictures))),
        "learning_rate": (_SGD_RATES if recipe.optimiser in _SGD else _RATES)[from_scratch],
        "mixup": 0.1 if pictures >= _MANY_PICTURES else 0.0,
    }
    return recipe.model_copy(update={key: value for key, value in resolved.items() if getattr(recipe, key) == "auto"})


def make_optimiser(stage_of: Mapping[nn.Parameter, int], stages: int, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser of that name, with a group of parameters per learning rate and weight decay.

    `stage_of`: the stage of each trained parameter. Stage `stages`, the head, has the full learning rate. Biases and the weights of norms
    have no weight decay. Raises PipelineError if the optimiser does not run here.
    """
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    top, name = float(recipe.learning_rate), recipe.optimiser
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, stage in stage_of.items():
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((top * recipe.layer_decay ** (stages - stage), decay), []).append(parameter)
    listed = [{"params": groups[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(groups, reverse=True)]
    if name == "sgd" and recipe.momentum == 0:
        name = "momentum"  # timm's sgd is Nesterov's, which torch refuses without a momentum
    try:
        return create_optimizer_v2(listed, opt=name, lr=top, weight_decay=0.0, momentum=recipe.momentum)
    except (AssertionError, ImportError) as error:  # its library or a GPU is missing
        raise PipelineError(f"params.yaml: recipe.optimiser: {name!r} does not run here: {error}; choose another") from None


def training_size(wanted: int | str | None, image_size: int, takes: Callable[[int], bool]) -> int:
    """The side of training crops: that of val pictures, the one that is `wanted`, or for `auto` five sevenths of it from 160 pixels on.

    A random crop shows things larger than the central crop of val does, and smaller crops make up for that (Touvron et al., 2019), at half
    of the time. `takes`: whether the network accepts a side. Raises PipelineError if it refuses the one that is wanted.
    """
    if wanted is None or wanted == image_size or (wanted == "auto" and image_size < _SMALLER_FROM):
        return image_size
    side = wanted if isinstance(wanted, int) else SIZE_STEP * round(image_size * _SMALLER / SIZE_STEP)
    if takes(side):
        return side
    if wanted == "auto":
        return image_size
    raise PipelineError(f"params.yaml: train_image_size: the backbone refuses {side}; set auto, or {image_size}")


class Plateau:
    """A factor of the learning rate that drops to a tenth after two epochs in a row without a lower val loss."""

    def __init__(self) -> None:
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def see(self, val_loss: float) -> None:
        """Take the val loss of an epoch into account."""
        self.waited += 1
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
        if self.waited > _PLATEAU_EPOCHS:
            self.factor, self.waited = self.factor * _DROP, 0


def make_schedule(kind: str, optimiser: torch.optim.Optimizer, steps: int, warmup: float, plateau: Plateau) -> LRScheduler:
    """The learning-rate schedule: a linear warm-up over the fraction `warmup` of all steps, then the decay that `kind` names.

    cosine: to 0; step: to a tenth at 30, 60 and 90 %; plateau: see `Plateau`; constant. one_cycle (Smith and Topin, 2019): up and down
    along cosines, while the momentum, or Adam's first beta, dips by 0.1.
    """
    if kind == "one_cycle":
        rates = [group["lr"] for group in optimiser.param_groups]
        total = max(4, steps + 1)  # torch divides by the length of each half
        first = optimiser.param_groups[0]
        momentum = float(first["betas"][0] if "betas" in first else first.get("momentum", 0.0))
        return OneCycleLR(
            optimiser, rates, total_steps=total, pct_start=min(max(warmup, 2 / total), 1 - 1 / total),
            cycle_momentum=momentum > 0, max_momentum=momentum, base_momentum=max(0.0, momentum - _MOMENTUM_DIP),
        )  # fmt: skip
    warmup_steps = max(1, round(warmup * steps))
    decays: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2,
        "step": lambda step: _DROP ** sum(step >= fraction * steps for fraction in _DROPS_AT),
        "plateau": lambda _: plateau.factor,
        "constant": lambda _: 1.0,
    }
    return LambdaLR(optimiser, lambda step: (step + 1) / warmup_steps if step < warmup_steps else decays[kind](step))


def make_augmentation(
    image_size: int, interpolation: str, min_crop_area: float, flip: bool, augment: str
) -> Callable[[Image.Image], Image.Image]:
    """RandomResizedCrop of at least that fraction of the picture, and with `flip` a random horizontal flip.

    `augment` adds TrivialAugment (trivial: Müller and Hutter, 2021), RandAugment (rand: Cubuk et al., 2020), or nothing (none).
    """
    from torchvision.transforms import v2  # it makes folders for its caches, so `keep_caches_here` comes first

    steps: list[nn.Module] = [v2.RandomResizedCrop(image_size, (min_crop_area, 1.0), interpolation=v2.InterpolationMode(interpolation))]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += {"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}[augment]
    augmentation: Callable[[Image.Image], Image.Image] = v2.Compose(steps)
    return augmentation


def make_mix(mixup: float, cutmix: float, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """MixUp (Zhang et al., 2018), CutMix (Yun et al., 2019), or a random choice of both, with these alphas; 0 switches one off.

    The function takes pixels uint8 (N, S, S, 3) and labels int64 (N,). It returns blended pixels and labels float32 (N, classes), or its
    arguments when both alphas are 0 or the inputs are activations.
    """
    from torchvision.transforms import v2

    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    blends = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not blends:
        return lambda pixels, labels: (pixels, labels)
    blend = v2.RandomChoice(blends)

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.dtype != torch.uint8:
            return pixels, labels
        blended, soft_labels = blend(pixels.permute(0, 3, 1, 2).to(torch.float32), labels)
        return blended.permute(0, 2, 3, 1), soft_labels

    return mix


def class_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Weights that balance the classes: mean pictures per class / pictures of this class. float32 (classes,)."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=num_classes)
    return len(labels) / num_classes / counts


class WeightAverage:
    """The exponential moving average of a model's weights (Polyak and Juditsky, 1992). With `decay` 0 it is the model itself.

    The decay grows to `decay` over the first steps, so that a short run is not dominated by its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self._averaged = AveragedModel(model, avg_fn=_moving_average(decay), use_buffers=True) if decay else None

    @property
    def scored(self) -> nn.Module:
        """The model that is scored and stored."""
        return self._averaged.module if self._averaged else self.model

    def update(self) -> None:
        """Add the model's current weights to the average."""
        if self._averaged:
            self._averaged.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """What `restore` needs; nothing when nothing is averaged."""
        return self._averaged.state_dict() if self._averaged else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        if self._averaged:
            self._averaged.load_state_dict(state)


def _moving_average(decay: float) -> Any:
    def blend(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        # This form leaves a frozen weight exactly as it is; kept * averaged + (1 - kept) * current would round it.
        return (averaged + (current - averaged) * (1 - kept)).to(averaged.dtype)

    return blend


@dataclass
class EarlyStopping:
    """Keeps the weights of the best epoch by `monitor`, and stops after `patience` epochs without a better one.

    Epochs up to `warmup_epochs` do not count: their learning rate is still too low to improve anything, or to show that nothing improves.
    """

    patience: int
    monitor: str = "val_loss"
    warmup_epochs: int = 0
    best: float = math.inf  # lower is better: an accuracy is negated
    waited: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, metrics: EpochMetrics, model: nn.Module) -> None:
        """Keep the model's weights if this epoch is the best so far."""
        value = metrics[self.monitor] * (1 if self.monitor.endswith("loss") else -1)
        self.waited += metrics["epoch"] > self.warmup_epochs
        if value < self.best:
            self.best, self.waited = value, 0
            self.weights = copy.deepcopy(model.state_dict())

    @property
    def is_over(self) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.waited >= self.patience
