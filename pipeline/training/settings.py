"""The recipe of a model as params.yaml states it, and what `auto` stands for."""

import math
from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.params import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class Settings(Section):  # section `recipe` of params.yaml, and what an entry of `models` says otherwise
    epochs: Literal["auto"] | PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt  # batches whose gradients make one step
    optimiser: Literal["adamw", "adam", "sgd"]
    learning_rate: Literal["auto"] | PositiveFloat
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # the rate of a stage, as a share of the next one's
    momentum: Share  # of sgd
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"]
    warmup: Share  # share of the steps
    ema: Share  # decay of the averaged weights, which are those that are scored and stored; 0: the last ones
    label_smoothing: Share
    balance: Literal["none", "loss", "sampling"]
    dropout: Share  # of the features, before the head
    min_crop_area: Annotated[float, Field(gt=0, le=1)]  # least share of the picture in a random crop
    flip: Literal["auto"] | bool  # auto: not where pictures are tiny, as scanned characters are
    augment: Literal["none", "trivial", "rand"]
    mixup: Literal["auto"] | NonNegativeFloat  # alpha of its Beta distribution
    cutmix: NonNegativeFloat
    monitor: Literal["val_loss", "val_accuracy"]  # tells the best epoch
    patience: PositiveInt  # epochs without a better one
    precision: Literal["auto", "fp32", "bf16"]


SettingsType = TypeVar("SettingsType", bound=Settings)

_SEEN = {False: 5_000, True: 25_000}  # pictures that a run sees, all epochs together, pretrained or from scratch
_EPOCHS = {False: (4, 12), True: (10, 50)}
_RATES = {"adamw": (3e-4, 1e-3), "adam": (3e-4, 1e-3), "sgd": (3e-3, 3e-2)}
_MANY = 20_000  # pictures from which BiT mixes


def settle(settings: SettingsType, pictures: int, from_scratch: bool) -> SettingsType:
    """The settings with numbers in place of `auto`, scaled to the number of training pictures.

    After BiT's hyper-rule (Kolesnikov et al., 2020): the length by the size of the data, MixUp (0.1) for large data alone.
    """
    least, most = _EPOCHS[from_scratch]
    epochs = min(most, max(least, math.ceil(_SEEN[from_scratch] / pictures)))
    found = {
        "epochs": epochs,
        "learning_rate": _RATES[settings.optimiser][from_scratch],
        "mixup": 0.1 if pictures >= _MANY else 0.0,
    }
    return settings.model_copy(update={key: value for key, value in found.items() if getattr(settings, key) == "auto"})
