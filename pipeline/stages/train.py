"""Train one entry of `models` by its regime and recipe, to the epoch that is best on val."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import stage
from pipeline.data.loading import Array
from pipeline.files import atomic_dir, read_json
from pipeline.models.artifact import write_facts
from pipeline.tracking.runs import Row, live_run
from pipeline.training.settings import Settings

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier
    from pipeline.training.batches import Material

_CHECKED = 32  # val pictures on which the export is compared with torch


class Params(Settings):
    """An entry of section `models` of params.yaml; what it leaves open, section `recipe` says."""


def run(params: Params, train: Path, val: Path, manifest: Path, backbone: Path, embeddings: Path, baseline: Path, model: Path) -> None:
    """Read the pictures, train, and write the model folder. A run that was killed goes on after its last whole epoch."""
    from pipeline.training.course import Inputs, set_up

    training = set_up(model.name, params, Inputs(train, val, manifest, backbone, embeddings, baseline), "pipeline.stages.train")
    with live_run(training.facts) as log:
        history = training.run(log)
    store(training.classifier.cpu(), training.material, training.facts, history, backbone, model)
    training.checkpoint.remove()


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
