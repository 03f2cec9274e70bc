"""What `pipeline advise` finds out: heads on the features of networks, and training runs, on a sample of the pictures."""

import math
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.commands.dvc import run_dvc
from pipeline.commands.outs import BACKBONE, read_backbone
from pipeline.data.images import Preprocessing
from pipeline.data.loading import Array, square_batches
from pipeline.data.sample import Sample, read_sample
from pipeline.errors import PipelineError
from pipeline.evaluation.advice import FAR, MUCH, Candidate, corner, distance, favour
from pipeline.files import read_json
from pipeline.models.published import PACKAGED
from pipeline.params import read_section
from pipeline.stages import backbone as backbone_stage
from pipeline.stages import embed, train_baseline
from pipeline.stages import train as train_stage
from pipeline.tracking.connection import connect, mendable
from pipeline.training.settings import Settings, settle

if TYPE_CHECKING:
    from pipeline.training.batches import Material
    from pipeline.training.finetune import Hardware
    from pipeline.training.probing import Probe, SampleRun

REGIMES = ("frozen", "partial", "finetuned")  # from the cheapest to the most costly
_MANIFEST, _SPLITS = Path("data/manifest.csv"), Path("data/splits")
_CONFIDENCE = 0.95
_BATCH = 64
_START = "import timm, pipeline.models.export, pipeline.training.course; from pipeline.tracking.connection import connect; connect()"


class Recipe(Settings):  # section `recipe` of params.yaml, for whichever regime
    regime: Literal["frozen", "finetuned", "partial", "gradual", "scratch"] = "finetuned"


@dataclass(frozen=True)
class Look:
    """A network on the sample: the folder that the stage `backbone` wrote, how pictures enter it, those of val in batches, its probe."""

    folder: Path
    preprocessing: Preprocessing
    is_tiny: bool
    val_pixels: list[Array]
    probe: "Probe"


def find_evidence() -> dict[str, Any]:
    """Look at the networks at hand, try the regimes on the favourite, and say what was found, as JSON. Raises PipelineError."""
    from pipeline.training.course import choose_hardware

    for path in (_MANIFEST, _SPLITS / "train"):
        if not path.exists():
            raise PipelineError(f"{path}: is not there; run `dvc repro`")
    own = read_backbone()["architecture"]["name"]
    recipe = read_section("recipe", Recipe)
    hardware, pictures = choose_hardware(recipe), read_sample(_MANIFEST, recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        networks = bring_networks(own, Path(folder), recipe.seed)
        looks = {name: look_at(path, pictures, recipe, hardware) for name, path in networks.items()}
        untrained = look_at(networks[own], pictures, recipe, hardware, untrained=True)
        network, tried_networks = favour({name: look.probe.losses for name, look in looks.items()}, _CONFIDENCE, recipe.seed)
        runs = {regime: try_regime(regime, looks[network], pictures, recipe) for regime in REGIMES}
        overhead = measure_overhead(looks[network], pictures, recipe)
    regime, tried_regimes = favour({name: run.losses for name, run in runs.items()}, _CONFIDENCE, recipe.seed)
    return {
        **describe(pictures, own, looks[own].probe.wrong, untrained.probe.wrong),
        "networks": [as_json(candidate) for candidate in tried_networks],
        "regimes": [as_json(candidate) for candidate in tried_regimes],
        "seconds": {name: round(overhead + seconds_of(run, name, recipe, pictures), 1) for name, run in runs.items()},
        "network": network,
        "regime": regime,
    }


def describe(pictures: Sample, network: str, wrong: Array, wrong_untrained: Array) -> dict[str, Any]:
    """How much data there is, how far it is from the network's world, and what the sketch says of that."""
    far = distance(wrong, wrong_untrained)
    return {
        "training_pictures": len(pictures.training),
        "a_class": pictures.a_class,
        "is_much": pictures.a_class >= MUCH,
        "distance": {
            "network": network, "errors": round(float(wrong.mean()), 6), "untrained_errors": round(float(wrong_untrained.mean()), 6),
            "remaining": round(far, 6), "is_far": far >= FAR,
        },
        "sketch": corner(pictures.a_class, far),
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
            backbone_stage.run(backbone_stage.Params(seed=seed, name=name, weights="packaged", digest=None), folder / name)
            found[name] = folder / name
    return found


def look_at(folder: Path, pictures: Sample, recipe: Recipe, hardware: "Hardware", untrained: bool = False) -> Look:
    """Probe the network of a folder, or one like it with random weights."""
    from pipeline.models.classifier import load_backbone
    from pipeline.training.probing import embed as embed_batches
    from pipeline.training.probing import probe, settle_norms

    facts, settings = read_json(folder / "backbone.json"), read_section("embed", embed.Params)
    architecture = facts["architecture"]
    backbone, _ = load_backbone(folder, with_weights=not untrained)
    size = embed.resolve_image_size(settings.image_size, facts, pictures.training, lambda side: embed.takes_size(backbone, side))
    preprocessing = Preprocessing(size, architecture["crop"], architecture["interpolation"])
    train, val = (
        list(square_batches([_SPLITS / part[0].split / picture.path for picture in part], preprocessing, _BATCH, recipe.threads, "advise"))
        for part in (pictures.train, pictures.val)
    )
    if untrained:
        settle_norms(backbone, train, hardware)
    both = [*pictures.train, *pictures.val]
    grid, folds = read_section("train_baseline", train_baseline.Params).l2_grid, train_baseline.deal_folds(both, recipe.seed)
    features = embed_batches(backbone, [*train, *val], hardware)
    found = probe(features, np.array(pictures.labels(both)), len(pictures.train), folds, grid, recipe.threads)
    return Look(folder, preprocessing, embed.useful_size(pictures.training) < architecture["image_size"], val, found)


def try_regime(regime: str, look: Look, pictures: Sample, recipe: Recipe) -> "SampleRun":
    """Train by a regime and the recipe of params.yaml, whatever was trained before."""
    from pipeline.models.classifier import load_backbone
    from pipeline.training.course import choose_hardware
    from pipeline.training.probing import join, train_on_sample

    settings = settings_of(regime, recipe, len(pictures.train))
    hardware = choose_hardware(settings)
    classifier = join(load_backbone(look.folder)[0], look.probe.head, settings.start)
    return train_on_sample(classifier, material_of(look, pictures, settings), settings, look.folder, hardware)


def material_of(look: Look, pictures: Sample, settings: Recipe) -> "Material":
    """The sample, to train on."""
    from pipeline.training.batches import Material

    return Material(
        [_SPLITS / "train" / picture.path for picture in pictures.train],
        pictures.labels(pictures.train),
        look.val_pixels,
        pictures.labels(pictures.val),
        look.preprocessing,
        not look.is_tiny if settings.flip == "auto" else settings.flip,
    )


def settings_of(regime: str, recipe: Recipe, count: int) -> Recipe:
    """The recipe for a regime, `auto` resolved for so many training pictures."""
    return settle(recipe.model_copy(update={"regime": regime}), count)


def seconds_of(run: "SampleRun", regime: str, recipe: Recipe, pictures: Sample) -> float:
    """How long the run of a regime on all pictures takes, without start and export, if it stops as early as on the sample."""
    planned, of_sample = (int(settings_of(regime, recipe, len(some)).epochs) for some in (pictures.training, pictures.train))
    epochs = planned * run.epochs / of_sample
    return run.seconds(epochs, len(pictures.training) / len(pictures.train), pictures.count_val / len(pictures.val))


def measure_overhead(look: Look, pictures: Sample, recipe: Recipe) -> float:
    """The seconds that any training takes beside: to start, and to store the model."""
    from pipeline.models.classifier import load_backbone
    from pipeline.training.probing import join

    with suppress(PipelineError), mendable():
        connect()  # a new database is made once, which is not to be counted
    begun = time.monotonic()
    run_dvc("status", "train_baseline", stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _START], capture_output=True, check=False)  # MLflow may be away
    classifier = join(load_backbone(look.folder)[0], look.probe.head)
    facts = {"hardware": {"threads": recipe.threads}}
    with tempfile.TemporaryDirectory() as folder:
        train_stage.store(classifier, material_of(look, pictures, recipe), facts, [{"epoch": 0.0}], look.folder, Path(folder, "model"))
    return time.monotonic() - begun
