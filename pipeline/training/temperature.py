"""Temperature scaling (Guo et al., 2017), and the trained model stored with its temperature."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.core.files import atomic_dir, read_json
from pipeline.networks.artifact import append_head, write_facts, write_golden
from pipeline.networks.unfamiliar import References, add_unfamiliarity, choose_references, fit_references
from pipeline.pictures.images import Array, square_batches
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from pipeline.networks.classifier import Classifier
    from pipeline.training.batches import TrainingData

_BOUNDS = (-5.0, 5.0)  # of log T
_CHECKED = 32  # val pictures on which the export is compared with torch
_BATCH = 32  # train pictures whose features are computed at once


def fit_temperature(logits: Array, labels: Array) -> float:
    """The T for which softmax(logits / T) has the lowest log loss on these pictures, as if half of one more were mistaken. Six digits.

    `logits`: float (pictures, classes); `labels`: int (pictures,). 1 without pictures.
    """
    count, num_classes = logits.shape
    if count == 0:
        return 1.0
    logits = logits.astype(np.float64)
    # Targets as Platt's (1999): where all of a few pictures are right, T would go to 0, and the model would be sure of everything.
    mistaken = 0.5 / (count + 1)
    targets = np.full(logits.shape, mistaken / (num_classes - 1))
    targets[np.arange(count), labels] = 1 - mistaken

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum())

    minimum = minimize_scalar(loss, bounds=_BOUNDS, method="bounded", options={"xatol": 1e-8})
    return float(f"{np.exp(minimum.x):.6g}")


def halves(pictures: Sequence[Picture]) -> Array:
    """Which half each picture is in, bool (pictures,): of each class every other group. Groups stay whole."""
    half: dict[str, bool] = {}
    turns: dict[str, bool] = {}
    for picture in pictures:
        if picture.group not in half:
            half[picture.group] = turns.setdefault(picture.label, len(turns) % 2 == 0)
            turns[picture.label] = not half[picture.group]
    return np.array([half[picture.group] for picture in pictures], bool)


def calibrated_losses(logits: Array, labels: Array, half: Array) -> Array:
    """The log loss of each picture under the temperature of the other half, in nats: float64 (pictures,).

    This is what epochs, entries, trials and regimes are ranked by: the model is stored with a temperature, so a loss that the
    temperature repairs counts for nothing, and a temperature fitted on the same pictures would be flattered by them.
    """
    losses = np.empty(len(labels))
    for this in (half, ~half):
        temperature = fit_temperature(logits[~this], labels[~this])
        losses[this] = -log_softmax(logits[this].astype(np.float64) / temperature, axis=1)[np.arange(this.sum()), labels[this]]
    return losses


def store_model(
    classifier: "Classifier",
    val_pixels: Sequence[Array],
    data: "TrainingData",
    facts: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    false_alarm_rate: float | None,
    model: Path,
) -> None:
    """Fit the temperature and the threshold of unfamiliar pictures on val, export, compare with torch, and write the model folder."""
    from pipeline.networks.classifier import WithProbs, save_classifier, with_feature_map
    from pipeline.networks.onnx_file import check_parity, count_work, export_onnx, spread

    size, threads = data.preprocessing.image_size, facts["hardware"]["threads"]
    references = read_references(classifier, data, threads) if false_alarm_rate else None
    logits, distances = answer_val(classifier, val_pixels, references)
    temperature = fit_temperature(logits, np.array(data.val_labels))
    feature_map = read_json(data.backbone / "backbone.json")["feature_map"]
    body = with_feature_map(classifier.backbone, classifier.backbone, feature_map)
    weight, bias = (tensor.detach().numpy() for tensor in (classifier.head.weight, classifier.head.bias))
    outputs = ["probs", "features", *(["feature_map"] if feature_map else [])]
    graph = append_head(export_onnx(body, size, outputs[1:]), weight, bias, temperature)
    measured: dict[str, Any] = {"temperature": temperature, "size": count_work(classifier, size)}
    if references and false_alarm_rate:
        measured |= add_unfamiliarity(graph, references, distances, data.val_groups, false_alarm_rate)
    network = with_feature_map(WithProbs(classifier, temperature), classifier.backbone, feature_map)
    with atomic_dir(model) as partial:
        save_classifier(classifier, partial / "model.safetensors")
        write_facts(partial, graph, {**facts, **measured}, history)
        batches, places = np.divmod(spread(len(data.val_labels), _CHECKED), len(val_pixels[0]))
        checked = np.stack([val_pixels[batch][place] for batch, place in zip(batches, places, strict=True)])
        check_parity(partial / "model.onnx", network, checked, threads, outputs)
        write_golden(partial, threads)


def answer_val(classifier: "Classifier", pixels: Iterable[Array], references: References | None) -> tuple[Array, Array]:
    """In fp32, for batches of pixels: logits, float32 (pictures, classes), and distances from the references, float32 (pictures,).

    Without references there are no distances.
    """
    import torch

    logits, distances = [], [np.empty(0, np.float32)]
    with torch.inference_mode():
        for batch in pixels:
            features = classifier.eval().backbone(torch.from_numpy(batch))
            logits.append(classifier.answer(features).numpy())
            distances += [references.distances(features.numpy())] if references else []
    return np.concatenate(logits), np.concatenate(distances)


def read_references(classifier: "Classifier", data: "TrainingData", threads: int) -> References:
    """The references of a trained classifier: train pictures, see `choose_references`, as it sees them in fp32."""
    import torch

    paths = [data.train_paths[row] for row in choose_references(data.train_labels)]
    batches = square_batches(paths, data.preprocessing, _BATCH, threads, "references")
    with torch.inference_mode():
        return fit_references(np.concatenate([classifier.eval().backbone(torch.from_numpy(batch)).numpy() for batch in batches]))
