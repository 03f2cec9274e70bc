"""Temperature scaling (Guo et al., 2017), and the trained model stored with its temperature."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.core.files import atomic_dir, read_json
from pipeline.networks.artifact import write_facts
from pipeline.pictures.images import Array

if TYPE_CHECKING:
    from pipeline.networks.classifier import Classifier
    from pipeline.training.batches import TrainingData

_SPREAD = 0.5  # of the prior: 95 % of it is between T = 0.38 and T = 2.7
_BOUNDS = (-3.0, 3.0)  # of log T
_CHECKED = 32  # val pictures on which the export is compared with torch


def fit_temperature(logits: Array, labels: Array) -> float:
    """The T for which softmax(logits / T) has the lowest log loss on these pictures, with a weak log-normal prior at 1. Six digits.

    `logits`: float (pictures, classes); `labels`: int (pictures,). Without the prior, T would go to 0 if all of a few pictures are
    right. With many pictures it hardly counts.
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        losses = -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels]
        return float(losses.sum() + 0.5 * (log_temperature / _SPREAD) ** 2)

    minimum = minimize_scalar(loss, bounds=_BOUNDS, method="bounded", options={"xatol": 1e-8})
    return float(f"{np.exp(minimum.x):.6g}")


def store_model(
    classifier: "Classifier",
    val_pixels: Sequence[Array],
    data: "TrainingData",
    facts: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    model: Path,
) -> None:
    """Fit the temperature on val, export, compare the export with torch, and write the model folder."""
    from pipeline.networks.classifier import WithProbs, save_classifier, with_feature_map
    from pipeline.networks.onnx_file import check_parity, count_work, export_onnx

    size = data.preprocessing.image_size
    temperature = fit_temperature(logits_of(classifier, val_pixels), np.array(data.val_labels))
    feature_map = read_json(data.backbone / "backbone.json")["feature_map"]
    network = with_feature_map(WithProbs(classifier, temperature), classifier.backbone, feature_map)
    graph = export_onnx(network, size, ["probs", "feature_map"][: 2 if feature_map else 1])
    measured = {"temperature": temperature, "size": count_work(classifier, size)}
    with atomic_dir(model) as partial:
        save_classifier(classifier, partial / "model.safetensors")
        write_facts(partial, graph, {**facts, **measured}, history)
        check_parity(partial / "model.onnx", network, np.concatenate(val_pixels)[:_CHECKED], facts["hardware"]["threads"])


def logits_of(classifier: "Classifier", pixels: Sequence[Array]) -> Array:
    """The classifier's logits in fp32 for batches of pixels: float32 (pictures, classes)."""
    import torch

    with torch.inference_mode():
        return np.concatenate([classifier.eval()(torch.from_numpy(batch)).numpy() for batch in pixels])
