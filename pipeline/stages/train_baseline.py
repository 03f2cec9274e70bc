"""Train the baseline: fit a linear head on frozen features, choose its L2 penalty on val; ask which labels it doubts."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.numpy import load_file, save_file

from pipeline import stage
from pipeline.data.images import Preprocessing
from pipeline.data.manifest import Picture, class_names, read_manifest
from pipeline.data.partition import deal
from pipeline.evaluation.predictions import write_predictions
from pipeline.files import atomic_dir, read_json, read_table
from pipeline.models.artifact import append_head, describe, write_facts
from pipeline.models.session import read_onnx
from pipeline.params import Section
from pipeline.training.head import Array, Examples, Head, choose_head, out_of_fold_probs
from pipeline.training.temperature import fit_temperature

_FOLDS = 5


class Params(Section):  # section `train_baseline` of params.yaml
    seed: NonNegativeInt  # deals the folds
    threads: PositiveInt
    l2_grid: Annotated[list[PositiveFloat], Field(min_length=1)]  # tried in order; the lowest val loss wins


def read_examples(embeddings: Path, pictures: list[Picture], names: list[str]) -> Examples:
    """The features of some pictures, joined on image_id, with the numbers of their classes."""
    features = np.load(embeddings / "features.npy")
    rows = {row["image_id"]: number for number, row in enumerate(read_table(embeddings / "image_ids.csv"))}
    return Examples(
        features[[rows[picture.image_id] for picture in pictures]],
        np.array([names.index(picture.label) for picture in pictures]),
    )


def deal_folds(pictures: list[Picture], seed: int) -> Array:
    """The fold of each picture, int (pictures,): five, or as many as the class of the fewest groups has, two at least.

    Groups stay whole.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        groups[picture.label].add(picture.group)
    count = max(2, min(_FOLDS, *map(len, groups.values())))
    labels, in_groups = ({picture.image_id: getattr(picture, field) for picture in pictures} for field in ("label", "group"))
    folds = deal(labels, in_groups, {str(fold): 1 / count for fold in range(count)}, seed)
    return np.array([int(folds[picture.image_id]) for picture in pictures])


def run(params: Params, embeddings: Path, manifest: Path, backbone: Path, model: Path, out_of_fold: Path) -> None:
    """Read the examples, choose the head, write the model folder, and what heads say of pictures that they did not see."""
    training, validation = read_manifest(manifest, "train"), read_manifest(manifest, "val")
    names = class_names(training)
    pictures = [*training, *validation]
    both = read_examples(embeddings, pictures, names)
    train, val = (Examples(both.features[part], both.labels[part]) for part in (slice(len(training)), slice(len(training), None)))
    head, history = choose_head(train, val, params.l2_grid, params.threads)
    l2 = min(history, key=lambda row: row["val_loss"])["l2"]
    probs = out_of_fold_probs(both, deal_folds(pictures, params.seed), l2, params.threads)

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
    facts = describe(model.name, names, preprocessing, params, "pipeline.stages.train_baseline", inputs, hardware)
    temperature = fit_temperature(head.logits(val.features), val.labels)
    learned = {"temperature": temperature, "size": size_with_head(embedding["size"], head)}
    graph = append_head(read_onnx(embeddings / "backbone.onnx"), head.weight, head.bias, temperature)
    with atomic_dir(model) as partial:
        save_file(with_head(backbone, head.weight, head.bias), partial / "model.safetensors")
        write_facts(partial, graph, {**facts, **learned}, history)
    write_predictions(out_of_fold, pictures, probs, names)


def size_with_head(backbone: Mapping[str, float], head: Head) -> dict[str, float]:
    """Parameters and multiply-adds (GFLOPs) of a backbone and its head."""
    parameters = int(backbone["parameters"]) + head.weight.size + head.bias.size
    return {"parameters": parameters, "gflops": float(f"{backbone['gflops'] + head.weight.size / 1e9:.4g}")}


def with_head(backbone: Path, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a classifier: the backbone's, without ImageNet's head, and the new head."""
    old_head = read_json(backbone / "backbone.json")["head_tensors"]
    body = load_file(backbone / "weights.safetensors")
    tensors = {f"backbone.network.{key}": value for key, value in body.items() if key not in old_head}
    return {**tensors, "head.weight": weight, "head.bias": bias}


if __name__ == "__main__":
    stage.main("train_baseline", Params, run)
