"""Train the baseline: fit a linear head on frozen features, choose its L2 penalty on val, and find doubtful labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, read_json
from pipeline.core.sections import Rate
from pipeline.evaluation.answers import read_answers, write_predictions
from pipeline.networks.artifact import append_head, describe_model, write_facts, write_golden
from pipeline.networks.onnx_file import open_session, read_onnx
from pipeline.networks.unfamiliar import add_unfamiliarity, choose_references, fit_references
from pipeline.pictures.images import Preprocessing
from pipeline.pictures.manifest import read_manifest, record_of
from pipeline.training.head import Head, HeadParams, deal_folds, fit_baseline, read_examples
from pipeline.training.temperature import fit_temperature, halves

_CHECKED, _TOLERANCE = 8, 1e-4  # pictures of noise; of a probability


class Params(HeadParams):
    """Section `train_baseline` of params.yaml."""

    false_alarm_rate: Rate | None


def with_head(backbone: Path, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a classifier: the backbone's without ImageNet's head, and the new head."""
    old_head = read_json(backbone / "backbone.json")["head_tensors"]
    body = load_file(backbone / "weights.safetensors")
    tensors = {f"backbone.network.{key}": value for key, value in body.items() if key not in old_head}
    return {**tensors, "head.weight": weight, "head.bias": bias}


def size_with_head(backbone: Mapping[str, float], head: Head) -> dict[str, float]:
    """Parameters and multiply-adds (GMACs) of a backbone and its head."""
    parameters = int(backbone["parameters"]) + head.weight.size + head.bias.size
    return {"parameters": parameters, "gmacs": float(f"{backbone['gmacs'] + head.weight.size / 1e9:.4g}")}


def check_head(model: Path, backbone: Path, head: Head, temperature: float, image_size: int, threads: int) -> None:
    """Raise PipelineError if the probabilities of model.onnx differ from those of the head on the backbone's features."""
    pixels = np.random.default_rng(0).integers(0, 256, (_CHECKED, image_size, image_size, 3), dtype=np.uint8)
    features, probs = (open_session(path, threads).run(None, {"pixels": pixels})[0] for path in (backbone, model))
    difference = np.abs(probs - softmax(head.logits(features) / temperature, axis=1)).max()
    if not difference < _TOLERANCE:  # also if it is NaN
        raise PipelineError(f"the baseline's model.onnx: differs from its head by {difference:.1e}; report this with the backbone's name")


def run(params: Params, embeddings: Path, manifest: Path, backbone: Path, model: Path, out_of_fold: Path) -> None:
    """Read the examples, choose the head, and write the model folder and the out-of-fold predictions for train and val."""
    table = read_manifest(manifest)
    pictures, count, names = [*table.train, *table.val], len(table.train), table.class_names
    examples = read_examples(embeddings, pictures, table.labels(pictures))
    folds = deal_folds(pictures, params.seed)
    head, history, probs = fit_baseline(examples, count, folds, halves(table.val), params.l2_grid, params.threads)

    embedding = read_json(embeddings / "embedding.json")
    preprocessing = Preprocessing(**embedding["preprocessing"])
    inputs = {
        "data": manifest,
        "backbone": backbone / "weights.safetensors",
        "architecture": backbone / "backbone.json",
        "embedding": embeddings / "embedding.json",
        "features": embeddings / "features.npy",
    }
    hardware: dict[str, str | int] = {"device": "cpu", "precision": "fp32", "threads": params.threads}
    learned = record_of(pictures, read_json(backbone / "backbone.json")["learned"])
    facts = describe_model(model.name, names, preprocessing, params, "pipeline.stages.train_baseline", inputs, hardware, learned)
    temperature = fit_temperature(head.logits(examples.features[count:]), examples.labels[count:])
    measured: dict[str, Any] = {"temperature": temperature, "size": size_with_head(embedding["size"], head)}
    graph = append_head(read_onnx(embeddings / "backbone.onnx"), head.weight, head.bias, temperature)
    if params.false_alarm_rate:
        references = fit_references(examples.features[choose_references(examples.labels[:count])])
        groups, distances = [picture.group for picture in table.val], references.distances(examples.features[count:])
        measured |= add_unfamiliarity(graph, references, distances, groups, params.false_alarm_rate)
    with atomic_dir(model) as partial:
        save_file(with_head(backbone, head.weight, head.bias), partial / "model.safetensors")
        (partial / "model.safetensors").chmod(0o644)  # safetensors makes a file that only its owner reads
        write_facts(partial, graph, {**facts, **measured}, history)
        onnx_paths = partial / "model.onnx", embeddings / "backbone.onnx"
        check_head(*onnx_paths, head, temperature, preprocessing.image_size, params.threads)
        write_golden(partial, params.threads)
    write_predictions(out_of_fold, pictures, read_answers(examples.labels, probs), names)


if __name__ == "__main__":
    stage.main("train_baseline", Params, run)
