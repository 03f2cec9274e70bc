"""Evaluate a stored model on the test pictures: the only stage that reads them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from safetensors import safe_open

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, cache_dir, read_table, sha256_of_file, write_json, write_table
from pipeline.core.params import Section
from pipeline.evaluation import figures, galleries
from pipeline.evaluation.calibration import coverage, reliability, without_temperature
from pipeline.evaluation.galleries import SIDE, class_activation, overlay
from pipeline.evaluation.scores import Array, confusion_matrix, score, shares, write_classes, write_matrix, write_predictions
from pipeline.pictures.images import read_square, square_batches
from pipeline.pictures.manifest import Picture, read_manifest
from pipeline.serving.predictor import Predictor

_BATCH = 32
_HEADLINE = ("top1_accuracy", "log_loss")  # what DVC compares: `dvc exp show` must fit into a terminal


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt  # draws the bootstrap and the random gallery
    threads: PositiveInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # of every interval


def predict(predictor: Predictor, paths: list[Path], threads: int) -> Array:
    """Probabilities of pictures by the stored model: float32, (pictures, classes)."""
    batches = square_batches(paths, predictor.preprocessing, _BATCH, threads, "evaluate")
    return np.concatenate([predictor.predict_pixels(pixels) for pixels in batches])


def explain(predictor: Predictor, model: Path, paths: Mapping[int, Path], probs: Array) -> dict[int, Image.Image]:
    """Where the model looked for its answer, over what it saw of each picture; nothing where its head is not linear on a map."""
    with safe_open(model / "model.safetensors", "numpy") as tensors:
        weight = tensors.get_tensor("head.weight")
    overlays = {}
    for number, path in paths.items():
        square = read_square(path, predictor.preprocessing)
        maps = predictor.feature_maps(square[None])
        if maps is None:
            return {}
        heat = class_activation(maps[0], weight, int(probs[number].argmax()))
        overlays[number] = overlay(Image.fromarray(square).resize((SIDE, SIDE)), heat)
    return overlays


def write_results(folder: Path, model: str, labels: Array, probs: Array, scores: Mapping[str, Any], params: Params) -> None:
    """The tables and the figures of the answers."""
    names, temperature = list(scores["classes"]), scores["temperature"]
    matrix = confusion_matrix(labels, probs.argmax(axis=1), len(names))
    write_matrix(folder / "confusion_matrix.csv", matrix, names)
    write_matrix(folder / "confusion_matrix_normalised.csv", shares(matrix), names)
    write_classes(folder / "classes.csv", scores["classes"])
    bins = reliability(labels, probs, params.confidence)
    bins_before = reliability(labels, without_temperature(probs, temperature), params.confidence)
    write_table(folder / "reliability.csv", list(bins[0]), bins)
    write_table(folder / "reliability_before.csv", list(bins_before[0]), bins_before)
    covered = coverage(labels, probs, params.confidence)
    write_table(folder / "coverage.csv", list(covered[0]), covered)
    right = scores["figures"]["top1_accuracy"]["value"]
    figures.plot_confusion_matrix(
        folder / "confusion_matrix.png", matrix, names, f"{model}: {right:.3f} of {len(labels)} test pictures right"
    )
    figures.plot_confusion_matrix(folder / "confusion_matrix_normalised.png", shares(matrix), names, f"{model}: shares of each true class")
    figures.plot_reliability(folder / "reliability.png", bins, bins_before, f"{model}: is it as sure as it is right? T = {temperature:.2f}")
    figures.plot_coverage(folder / "coverage.png", covered, f"{model}: what if it may abstain?")


def write_timing(model_sha256: str, pictures: int, seconds: float) -> None:
    """How fast the model was on this machine: into the cache, since an out must not differ from run to run."""
    write_json(cache_dir("timings") / f"{model_sha256}.json", {"pictures_per_second": round(pictures / seconds, 1)})


def run(params: Params, model: Path, test: Path, manifest: Path, results: Path, metrics_json: Path) -> None:
    """Ask the stored model about every test picture, score its answers, and write tables and pictures of them."""
    predictor = Predictor.load(model / "model.onnx", params.threads)
    names, pictures = predictor.class_names, read_manifest(manifest).split("test")
    if unknown := sorted({picture.label for picture in pictures} - set(names)):
        raise PipelineError(f"{model}: does not know class {unknown[0]!r} of the test pictures; run `dvc repro`")
    paths = [test / picture.path for picture in pictures]
    labels = np.array([names.index(picture.label) for picture in pictures])
    begun = time.perf_counter()
    probs = predict(predictor, paths, params.threads)
    seconds = time.perf_counter() - begun
    scores = {
        **about(model, pictures, predictor),
        "confidence": params.confidence,
        **score(labels, probs, names, predictor.facts["temperature"], params.confidence, params.seed),
    }
    chosen = galleries.choose(labels, probs, params.seed)
    shown = {int(number): paths[number] for each in chosen.values() for number in each}
    with atomic_dir(results) as partial:
        write_json(partial / "scores.json", scores)
        write_predictions(partial / "predictions.csv", pictures, probs, names)
        write_results(partial, model.name, labels, probs, scores, params)
        rows = read_table(partial / "predictions.csv")
        galleries.write_galleries(partial, chosen, rows, paths, explain(predictor, model, shown, probs))
    write_json(metrics_json, {model.name: {name: scores["figures"][name]["value"] for name in _HEADLINE}})
    write_timing(scores["model_sha256"], len(pictures), seconds)


def about(model: Path, pictures: list[Picture], predictor: Predictor) -> dict[str, Any]:
    """What was scored on how much: the model, its bytes, its size and temperature."""
    path = model / "model.onnx"
    return {
        "model": model.name,
        "model_sha256": sha256_of_file(path),
        "test_pictures": len(pictures),
        "temperature": predictor.facts["temperature"],
        "size": {"megabytes": round(sum(file.stat().st_size for file in model.glob("model.onnx*")) / 1e6, 1), **predictor.facts["size"]},
    }


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
