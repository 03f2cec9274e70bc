"""Train one entry of `models`: from the baseline's head, the whole network, to the epoch that is best on val."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline import stage
from pipeline.data.images import Preprocessing
from pipeline.data.loading import Array, TrainingPictures, square_batches
from pipeline.data.manifest import Picture, class_names, read_manifest
from pipeline.files import atomic_dir, read_json
from pipeline.models.artifact import describe, identity, write_facts
from pipeline.params import Section
from pipeline.tracking.runs import Row, live_run
from pipeline.training import runtime

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from pipeline.models.classifier import Classifier
    from pipeline.training.checkpoint import Checkpoint
    from pipeline.training.finetune import Batches, Hardware

_CHECKED = 32  # val pictures on which the export is compared with torch


class Params(Section):  # an entry of section `models` of params.yaml
    seed: NonNegativeInt
    threads: PositiveInt
    regime: Literal["finetuned"]
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup: Annotated[float, Field(ge=0, lt=1)]  # share of the steps
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    min_crop_area: Annotated[float, Field(gt=0, le=1)]  # least share of the picture in a random crop
    flip: Literal["auto"] | bool  # auto: not where pictures are tiny, as scanned characters are
    patience: PositiveInt  # epochs without a lower val loss
    precision: Literal["auto", "fp32", "bf16"]


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path, baseline: Path, model: Path) -> None:
    """Read the pictures, train, and write the model folder. A run that was killed goes on after its last whole epoch."""
    from pipeline.models.classifier import WithProbs, load_classifier, save_classifier
    from pipeline.models.export import check_parity, count_work, export_onnx
    from pipeline.models.maps import with_map
    from pipeline.training.checkpoint import find_checkpoint
    from pipeline.training.temperature import fit_temperature

    training, validation = read_manifest(manifest, "train"), read_manifest(manifest, "val")
    names = class_names(training)
    embedding = read_json(embeddings / "embedding.json")
    preprocessing = Preprocessing(**embedding["preprocessing"])
    flip = not embedding["tiny"] if params.flip == "auto" else params.flip

    hardware = choose_hardware(params)
    facts = describe(
        model.name, names, preprocessing, params, "pipeline.stages.train",
        {"data": manifest, "embedding": embeddings / "embedding.json", "baseline": baseline / "model.safetensors"},
        {"device": hardware.device.type, "precision": hardware.precision, "threads": params.threads},
    )  # fmt: skip
    classifier = load_classifier(backbone, baseline, len(names))
    pixels = [*square_batches([val / picture.path for picture in validation], preprocessing, params.batch_size, params.threads, "decode")]
    labels = [names.index(picture.label) for picture in validation]
    checkpoint = find_checkpoint(model.name, identity(facts))
    with live_run(facts) as log:
        history = fit(
            classifier,
            train_batches(params, train, training, names, preprocessing, flip),
            val_batches(pixels, labels),
            params, hardware, log, checkpoint,
        )  # fmt: skip
    temperature = fit_temperature(logits_of(classifier.cpu(), pixels), np.array(labels))
    feature_map = read_json(backbone / "backbone.json")["feature_map"]
    answering = with_map(WithProbs(classifier, temperature), classifier.backbone, feature_map)
    graph = export_onnx(answering, preprocessing.image_size, ["probs", "feature_map"][: 2 if feature_map else 1])
    learned = {"temperature": temperature, "size": count_work(classifier, preprocessing.image_size)}
    with atomic_dir(model) as partial:
        save_classifier(classifier, partial / "model.safetensors")
        write_facts(partial, graph, {**facts, **learned}, history)
        check_parity(partial / "model.onnx", answering, np.concatenate(pixels)[:_CHECKED], params.threads)
    checkpoint.remove()


def choose_hardware(params: Params) -> "Hardware":
    """Seed everything, and take the best device and precision that there are."""
    from pipeline.training.finetune import Hardware

    runtime.make_repeatable(params.seed, params.threads)
    device = runtime.choose_device()
    return Hardware(device, runtime.choose_precision(params.precision, device))


def train_batches(
    params: Params, folder: Path, pictures: list[Picture], names: list[str], preprocessing: Preprocessing, flip: bool
) -> "Batches":
    """The training pictures, varied and shuffled anew each epoch, from the seed alone."""
    import torch

    from pipeline.training.recipe import make_variation

    size = preprocessing.image_size
    variation = make_variation(size, preprocessing.interpolation, params.min_crop_area, flip)
    labels = [names.index(picture.label) for picture in pictures]
    dataset = TrainingPictures([folder / picture.path for picture in pictures], labels, size, variation, params.threads)
    shuffled = torch.Generator().manual_seed(params.seed)
    return torch.utils.data.DataLoader(cast("Dataset", dataset), params.batch_size, shuffle=True, generator=shuffled)


def val_batches(pixels: list[Array], labels: list[int]) -> "Batches":
    """The val pictures as they are."""
    import torch

    return list(zip(map(torch.from_numpy, pixels), torch.split(torch.tensor(labels), [len(batch) for batch in pixels]), strict=True))


def logits_of(classifier: "Classifier", pixels: list[Array]) -> Array:
    """The classifier's logits in fp32 for batches of pixels: float32 (pictures, classes)."""
    import torch

    with torch.inference_mode():
        return np.concatenate([classifier.eval()(torch.from_numpy(batch)).numpy() for batch in pixels])


def fit(
    classifier: "Classifier",
    train: "Batches",
    val: "Batches",
    params: Params,
    hardware: "Hardware",
    log: Callable[[Row], None],
    checkpoint: "Checkpoint",
) -> list[Row]:
    """Fine-tune with the recipe that the params name, from where the checkpoint stands."""
    from pipeline.training.finetune import finetune
    from pipeline.training.recipe import make_recipe

    recipe = make_recipe(
        classifier, params.epochs, len(train), params.learning_rate, params.weight_decay, params.warmup,
        params.label_smoothing, params.patience,
    )  # fmt: skip
    return finetune(classifier, train, val, recipe, hardware, log, checkpoint)


if __name__ == "__main__":
    stage.main("models.*", Params, run)
