"""Evaluate a stored model on the test pictures: the only stage that reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline import stage
from pipeline.data.images import decode
from pipeline.data.loading import square_batches
from pipeline.data.manifest import Picture, read_manifest
from pipeline.errors import PipelineError
from pipeline.evaluation import figures, metrics
from pipeline.evaluation.metrics import Array
from pipeline.evaluation.predictions import write_predictions
from pipeline.evaluation.statistics import bootstrap_interval, wilson_interval
from pipeline.files import atomic_dir, sha256_of_file, write_json, write_table
from pipeline.params import Section
from pipeline.serving.predictor import Predictor

_BATCH = 32
_SHOWN_MISTAKES = 12
_THUMBNAIL = 256


class Params(Section):  # section `evaluate` of params.yaml
    seed: NonNegativeInt  # draws the bootstrap
    threads: PositiveInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # of every interval


def predict(predictor: Predictor, paths: list[Path], threads: int) -> Array:
    """Probabilities of pictures by the stored model: float32, (pictures, classes)."""
    batches = square_batches(paths, predictor.preprocessing, _BATCH, threads, "evaluate")
    return np.concatenate([predictor.predict_pixels(pixels) for pixels in batches])


def score(labels: Array, probs: Array, class_names: Sequence[str], params: Params) -> dict[str, object]:
    """Every figure with its interval where one is defined: `x`, `x_low`, `x_high`.

    Wilson's for proportions, the bootstrap's for the rest; none for ECE, whose bootstrap is biased upwards.
    """
    predicted, count, size = probs.argmax(axis=1), len(labels), len(class_names)
    matrix = metrics.confusion_matrix(labels, predicted, size)
    losses = metrics.log_losses(labels, probs)

    def drawn_balance(drawn: Array) -> float:
        return metrics.balanced_accuracy(metrics.confusion_matrix(labels[drawn], predicted[drawn], size))

    level, seed = params.confidence, params.seed
    return {
        "test_pictures": count,
        "confidence": level,
        **_with("top1_accuracy", metrics.top1_accuracy(matrix), wilson_interval(int(np.trace(matrix)), count, level)),
        **_with("balanced_accuracy", metrics.balanced_accuracy(matrix), bootstrap_interval(drawn_balance, count, level, seed)),
        **_with("log_loss", losses.mean(), bootstrap_interval(lambda drawn: losses[drawn].mean(), count, level, seed)),
        "ece": _rounded(metrics.expected_calibration_error(labels, probs)),
        "classes": score_classes(labels, predicted, matrix, class_names, params),
    }


def score_classes(labels: Array, predicted: Array, matrix: Array, class_names: Sequence[str], params: Params) -> dict[str, object]:
    """Precision, recall, F1 and support of each class, with intervals; null where there is nothing to divide by."""
    level, size = params.confidence, len(class_names)
    hits, answers, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    low, high = bootstrap_interval(
        lambda drawn: metrics.f1_scores(metrics.confusion_matrix(labels[drawn], predicted[drawn], size)), len(labels), level, params.seed
    )
    scored: dict[str, object] = {}
    for index, name in enumerate(class_names):
        precision, recall = (
            wilson_interval(int(hits[index]), int(count[index]), level) if count[index] else (None, None) for count in (answers, support)
        )
        scored[name] = {
            **_with("precision", metrics.precisions(matrix)[index], precision),
            **_with("recall", metrics.recalls(matrix)[index], recall),
            **_with("f1", metrics.f1_scores(matrix)[index], (low[index], high[index])),
            "support": int(support[index]),
        }
    return scored


def write_confusion_matrix(path: Path, matrix: Array, class_names: Sequence[str]) -> None:
    """A row a true class, a column a predicted one, the names of both in the first column and row."""
    columns = ["true/predicted", *class_names]  # no class has a slash in its name
    rows = [dict(zip(columns, [name, *row], strict=True)) for name, row in zip(class_names, matrix.tolist(), strict=True)]
    write_table(path, columns, rows)


def plot_mistakes(path: Path, pictures: list[Picture], paths: list[Path], labels: Array, probs: Array, class_names: Sequence[str]) -> None:
    """The wrong answers that the model was surest of."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    worst = wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")][:_SHOWN_MISTAKES]
    captions = [
        f"{class_names[int(probs[index].argmax())]} ({probs[index].max():.2f})\n"
        f"is {pictures[index].label} ({probs[index, labels[index]]:.2f})"
        for index in worst
    ]
    title = f"Surest mistakes: {len(worst)} of {len(wrong)}, among {len(labels)} test pictures"
    figures.plot_pictures(path, [thumbnail(paths[index]) for index in worst], captions, title)


def thumbnail(path: Path) -> Image.Image:
    """A small copy of a picture."""
    image = decode(path, at_least=_THUMBNAIL)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def run(params: Params, model: Path, test: Path, manifest: Path, results: Path, metrics_json: Path) -> None:
    """Ask the stored model about every test picture, score its answers, and write tables and pictures of them."""
    predictor = Predictor.load(model / "model.onnx", params.threads)
    names, pictures = predictor.class_names, read_manifest(manifest, "test")
    if unknown := sorted({picture.label for picture in pictures} - set(names)):
        raise PipelineError(f"{model}: does not know class {unknown[0]!r} of the test pictures; run `dvc repro`")
    paths = [test / picture.path for picture in pictures]
    labels = np.array([names.index(picture.label) for picture in pictures])
    probs = predict(predictor, paths, params.threads)
    scores = score(labels, probs, names, params)
    matrix = metrics.confusion_matrix(labels, probs.argmax(axis=1), len(names))
    with atomic_dir(results) as partial:
        write_predictions(partial / "predictions.csv", pictures, probs, names)
        write_confusion_matrix(partial / "confusion_matrix.csv", matrix, names)
        title = f"{model.name}: {scores['top1_accuracy']:.3f} of {len(labels)} test pictures right"
        figures.plot_confusion_matrix(partial / "confusion_matrix.png", matrix, names, title)
        plot_mistakes(partial / "mistakes.png", pictures, paths, labels, probs, names)
    write_json(metrics_json, {"model": model.name, "model_sha256": sha256_of_file(model / "model.onnx"), **scores})


def _with(name: str, value: float, interval: tuple[float | None, float | None]) -> dict[str, float | None]:
    low, high = interval
    return {name: _rounded(value), f"{name}_low": _rounded(low), f"{name}_high": _rounded(high)}


def _rounded(value: float | None) -> float | None:
    """Six places, or null for what is not defined."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


if __name__ == "__main__":
    stage.main("evaluate", Params, run)
