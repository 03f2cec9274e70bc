"""The side in pixels at which pictures enter the network: given, or the smallest at which a linear head is as good as at any other."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core import hardware
from pipeline.core.files import cache_dir, read_json, read_value, sha256_of_file, sha256_of_json, write_json
from pipeline.core.stage import code_digest
from pipeline.networks.embedding import SIZE_STEP, SMALLEST_SIZE, embed_eagerly, preprocessing_of, takes_size, useful_size
from pipeline.networks.onnx_file import spread
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import Array, square_batches
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from pipeline.networks.classifier import Backbone

_SHARES = (2 / 7, 3 / 7, 4 / 7, 5 / 7)  # of the network's own side, which is tried last: of 224 pixels 64, 96, 128 and 160
_MOST_PICTURES, _MOST_CLASSES = 1000, 50  # of the sample, which bounds the time
_FEWEST_GROUPS = 100  # of pictures that are alike; with fewer, the standard error says little
_WORSE = 2  # so many sides in a row end the search
_BATCH_SIZE = 64
_L2 = 0.01  # in the middle of `train_baseline.l2_grid`
_CHOICE = "choice.json"
_FOLDS_SEED = 0  # the side belongs to the pictures: another seed trains at the same one


@dataclass(frozen=True)
class Trial:
    """A head at one side: the out-of-fold loss of each picture in nats, float64 (pictures,), and the accuracy, a fraction."""

    losses: Array
    accuracy: float


@dataclass(frozen=True)
class ImageSize:
    """The side in pixels. `trials`: a row for each side that was tried, as `compare` has them; none if the side was not measured."""

    side: int
    trials: list[dict[str, float]]


def choose_image_size(wanted: int | str, backbone: Path, pictures: Sequence[Picture], folder: Path, threads: int) -> ImageSize:
    """Return the side that is `wanted`, or for `auto` the smallest whose loss is within one standard error of the lowest.

    `backbone`: the folder that the stage `backbone` wrote; `pictures`: the train pictures, which are below `folder`. The losses are
    out-of-fold losses of a linear head on the features of at most 1,000 pictures, cached per side. With fewer than 100 groups, `auto` is
    `useful_size`. It is the own size of a network that accepts no other, or not the useful one.
    """
    if isinstance(wanted, int):
        return ImageSize(wanted, [])
    architecture = Architecture(**read_json(backbone / "backbone.json")["architecture"])
    own, sample = architecture.image_size, draw_sample(pictures)
    if architecture.fixed_size:
        return ImageSize(own, [])
    is_measured = len({picture.group for picture in sample}) >= _FEWEST_GROUPS
    sides = candidate_sides(own) if is_measured else [min(own, useful_size(pictures))]
    weights, device = sha256_of_file(backbone / "weights.safetensors"), hardware.device_type()
    drawn = [[picture.sha256, picture.label, picture.group] for picture in sample]
    facts = [weights, architecture.name, device, threads, code_digest(__name__), sides, drawn]
    cache = cache_dir("image_size") / hardware.key_here(sha256_of_json(facts))
    if read_value(cache / _CHOICE, "side") is None:
        write_json(cache / _CHOICE, asdict(_choose(sides, backbone, architecture, sample, folder, threads, cache)))
    return ImageSize(**read_json(cache / _CHOICE))


def _choose(
    sides: list[int], backbone: Path, architecture: Architecture, sample: Sequence[Picture], folder: Path, threads: int, cache: Path
) -> ImageSize:
    """The choice among the sides that the network accepts; its own is always one. `cache`: the folder of the trials."""
    from pipeline.networks.classifier import load_backbone

    network, own = load_backbone(backbone)[0], architecture.image_size
    sides = [side for side in sides if side == own or takes_size(network, side)] or [own]
    if len(sides) == 1:
        return ImageSize(sides[0], [])
    begun = time.monotonic()
    trials = measure(sides, _cached_trial(network, architecture, sample, folder, threads, cache))
    choice = compare(trials, [picture.group for picture in sample])
    tried, seconds = ", ".join(map(str, trials)), time.monotonic() - begun
    print(f"embed.image_size: auto: {choice.side} of {tried} pixels, measured in {seconds:.0f} s", file=sys.stderr)
    return choice


def draw_sample(pictures: Sequence[Picture]) -> list[Picture]:
    """At most 1,000 pictures of at most 50 classes, evenly from the first to the last."""
    names = sorted({picture.label for picture in pictures})
    kept = {names[number] for number in spread(len(names), _MOST_CLASSES)}
    of_kept = [picture for picture in pictures if picture.label in kept]
    return [of_kept[number] for number in spread(len(of_kept), _MOST_PICTURES)]


def candidate_sides(own: int) -> list[int]:
    """Sides from the smallest to the network's own, each but the last a multiple of 32 and at least 64."""
    smaller = {max(SMALLEST_SIZE, SIZE_STEP * round(own * share / SIZE_STEP)) for share in _SHARES}
    return [*sorted(side for side in smaller if side < own), own]


def measure(sides: Sequence[int], trial_at: Callable[[int], Trial]) -> dict[int, Trial]:
    """Try the sides in ascending order, until two in a row are worse than the best before them."""
    trials: dict[int, Trial] = {}
    for side in sides:
        trials[side] = trial_at(side)
        if list(trials).index(_best(trials)) < len(trials) - _WORSE:
            break
    return trials


def compare(trials: Mapping[int, Trial], groups: Sequence[str]) -> ImageSize:
    """The smallest side whose loss is at most one standard error above the lowest; the error is that of the paired difference, by group.

    This is the one-standard-error rule of Breiman et al. (1984), here with pairs. A row has `image_size`, `log_loss`, `accuracy`, and
    `above_lowest`, the difference of log loss from the lowest, with its `standard_error`.
    """
    lowest = trials[_best(trials)].losses
    rows = []
    for side, trial in trials.items():
        above = trial.losses - lowest
        values = {
            "log_loss": trial.losses.mean(), "accuracy": trial.accuracy, "above_lowest": above.mean(),
            "standard_error": standard_error(above, groups),
        }  # fmt: skip
        rows.append({"image_size": side, **{name: round(float(value), 6) for name, value in values.items()}})
    return ImageSize(next(int(row["image_size"]) for row in rows if row["above_lowest"] <= row["standard_error"]), rows)


def standard_error(values: Array, groups: Sequence[str]) -> float:
    """Of the mean of values, float (pictures,), when whole groups are drawn."""
    _, numbers = np.unique(groups, return_inverse=True)
    sums = np.bincount(numbers, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def _best(trials: Mapping[int, Trial]) -> int:
    return min(trials, key=lambda side: float(trials[side].losses.mean()))


def _cached_trial(
    network: "Backbone", architecture: Architecture, sample: Sequence[Picture], folder: Path, threads: int, cache: Path
) -> Callable[[int], Trial]:
    """The function from a side to its trial, which is kept in the folder `cache`."""
    import torch

    from pipeline.training.head import Examples, deal_folds, losses_of, out_of_fold_probs
    from pipeline.training.logistic import principal_axes

    _, labels = np.unique([picture.label for picture in sample], return_inverse=True)
    folds = deal_folds(list(sample), _FOLDS_SEED)
    paths = [picture.source(folder) for picture in sample]

    def trial_at(side: int) -> Trial:
        path = cache / f"{side}.json"
        if read_value(path, "losses") is None:
            torch.set_num_threads(threads)
            hardware.mean_fp32()
            batches = square_batches(paths, preprocessing_of(architecture, side), _BATCH_SIZE, threads, f"embed at {side} pixels")
            features = embed_eagerly(network, batches, hardware.Hardware(hardware.choose_device(), "fp32"))
            probs = out_of_fold_probs(Examples(features, labels), folds, _L2, principal_axes(features, threads), threads)
            accuracy = float((probs.argmax(axis=1) == labels).mean())
            write_json(path, {"losses": losses_of(probs, labels).tolist(), "accuracy": accuracy})
        known: dict[str, Any] = read_json(path)
        return Trial(np.array(known["losses"]), known["accuracy"])

    return trial_at
