"""Evaluate a stored model on the test pictures: the only stage that reads the test split."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from safetensors import safe_open

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import Slice, atomic_dir, cache_dir, sha256_of_file, write_json, write_table
from pipeline.core.sections import Section
from pipeline.drift.reference import MOST, write_reference
from pipeline.evaluation import figures, galleries
from pipeline.evaluation.answers import Answers, prediction_row, read_answers, write_predictions, write_probs
from pipeline.evaluation.calibration import coverage, reliability
from pipeline.evaluation.foreign import foreign_sets, score_unfamiliarity
from pipeline.evaluation.galleries import SIDE, class_activation, overlay
from pipeline.evaluation.intervals import Array
from pipeline.evaluation.scores import confusion_matrix, score, shares, write_classes, write_matrix
from pipeline.networks.onnx_file import spread
from pipeline.pictures.images import square_batches
from pipeline.pictures.manifest import Picture, read_manifest, recorded, sha256_of_pictures
from pipeline.serving.predictor import Outputs, Predictor

_BATCH = 32
_HEADLINE = ("top1_accuracy", "log_loss")  # what DVC compares: `dvc exp show` must fit into a terminal


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt  # of the bootstrap and of the random gallery
    threads: PositiveInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # of every interval


def label(pictures: Sequence[Picture], names: Sequence[str], model: Path) -> Array:
    """The positions of the pictures' classes in `names`: int (pictures,). Raises PipelineError if the model does not know one."""
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({picture.label for picture in pictures} - set(names)):
        raise PipelineError(f"{model}: does not know class {unknown[0]!r} of the test pictures; run `dvc repro`")
    return np.array([numbers[picture.label] for picture in pictures])


def predict(predictor: Predictor, paths: Sequence[Path | Slice], threads: int, predictions: Path) -> Outputs:
    """What the stored model says of the pictures: probabilities, float32 (pictures, classes), the content of the .npy file that is written.

    If the model has these outputs, also the unfamiliarity of all, float32 (pictures,), and features of the pictures of the reference.
    """
    batches = square_batches(paths, predictor.preprocessing, _BATCH, threads, "evaluate")
    shape, is_kept = (len(paths), len(predictor.class_names)), np.isin(np.arange(len(paths)), spread(len(paths), MOST))
    unfamiliarity: list[Array] = []
    features: list[Array] = []

    def answers() -> Iterator[Array]:
        start = 0
        for pixels in batches:
            outputs = predictor.run(pixels, "unfamiliarity", "features")
            if outputs.unfamiliarity is not None:
                unfamiliarity.append(outputs.unfamiliarity)
            if outputs.features is not None:
                features.append(outputs.features[is_kept[start : start + len(pixels)]])
            start += len(pixels)
            yield outputs.probs

    probs = write_probs(predictions, answers(), shape)
    return Outputs(probs, *(np.concatenate(parts) if parts else None for parts in (unfamiliarity, features)))


def judge_unfamiliarity(predictor: Predictor, known: Array | None, groups: Array, confidence: float) -> dict[str, Any]:
    """What scores.json contains as `unfamiliar`: how well test pictures are told from foreign ones; nothing if the model does not tell.

    `known`: the unfamiliarity of the test pictures.
    """
    if known is None:
        return {}
    foreign = {}
    for name, pictures in foreign_sets(predictor.facts["learned"]):
        batches = square_batches(pictures, predictor.preprocessing, _BATCH, predictor.threads, title="")
        foreign[name] = np.concatenate([np.asarray(predictor.answer(pixels)[1]) for pixels in batches])
    return {"unfamiliar": score_unfamiliarity(known, groups, foreign, predictor.facts["unfamiliar"], confidence)}


def explain(predictor: Predictor, model: Path, paths: Mapping[int, Path | Slice], predicted: Array) -> dict[int, Image.Image]:
    """The class activation map of each predicted class over its picture, by the keys of `paths`, which are indices of `predicted`.

    Empty if the head is not linear on a feature map.
    """
    with safe_open(model / "model.safetensors", "numpy") as tensors:
        weight = tensors.get_tensor("head.weight")
    overlays, numbers = {}, iter(paths)
    for squares in square_batches([*paths.values()], predictor.preprocessing, _BATCH, predictor.threads, title=""):
        maps = predictor.run(squares, "feature_map").feature_map
        if maps is None:
            return {}
        for square, feature_map in zip(squares, maps, strict=True):
            number = next(numbers)
            heat = class_activation(feature_map, weight, int(predicted[number]))
            overlays[number] = overlay(Image.fromarray(square).resize((SIDE, SIDE)), heat)
    return overlays


def about(model: Path, pictures: Sequence[Picture], predictor: Predictor) -> dict[str, Any]:
    """The facts that scores.json begins with: of the model, and the numbers of test pictures and of their groups."""
    return {
        "model": model.name,
        "model_sha256": sha256_of_file(model / "model.onnx"),
        "test_pictures": len(pictures),
        "test_groups": len({picture.group for picture in pictures}),
        "test_sha256": sha256_of_pictures(pictures),
        "learned_test_pictures": len(recorded(pictures, predictor.facts["learned"])),
        "temperature": predictor.facts["temperature"],
        "size": {"megabytes": round(sum(file.stat().st_size for file in model.glob("model.onnx*")) / 1e6, 1), **predictor.facts["size"]},
    }


def write_results(folder: Path, answers: Answers, unscaled: Answers, groups: Array, scores: Mapping[str, Any], confidence: float) -> None:
    """Write the tables and plots of a model's answers. `unscaled`: before temperature scaling."""
    model, names, temperature = scores["model"], list(scores["classes"]), scores["temperature"]
    matrix = confusion_matrix(answers.labels, answers.predicted, len(names))
    write_matrix(folder / "confusion_matrix.csv", matrix, names)
    write_matrix(folder / "confusion_matrix_normalised.csv", shares(matrix), names)
    write_classes(folder / "classes.csv", scores["classes"])
    bins, bins_before = (reliability(each, groups, confidence) for each in (answers, unscaled))
    covered = coverage(answers, groups, confidence)
    for name, rows in (("reliability", bins), ("reliability_before", bins_before), ("coverage", covered)):
        write_table(folder / f"{name}.csv", list(rows[0]), rows)
    accuracy = scores["figures"]["top1_accuracy"]["value"]
    title = f"{model}: accuracy {accuracy:.3f} on {scores['test_pictures']} test pictures"
    figures.plot_confusion_matrix(folder / "confusion_matrix.png", matrix, names, title)
    figures.plot_confusion_matrix(folder / "confusion_matrix_normalised.png", shares(matrix), names, f"{model}: shares of each true class")
    figures.plot_reliability(folder / "reliability.png", bins, bins_before, f"{model}: reliability, temperature {temperature:.2f}")
    figures.plot_coverage(folder / "coverage.png", covered, f"{model}: accuracy by coverage")


def run(params: Params, model: Path, test: Path, manifest: Path, results: Path, metrics_json: Path) -> None:
    """Predict every test picture with the stored model, score the answers, and write tables, plots and galleries."""
    predictor = Predictor.load(model / "model.onnx", params.threads, on_gpu=True)
    names, pictures = predictor.class_names, read_manifest(manifest).split("test")
    paths, labels = [picture.source(test) for picture in pictures], label(pictures, names, model)
    groups = np.unique([picture.group for picture in pictures], return_inverse=True)[1]
    with atomic_dir(results) as partial, ThreadPoolExecutor(2) as drawing:
        start = time.perf_counter()
        outputs = predict(predictor, paths, params.threads, partial / "predictions.npy")
        seconds = time.perf_counter() - start
        probs, unfamiliarity = outputs.probs, outputs.unfamiliarity
        answers, unscaled = read_answers(labels, probs), read_answers(labels, probs, predictor.facts["temperature"])
        scores = {
            **about(model, pictures, predictor),
            "confidence": params.confidence,
            **score(answers, unscaled, probs, groups, names, params.confidence, params.seed),
        }
        write_predictions(partial / "predictions.csv", pictures, answers, names, unfamiliarity)
        write_reference(partial, (scores["model_sha256"], names), pictures, outputs, labels, groups)
        chosen = galleries.choose(answers, probs, params.seed, unfamiliarity)
        rows = {number: prediction_row(pictures[number], answers, number, names) for number in galleries.shown(chosen)}
        shown = {number: paths[number] for number in rows}
        overlays = explain(predictor, model, shown, answers.predicted)
        drawn = [  # while the network answers to the foreign pictures: Python draws on one core
            drawing.submit(write_results, partial, answers, unscaled, groups, scores, params.confidence),
            drawing.submit(galleries.write_galleries, partial, chosen, rows, len(pictures), shown, overlays),
        ]
        write_json(partial / "scores.json", {**scores, **judge_unfamiliarity(predictor, unfamiliarity, groups, params.confidence)})
        for each in drawn:
            each.result()
    if scores["learned_test_pictures"]:
        print(f"{model}: learned from {scores['learned_test_pictures']} of the {len(pictures)} test pictures; its figures are too good")
    headline = {name: scores["figures"][name]["value"] for name in _HEADLINE}
    write_json(metrics_json, {model.name: {**headline, "test_set": scores["test_sha256"][:8]}})
    # The speed differs from run to run, so it is no part of the results.
    write_json(cache_dir("timings") / f"{scores['model_sha256']}.json", {"pictures_per_second": round(len(pictures) / seconds, 1)})


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
