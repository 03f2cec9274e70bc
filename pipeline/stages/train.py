"""Train one entry of `models` by its regime and recipe, to the epoch that is best on val."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from pipeline import stage
from pipeline.data.images import Preprocessing
from pipeline.data.loading import Array, square_batches
from pipeline.data.manifest import class_names, read_manifest
from pipeline.files import atomic_dir, read_json
from pipeline.models.artifact import describe, identity, write_facts
from pipeline.tracking.runs import Row, live_run
from pipeline.training import runtime
from pipeline.training.settings import Settings, settle

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.classifier import Classifier
    from pipeline.training.batches import Material
    from pipeline.training.checkpoint import Checkpoint
    from pipeline.training.finetune import Hardware

_CHECKED = 32  # val pictures on which the export is compared with torch


class Params(Settings):  # an entry of section `models` of params.yaml; what it leaves open, section `recipe` says
    seed: NonNegativeInt
    threads: PositiveInt
    regime: Literal["frozen", "finetuned", "partial", "gradual", "scratch"]
    stages: PositiveInt  # of regime partial: how many of the last ones are trained
    start: Literal["probe", "fresh"]  # of the head: the baseline's (linear probing, then fine-tuning), or a random one
    batchnorm: Literal["auto", "frozen", "training"]  # auto: frozen, but for scratch


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path, baseline: Path, model: Path) -> None:
    """Read the pictures, train, and write the model folder. A run that was killed goes on after its last whole epoch."""
    from pipeline.training.checkpoint import find_checkpoint

    training = read_manifest(manifest, "train")
    names = class_names(training)
    settings = settle(params, len(training), params.regime == "scratch")
    embedding = read_json(embeddings / "embedding.json")
    hardware = choose_hardware(settings)
    facts = describe(
        model.name, names, Preprocessing(**embedding["preprocessing"]), settings, "pipeline.stages.train",
        {"data": manifest, "embedding": embeddings / "embedding.json", "baseline": baseline / "model.safetensors"},
        {"device": hardware.device.type, "precision": hardware.precision, "threads": params.threads},
    )  # fmt: skip
    material = gather(settings, train, val, manifest, embedding)
    classifier = begin(settings, backbone, baseline, len(names))
    checkpoint = find_checkpoint(model.name, identity(facts))
    with live_run(facts) as log:
        history = fit(classifier, material, settings, backbone, hardware, log, checkpoint)
    store(classifier.cpu(), material, facts, history, backbone, model)
    checkpoint.remove()


def choose_hardware(params: Params) -> "Hardware":
    """Seed everything, and take the best device and precision that there are."""
    from pipeline.training.finetune import Hardware

    runtime.make_repeatable(params.seed, params.threads)
    device = runtime.choose_device()
    return Hardware(device, runtime.choose_precision(params.precision, device))


def gather(params: Params, train: Path, val: Path, manifest: Path, embedding: Mapping[str, Any]) -> "Material":
    """The pictures and their classes; those of val are decoded here."""
    from pipeline.training.batches import Material

    training, validation = read_manifest(manifest, "train"), read_manifest(manifest, "val")
    names = class_names(training)
    preprocessing = Preprocessing(**embedding["preprocessing"])
    pixels = square_batches([val / picture.path for picture in validation], preprocessing, params.batch_size, params.threads, "decode")
    return Material(
        [train / picture.path for picture in training],
        [names.index(picture.label) for picture in training],
        [*pixels],
        [names.index(picture.label) for picture in validation],
        preprocessing,
        not embedding["tiny"] if params.flip == "auto" else params.flip,
    )


def begin(params: Params, backbone: Path, baseline: Path, num_classes: int) -> "Classifier":
    """The classifier as it is before it is trained."""
    from pipeline.models.classifier import Classifier, load_backbone, load_classifier

    is_scratch = params.regime == "scratch"
    if params.start == "probe" and not is_scratch:
        return load_classifier(backbone, baseline, num_classes)
    body, num_features = load_backbone(backbone, pretrained=not is_scratch)
    return Classifier(body, num_features, num_classes)


def fit(
    classifier: "Classifier",
    material: "Material",
    params: Params,
    backbone: Path,
    hardware: "Hardware",
    log: Callable[[Row], None],
    checkpoint: "Checkpoint",
) -> list[Row]:
    """Train the classifier by its regime and recipe, from where the checkpoint stands."""
    from pipeline.models.halves import split_at
    from pipeline.models.regimes import make_plan
    from pipeline.models.side_heads import add_side_heads
    from pipeline.training.batches import Kitchen
    from pipeline.training.finetune import finetune
    from pipeline.training.recipe import Recipe

    is_scratch, size = params.regime == "scratch", material.preprocessing.image_size
    norms = is_scratch if params.batchnorm == "auto" else params.batchnorm == "training"
    plan = make_plan(params.regime, params.stages, norms, int(params.epochs), params.layer_decay < 1, classifier.backbone, size)
    kitchen = Kitchen(params, params.seed, params.threads)
    model: nn.Module
    if plan.has_front:
        model, front = split_at(classifier.to(hardware.device), plan.front_end, size)
        train, val = kitchen.from_activations(material, front, hardware, checkpoint.activations)
    else:
        model = add_side_heads(classifier, backbone, not is_scratch, size)
        train, val = kitchen.from_pictures(material)
    recipe = Recipe(model, classifier, plan.regime, params, len(train), material.labels)
    return finetune(model, train, val, recipe, hardware, log, checkpoint)


def store(
    classifier: "Classifier", material: "Material", facts: Mapping[str, Any], history: list[Row], backbone: Path, model: Path
) -> None:
    """Fit the temperature on val, export, compare the export with torch, and write the model folder."""
    from pipeline.models.classifier import WithProbs, save_classifier
    from pipeline.models.export import check_parity, count_work, export_onnx
    from pipeline.models.maps import with_map
    from pipeline.training.temperature import fit_temperature

    pixels, size = material.val_pixels, material.preprocessing.image_size
    temperature = fit_temperature(logits_of(classifier, pixels), np.array(material.val_labels))
    feature_map = read_json(backbone / "backbone.json")["feature_map"]
    answering = with_map(WithProbs(classifier, temperature), classifier.backbone, feature_map)
    graph = export_onnx(answering, size, ["probs", "feature_map"][: 2 if feature_map else 1])
    learned = {"temperature": temperature, "size": count_work(classifier, size)}
    with atomic_dir(model) as partial:
        save_classifier(classifier, partial / "model.safetensors")
        write_facts(partial, graph, {**facts, **learned}, history)
        check_parity(partial / "model.onnx", answering, np.concatenate(pixels)[:_CHECKED], facts["hardware"]["threads"])


def logits_of(classifier: "Classifier", pixels: Sequence[Array]) -> Array:
    """The classifier's logits in fp32 for batches of pixels: float32 (pictures, classes)."""
    import torch

    with torch.inference_mode():
        return np.concatenate([classifier.eval()(torch.from_numpy(batch)).numpy() for batch in pixels])


if __name__ == "__main__":
    stage.main("models.*", Params, run)
