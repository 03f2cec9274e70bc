"""Which network and which regime the measurements favour: the simplest that no other significantly beats."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.core.dvc import run_dvc
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.params import read_section
from pipeline.evaluation.intervals import Interval, draw_counts, mean_interval
from pipeline.networks import embedding
from pipeline.networks.artifact import BACKBONE, read_backbone
from pipeline.networks.weights import PACKAGED, write_backbone
from pipeline.pictures.images import Array, Preprocessing, square_batches
from pipeline.search.probing import Sample, read_sample
from pipeline.tracking.connection import connect, mendable
from pipeline.training.head import HeadParams, deal_folds
from pipeline.training.recipe import Recipe, resolve_auto
from pipeline.training.temperature import store_model

if TYPE_CHECKING:
    from pipeline.core.hardware import Hardware
    from pipeline.search.probing import Probe, SampleRun
    from pipeline.training.batches import TrainingData


MUCH = 1000  # pictures a class, as ImageNet has
FAR = 0.5  # share of the errors that remains


# The four corners of a sketch that courses teach from (Stanford's CS231n among them): is it much data, is it far from ImageNet?
SKETCH = {
    (False, False): "the head alone (frozen)",
    (False, True): "the head and the last stages (partial)",
    (True, False): "the whole network (finetuned)",
    (True, True): "the whole network (finetuned), if not from scratch",
}


@dataclass(frozen=True)
class Candidate:
    """One of several that were tried on the same pictures: its mean loss in nats, and how far it is from the favourite so far.

    `rival`: that favourite, None for the first; `difference`: its own mean loss less the rival's; `is_better`: whether that is shown.
    """

    name: str
    loss: float
    rival: str | None = None
    difference: float = 0.0
    interval: Interval = (0.0, 0.0)
    is_better: bool = False


def favour(losses: Mapping[str, Array], confidence: float, seed: int) -> tuple[str, list[Candidate]]:
    """The favourite of some candidates, and each with what speaks for it.

    `losses`: by name, from the simplest candidate to the most costly, float (pictures,) each, of the same pictures. Another takes the
    favourite's place where the interval of the paired difference, by the bootstrap, lies below 0.
    """
    favourite, candidates = "", []
    for name, values in losses.items():
        if not favourite:
            favourite, candidates = name, [Candidate(name, float(values.mean()))]
            continue
        gains = values - losses[favourite]
        interval = mean_interval(gains, draw_counts(len(gains), seed), confidence)
        candidates.append(Candidate(name, float(values.mean()), favourite, float(gains.mean()), interval, interval[1] < 0))
        favourite = name if interval[1] < 0 else favourite
    return favourite, candidates


def distance(pretrained: Array, untrained: Array) -> float:
    """How far the pictures are from the backbone's world: the share of errors that its training did not take away.

    Both: whether a head on the features of the pretrained network, or of the same network with random weights, is wrong about a
    picture, bool (pictures,). 0: near, all errors are gone; 1: far, as many are left. Where a head on random features is never
    wrong there is nothing to take away: 1.
    """
    return min(1.0, float(pretrained.mean() / untrained.mean())) if untrained.any() else 1.0


def corner(pictures_a_class: float, far: float) -> str:
    """What the sketch says of so much data at such a distance."""
    return SKETCH[pictures_a_class >= MUCH, far >= FAR]


REGIMES = ("frozen", "partial", "finetuned")  # from the cheapest to the most costly
_MANIFEST, _SPLITS = Path("data/manifest.csv"), Path("data/splits")
_CONFIDENCE = 0.95
_BATCH = 64
_START = "import timm, pipeline.networks.onnx_file, pipeline.training.loop; from pipeline.tracking.connection import connect; connect()"


class AnyRegime(Recipe):  # section `recipe` of params.yaml, for whichever regime
    regime: Literal["frozen", "finetuned", "partial", "gradual", "scratch"] = "finetuned"


@dataclass(frozen=True)
class ProbedNetwork:
    """A network on the sample: the folder that the stage `backbone` wrote, how pictures enter it, those of val in batches, its probe."""

    folder: Path
    preprocessing: Preprocessing
    is_tiny: bool
    val_pixels: list[Array]
    probe: "Probe"


def find_evidence() -> dict[str, Any]:
    """Look at the networks at hand, try the regimes on the favourite, and say what was found, as JSON. Raises PipelineError."""
    from pipeline.core.hardware import choose_hardware

    for path in (_MANIFEST, _SPLITS / "train"):
        if not path.exists():
            raise PipelineError(f"{path}: is not there; run `dvc repro`")
    own = read_backbone()["architecture"]["name"]
    recipe = read_section("recipe", AnyRegime)
    hardware, pictures = choose_hardware(recipe.seed, recipe.threads, recipe.precision), read_sample(_MANIFEST, recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        networks = bring_networks(own, Path(folder), recipe.seed)
        looks = {name: probe_network(path, pictures, recipe, hardware) for name, path in networks.items()}
        untrained = probe_network(networks[own], pictures, recipe, hardware, untrained=True)
        network, tried_networks = favour({name: look.probe.losses for name, look in looks.items()}, _CONFIDENCE, recipe.seed)
        runs = {regime: try_regime(regime, looks[network], pictures, recipe) for regime in REGIMES}
        overhead = measure_overhead(looks[network], pictures, recipe)
    regime, tried_regimes = favour({name: run.losses for name, run in runs.items()}, _CONFIDENCE, recipe.seed)
    return {
        **describe_data(pictures, own, looks[own].probe.wrong, untrained.probe.wrong),
        "networks": [as_json(candidate) for candidate in tried_networks],
        "regimes": [as_json(candidate) for candidate in tried_regimes],
        "seconds": {name: round(overhead + seconds_of(run, name, recipe, pictures), 1) for name, run in runs.items()},
        "network": network,
        "regime": regime,
    }


def describe_data(pictures: Sample, network: str, wrong: Array, wrong_untrained: Array) -> dict[str, Any]:
    """How much data there is, how far it is from the network's world, and what the sketch says of that."""
    far = distance(wrong, wrong_untrained)
    return {
        "training_pictures": len(pictures.manifest.train),
        "a_class": pictures.per_class,
        "is_much": pictures.per_class >= MUCH,
        "distance": {
            "network": network, "errors": round(float(wrong.mean()), 6), "untrained_errors": round(float(wrong_untrained.mean()), 6),
            "remaining": round(far, 6), "is_far": far >= FAR,
        },
        "sketch": corner(pictures.per_class, far),
    }  # fmt: skip


def as_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate with its interval, null where the losses do not differ."""
    interval = None if any(map(math.isnan, candidate.interval)) else [round(end, 6) for end in candidate.interval]
    return {**asdict(candidate), "loss": round(candidate.loss, 6), "difference": round(candidate.difference, 6), "interval": interval}


def bring_networks(own: str, folder: Path, seed: int) -> dict[str, Path]:
    """The backbone of params.yaml, and each network whose weights come with a package, made in `folder`: their folders by name."""
    found = {own: BACKBONE}
    for name in PACKAGED:
        if name not in found:
            write_backbone(folder / name, name, "packaged", None, seed)
            found[name] = folder / name
    return found


def probe_network(folder: Path, pictures: Sample, recipe: AnyRegime, hardware: "Hardware", untrained: bool = False) -> ProbedNetwork:
    """Probe the network of a folder, or one like it with random weights."""
    from pipeline.networks.classifier import load_backbone
    from pipeline.search.probing import embed as embed_batches
    from pipeline.search.probing import probe, settle_norms

    facts, settings = read_json(folder / "backbone.json"), read_section("embed", embedding.EmbedParams)
    architecture = facts["architecture"]
    backbone, _ = load_backbone(folder, with_weights=not untrained)
    training = pictures.manifest.train
    size = embedding.resolve_image_size(settings.image_size, facts, training, lambda side: embedding.takes_size(backbone, side))
    preprocessing = Preprocessing(size, architecture["crop"], architecture["interpolation"])
    train, val = (
        list(square_batches([_SPLITS / part[0].split / picture.path for picture in part], preprocessing, _BATCH, recipe.threads, "advise"))
        for part in (pictures.train, pictures.val)
    )
    if untrained:
        settle_norms(backbone, train, hardware)
    both = [*pictures.train, *pictures.val]
    grid, folds = read_section("train_baseline", HeadParams).l2_grid, deal_folds(both, recipe.seed)
    features = embed_batches(backbone, [*train, *val], hardware)
    found = probe(features, np.array(pictures.manifest.labels(both)), len(pictures.train), folds, grid, recipe.threads)
    return ProbedNetwork(folder, preprocessing, embedding.useful_size(training) < architecture["image_size"], val, found)


def try_regime(regime: str, look: ProbedNetwork, pictures: Sample, recipe: AnyRegime) -> "SampleRun":
    """Train by a regime and the recipe of params.yaml, whatever was trained before."""
    from pipeline.core.hardware import choose_hardware
    from pipeline.networks.classifier import load_backbone
    from pipeline.search.probing import join, train_on_sample

    settings = settings_of(regime, recipe, len(pictures.train))
    hardware = choose_hardware(settings.seed, settings.threads, settings.precision)
    classifier = join(load_backbone(look.folder)[0], look.probe.head, settings.start)
    return train_on_sample(classifier, look.val_pixels, sample_data(look, pictures), settings, hardware)


def sample_data(look: ProbedNetwork, pictures: Sample) -> "TrainingData":
    """The sample as the data of a training run, which starts from the probe's head."""
    from pipeline.training.batches import TrainingData

    table = pictures.manifest
    return TrainingData(
        [_SPLITS / "train" / picture.path for picture in pictures.train],
        table.labels(pictures.train),
        [_SPLITS / "val" / picture.path for picture in pictures.val],
        table.labels(pictures.val),
        table.class_names,
        look.preprocessing,
        look.is_tiny,
        look.folder,
        baseline=look.folder,
        inputs={},
    )


def settings_of(regime: str, recipe: AnyRegime, count: int) -> AnyRegime:
    """The recipe for a regime, `auto` resolved for so many training pictures."""
    return resolve_auto(recipe.model_copy(update={"regime": regime}), count)


def seconds_of(run: "SampleRun", regime: str, recipe: AnyRegime, pictures: Sample) -> float:
    """How long the run of a regime on all pictures takes, without start and export, if it stops as early as on the sample."""
    planned, of_sample = (int(settings_of(regime, recipe, len(some)).epochs) for some in (pictures.manifest.train, pictures.train))
    epochs = planned * run.epochs / of_sample
    return run.seconds(epochs, len(pictures.manifest.train) / len(pictures.train), len(pictures.manifest.val) / len(pictures.val))


def measure_overhead(look: ProbedNetwork, pictures: Sample, recipe: AnyRegime) -> float:
    """The seconds that any training takes beside: to start, and to store the model."""
    from pipeline.networks.classifier import load_backbone
    from pipeline.search.probing import join

    with suppress(PipelineError), mendable():
        connect()  # a new database is made once, which is not to be counted
    begun = time.monotonic()
    run_dvc("status", "train_baseline", stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _START], capture_output=True, check=False)  # MLflow may be away
    classifier = join(load_backbone(look.folder)[0], look.probe.head)
    facts = {"hardware": {"threads": recipe.threads}}
    with tempfile.TemporaryDirectory() as folder:
        store_model(classifier, look.val_pixels, sample_data(look, pictures), facts, [{"epoch": 0.0}], Path(folder, "model"))
    return time.monotonic() - begun
