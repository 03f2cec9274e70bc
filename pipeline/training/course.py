"""A training run before its first step: the material, the classifier as it begins, and what moves it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.data.images import Preprocessing
from pipeline.data.loading import square_batches
from pipeline.data.manifest import class_names, read_manifest
from pipeline.files import read_json
from pipeline.models.artifact import describe, identity
from pipeline.models.classifier import Classifier, load_backbone, load_classifier
from pipeline.models.halves import split_at
from pipeline.models.regimes import make_plan
from pipeline.models.side_heads import add_side_heads
from pipeline.training import runtime
from pipeline.training.batches import Kitchen, Material
from pipeline.training.checkpoint import Checkpoint, find_checkpoint
from pipeline.training.finetune import Batches, Hardware, finetune
from pipeline.training.recipe import Recipe, Row
from pipeline.training.settings import Settings, settle


@dataclass(frozen=True)
class Inputs:
    """Where lies what a training run reads: the outs of the stages before it."""

    train: Path
    val: Path
    manifest: Path
    backbone: Path
    embeddings: Path
    baseline: Path

    @property
    def embedding(self) -> dict[str, Any]:
        """What embedding.json says."""
        found: dict[str, Any] = read_json(self.embeddings / "embedding.json")
        return found


@dataclass(frozen=True)
class Course:
    """What the loop takes: the model that it trains, which holds the classifier, its batches, and the recipe."""

    model: nn.Module
    train: Batches
    val: Batches
    recipe: Recipe


@dataclass(frozen=True)
class Training:
    """A training run that may begin, or go on after the last epoch of its checkpoint. `facts`: what it is made from."""

    facts: dict[str, Any]
    material: Material
    classifier: Classifier
    course: Course
    hardware: Hardware
    checkpoint: Checkpoint

    def run(self, log: Callable[[Row], None]) -> list[Row]:
        """Train the classifier to the epoch that is best on val, and return a row an epoch. Raises PipelineError."""
        course = self.course
        return finetune(course.model, course.train, course.val, course.recipe, self.hardware, log, self.checkpoint)


def set_up(name: str, stated: Settings, inputs: Inputs, code: str) -> Training:
    """Seed everything and get ready to train by settings that may hold `auto`. Raises PipelineError.

    `name`: of the model; `code`: the module that trains it.
    """
    settings = settle(stated, len(read_manifest(inputs.manifest, "train")))
    hardware = choose_hardware(settings)
    facts = tell_facts(name, settings, inputs, hardware, code)
    checkpoint = find_checkpoint(name, identity(facts))
    material, classifier, course = make_ready(settings, inputs, hardware, checkpoint.activations)
    return Training(facts, material, classifier, course, hardware, checkpoint)


def make_ready(settings: Settings, inputs: Inputs, hardware: Hardware, activations: Path) -> tuple[Material, Classifier, Course]:
    """The material, the classifier as it begins, and what moves it, by settings without `auto`. Raises PipelineError.

    `activations`: as of `prepare`.
    """
    material = gather(settings, inputs.train, inputs.val, inputs.manifest, inputs.embedding)
    classifier = begin(settings, inputs.backbone, inputs.baseline, len(class_names(read_manifest(inputs.manifest, "train"))))
    return material, classifier, prepare(classifier, material, settings, inputs.backbone, hardware, activations)


def tell_facts(name: str, settings: Settings, inputs: Inputs, hardware: Hardware, code: str) -> dict[str, Any]:
    """What a training run is made from, as `describe` tells it."""
    return describe(
        name, class_names(read_manifest(inputs.manifest, "train")), Preprocessing(**inputs.embedding["preprocessing"]), settings, code,
        {"data": inputs.manifest, "architecture": inputs.backbone / "backbone.json", "embedding": inputs.embeddings / "embedding.json",
         "baseline": inputs.baseline / "model.safetensors"},
        {"device": hardware.device.type, "precision": hardware.precision, "threads": settings.threads},
    )  # fmt: skip


def choose_hardware(settings: Settings) -> Hardware:
    """Seed everything, and take the best device and precision that there are."""
    runtime.make_repeatable(settings.seed, settings.threads)
    device = runtime.choose_device()
    return Hardware(device, runtime.choose_precision(settings.precision, device))


def gather(settings: Settings, train: Path, val: Path, manifest: Path, embedding: Mapping[str, Any]) -> Material:
    """The pictures of two folders and their classes; those of val are decoded here. `embedding`: what embedding.json says."""
    training, validation = read_manifest(manifest, "train"), read_manifest(manifest, "val")
    names = class_names(training)
    preprocessing = Preprocessing(**embedding["preprocessing"])
    paths = [val / picture.path for picture in validation]
    return Material(
        [train / picture.path for picture in training],
        [names.index(picture.label) for picture in training],
        [*square_batches(paths, preprocessing, settings.batch_size, settings.threads, "decode")],
        [names.index(picture.label) for picture in validation],
        preprocessing,
        not embedding["tiny"] if settings.flip == "auto" else settings.flip,
    )


def begin(settings: Settings, backbone: Path, baseline: Path, num_classes: int) -> Classifier:
    """The classifier as it is before it is trained."""
    if settings.start == "probe" and settings.regime != "scratch":
        return load_classifier(backbone, baseline, num_classes)
    body, num_features = load_backbone(backbone, with_weights=settings.regime != "scratch")
    return Classifier(body, num_features, num_classes)


def prepare(
    classifier: Classifier, material: Material, settings: Settings, backbone: Path, hardware: Hardware, activations: Path
) -> Course:
    """What the regime and the recipe make of a classifier and the material. Raises PipelineError.

    `activations`: the file in which what a frozen front makes of the training pictures is kept.
    """
    is_scratch, size = settings.regime == "scratch", material.preprocessing.image_size
    plan = make_plan(
        settings.regime, settings.stages, settings.batchnorm, int(settings.epochs), settings.layer_decay < 1, classifier.backbone, size
    )
    kitchen = Kitchen(settings)
    model: nn.Module
    if plan.has_front:
        hardware.place(classifier)
        model, front = split_at(classifier, plan.front_end, size)
        train, val = kitchen.from_activations(material, front, hardware, activations)
    else:
        model = add_side_heads(classifier, backbone, not is_scratch, size)
        train, val = kitchen.from_pictures(material)
        hardware.place(model)  # before the recipe takes a copy of it to average
    return Course(model, train, val, Recipe(model, classifier, plan.regime, settings, len(train), material.labels))
