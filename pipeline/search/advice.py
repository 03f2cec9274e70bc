"""Which network and which regime to take: the simplest that no other significantly beats on a sample."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.core.dvc import run_dvc
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.hardware import Hardware, choose_hardware
from pipeline.core.params import read_params
from pipeline.core.sections import read_section
from pipeline.evaluation.intervals import Bootstrap, Interval, mean_interval
from pipeline.networks.artifact import BACKBONE, read_backbone
from pipeline.networks.classifier import load_backbone
from pipeline.networks.embedding import EmbedParams, are_tiny, embed_eagerly, preprocessing_of
from pipeline.networks.weights import PACKAGED, write_backbone
from pipeline.networks.zoo import Architecture
from pipeline.pictures.images import Array, Preprocessing, square_batches
from pipeline.search.probing import Probe, Sample, SampleRun, probe, read_sample, settle_norms, train_on_sample, with_head
from pipeline.tracking.connection import connect, mlflow_errors
from pipeline.training.batches import TrainingData
from pipeline.training.head import HeadParams, deal_folds
from pipeline.training.image_size import choose_image_size
from pipeline.training.recipe import Recipe, resolve_auto
from pipeline.training.temperature import halves, store_model

MUCH = 1000  # pictures per class, as ImageNet has
FAR = 0.5  # fraction of the errors that remains
REGIMES = ("frozen", "partial", "finetuned")  # from the cheapest to the most costly

# A rule of thumb that courses teach (Stanford's CS231n among them), by whether there is much data and whether it is far from ImageNet.
RULE_OF_THUMB = {
    (False, False): "the head alone (frozen)",
    (False, True): "the head and the last stages (partial)",
    (True, False): "the whole network (finetuned)",
    (True, True): "the whole network (finetuned), if not from scratch",
}

_MANIFEST, _SPLITS = Path("data/manifest.csv"), Path("data/splits")
_CONFIDENCE = 0.95
_BATCH_SIZE = 64
_START = "import timm, pipeline.networks.onnx_file, pipeline.training.loop; from pipeline.tracking.connection import connect; connect()"


@dataclass(frozen=True)
class Candidate:
    """A network or a regime that was tried: its mean loss in nats, compared with the favourite among the simpler ones.

    `rival`: that favourite, None for the first; `difference`: the mean loss minus the rival's; `is_better`: whether the interval of the
    difference is below 0.
    """

    name: str
    loss: float
    rival: str | None = None
    difference: float = 0.0
    interval: Interval = (0.0, 0.0)
    is_better: bool = False


def find_favourite(losses: Mapping[str, Array], confidence: float, seed: int) -> tuple[str, list[Candidate]]:
    """The name of the favourite, and all candidates with their comparison.

    `losses`: by name, from the simplest to the most costly candidate, float (pictures,) each, of the same pictures. A candidate becomes
    the favourite if the bootstrap interval of its paired difference from the favourite so far is below 0.
    """
    favourite, candidates = "", []
    for name, values in losses.items():
        if not favourite:
            favourite, candidates = name, [Candidate(name, float(values.mean()))]
            continue
        differences = values - losses[favourite]
        interval = mean_interval(differences, Bootstrap(np.arange(len(differences)), seed), confidence)
        candidates.append(Candidate(name, float(values.mean()), favourite, float(differences.mean()), interval, interval[1] < 0))
        favourite = name if interval[1] < 0 else favourite
    return favourite, candidates


def distance(pretrained: Array, untrained: Array) -> float:
    """How far the pictures are from those that the backbone was trained on: the fraction of errors that pretraining does not remove.

    Both: whether a head on the features of the pretrained network, or of the same network with random weights, is wrong about a
    picture, bool (pictures,). 0: no error remains; 1: all remain, or there are none on random features.
    """
    return min(1.0, float(pretrained.mean() / untrained.mean())) if untrained.any() else 1.0


class AnyRegime(Recipe):
    """Section `recipe` of params.yaml, which names no regime."""

    regime: Literal["frozen", "finetuned", "partial", "gradual", "scratch"] = "finetuned"


@dataclass(frozen=True)
class ProbedNetwork:
    """A network on the sample: its folder, written by the stage `backbone`, its preprocessing, the val pictures in batches, its probe."""

    folder: Path
    preprocessing: Preprocessing
    is_tiny: bool
    val_pixels: list[Array]
    probe: Probe


def find_evidence() -> dict[str, Any]:
    """Probe the available networks, try the regimes on the favourite, and return the results as JSON. Raises PipelineError."""
    for path in (_MANIFEST, _SPLITS / "train"):
        if not path.exists():
            raise PipelineError(f"{path}: does not exist; run `dvc repro`")
    own = read_backbone()["architecture"]["name"]
    recipe = read_section("recipe", AnyRegime)
    hardware, sample = choose_hardware(recipe.seed, recipe.threads, recipe.precision), read_sample(_MANIFEST, recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        folders = available_networks(own, Path(folder), recipe.seed)
        networks = {name: probe_network(path, sample, recipe, hardware) for name, path in folders.items()}
        untrained = probe_network(folders[own], sample, recipe, hardware, untrained=True)
        losses = {name: network.probe.losses for name, network in networks.items()}
        favourite, network_candidates = find_favourite(losses, _CONFIDENCE, recipe.seed)
        runs = {regime: try_regime(regime, networks[favourite], sample, recipe) for regime in REGIMES}
        overhead = measure_overhead(networks[favourite], sample, recipe)
    regime, regime_candidates = find_favourite({name: run.losses for name, run in runs.items()}, _CONFIDENCE, recipe.seed)
    return {
        **describe_data(sample, own, networks[own].probe.wrong, untrained.probe.wrong),
        "networks": [as_json(candidate) for candidate in network_candidates],
        "regimes": [as_json(candidate) for candidate in regime_candidates],
        "seconds": {name: round(overhead + seconds_of(run, name, recipe, sample), 1) for name, run in runs.items()},
        "network": favourite,
        "regime": regime,
    }


def describe_data(sample: Sample, network: str, wrong: Array, wrong_untrained: Array) -> dict[str, Any]:
    """The amount of data, its distance from what the network was trained on, and the rule of thumb for both.

    `wrong`, `wrong_untrained`: see `distance`.
    """
    remaining = distance(wrong, wrong_untrained)
    is_much, is_far = sample.per_class >= MUCH, remaining >= FAR
    return {
        "training_pictures": len(sample.manifest.train),
        "a_class": sample.per_class,
        "is_much": is_much,
        "distance": {
            "network": network, "errors": round(float(wrong.mean()), 6), "untrained_errors": round(float(wrong_untrained.mean()), 6),
            "remaining": round(remaining, 6), "is_far": is_far,
        },
        "sketch": RULE_OF_THUMB[is_much, is_far],
    }  # fmt: skip


def as_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate with its interval, null if the losses do not differ at all."""
    interval = None if any(map(math.isnan, candidate.interval)) else [round(end, 6) for end in candidate.interval]
    return {**asdict(candidate), "loss": round(candidate.loss, 6), "difference": round(candidate.difference, 6), "interval": interval}


def available_networks(own: str, folder: Path, seed: int) -> dict[str, Path]:
    """Folders by name: the backbone of params.yaml, and each network whose weights come with a package, written below `folder`."""
    folders = {own: BACKBONE}
    for name in PACKAGED:
        if name not in folders:
            write_backbone(folder / name, name, "packaged", None, seed)
            folders[name] = folder / name
    return folders


def probe_network(folder: Path, sample: Sample, recipe: AnyRegime, hardware: Hardware, untrained: bool = False) -> ProbedNetwork:
    """Probe the network of a folder, or the same network with random weights."""
    facts = read_json(folder / "backbone.json")
    architecture, all_train = facts["architecture"], sample.manifest.train
    backbone, _ = load_backbone(folder, with_weights=not untrained)
    wanted = read_section("embed", EmbedParams).image_size
    image_size = choose_image_size(wanted, folder, all_train, _SPLITS / "train", recipe.threads).side
    preprocessing = preprocessing_of(Architecture(**architecture), image_size)
    train, val = (
        [*square_batches([each.source(_SPLITS / each.split) for each in part], preprocessing, _BATCH_SIZE, recipe.threads, "advise")]
        for part in (sample.train, sample.val)
    )
    if untrained:
        settle_norms(backbone, train, hardware)
    both = [*sample.train, *sample.val]
    grid, folds = read_section("train_baseline", HeadParams).l2_grid, deal_folds(both, recipe.seed)
    features = embed_eagerly(backbone, [*train, *val], hardware)
    probed = probe(features, np.array(sample.manifest.labels(both)), len(sample.train), folds, halves(sample.val), grid, recipe.threads)
    return ProbedNetwork(folder, preprocessing, are_tiny(all_train, architecture["image_size"]), val, probed)


def try_regime(regime: str, network: ProbedNetwork, sample: Sample, recipe: AnyRegime) -> SampleRun:
    """Train by a regime and the recipe of params.yaml. The result does not depend on what was trained before."""
    resolved = recipe_for(regime, recipe, len(sample.train))
    hardware = choose_hardware(resolved.seed, resolved.threads, resolved.precision)
    classifier = with_head(load_backbone(network.folder)[0], network.probe.head, resolved.start)
    return train_on_sample(classifier, network.val_pixels, sample_data(network, sample), resolved, hardware)


def sample_data(network: ProbedNetwork, sample: Sample) -> TrainingData:
    """The sample as the data of a training run that starts from the probe's head."""
    table = sample.manifest
    return TrainingData(
        [picture.source(_SPLITS / "train") for picture in sample.train],
        table.labels(sample.train),
        [picture.source(_SPLITS / "val") for picture in sample.val],
        table.labels(sample.val),
        halves(sample.val),
        [picture.group for picture in sample.val],
        table.class_names,
        network.preprocessing,
        network.is_tiny,
        network.folder,
        baseline=network.folder,
        inputs={},
        learned="",
    )


def recipe_for(regime: str, recipe: AnyRegime, pictures: int) -> AnyRegime:
    """The recipe for a regime, `auto` resolved for that many training pictures."""
    return resolve_auto(recipe.model_copy(update={"regime": regime}), pictures)


def seconds_of(run: SampleRun, regime: str, recipe: AnyRegime, sample: Sample) -> float:
    """The seconds of a run on all pictures, without start and export, if it stops as early as the run on the sample did."""
    table = sample.manifest
    planned, of_sample = (int(recipe_for(regime, recipe, len(part)).epochs) for part in (table.train, sample.train))
    epochs = planned * run.epochs / of_sample
    return run.seconds(epochs, len(table.train) / len(sample.train), len(table.val) / len(sample.val))


def measure_overhead(network: ProbedNetwork, sample: Sample, recipe: AnyRegime) -> float:
    """The seconds that the stage `train` needs to start and to store the model."""
    with suppress(PipelineError), mlflow_errors():
        connect()  # creates the database if there is none, which happens once and must not count
    begun = time.monotonic()
    run_dvc("status", "train_baseline", stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _START], capture_output=True, check=False)  # MLflow may be away
    classifier = with_head(load_backbone(network.folder)[0], network.probe.head)
    facts = {"hardware": {"threads": recipe.threads}, "preprocessing": asdict(network.preprocessing)}
    rate = read_params().get("false_alarm_rate")
    with tempfile.TemporaryDirectory() as folder:
        store_model(classifier, network.val_pixels, sample_data(network, sample), facts, [{"epoch": 0.0}], rate, Path(folder, "model"))
    return time.monotonic() - begun
