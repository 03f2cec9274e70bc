"""May a form of a model be used in its place? Both answer the test pictures, and are measured in turn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_value, sha256_of_file, table_rows
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.intervals import Array, Bootstrap, paired_difference
from pipeline.networks.forms import FORMS, Form, maker
from pipeline.pictures.images import BrokenPicture, read_square, square_batches
from pipeline.pictures.manifest import Picture, read_manifest, recorded, sha256_of_pictures
from pipeline.promotion.champions import MANIFEST, RESULTS
from pipeline.promotion.judging import measure_latency
from pipeline.serving.predictor import Predictor

if TYPE_CHECKING:
    from pipeline.core.files import Slice

_TREES = Path("data/splits")
_CONFIDENCE, _SEED = 0.95, 0  # of the interval, and of its bootstrap
_BATCH, _AT_ONCE = 32, 8
_CALIBRATION = 128  # pictures from which int8 takes the ranges of activations
_SIDES = ("original", "form")


def calibration_pixels(predictor: Predictor) -> Array:
    """Prepared train pictures that cover the classes, uint8 (N, S, S, 3). Raises PipelineError if there are none, or one is broken."""
    from pipeline.networks.onnx_file import spread

    train = sorted(_manifest("train"), key=lambda picture: picture.path)
    if not train:
        raise PipelineError(f"{MANIFEST}: has no train pictures, by which int8 is calibrated; run `dvc repro`")
    chosen = [train[number].source(_TREES / "train") for number in spread(len(train), _CALIBRATION)]
    try:
        return np.stack([read_square(source, predictor.preprocessing) for source in chosen])
    except (BrokenPicture, FileNotFoundError) as error:
        raise _unreadable("train", error) from None


def score_form(kind: str, form: Form, folder: Path, model: Path, predictor: Predictor) -> dict[str, Any]:
    """Compare a form, which is in `folder`, with the model that it comes from, on the test pictures that the model never learned from.

    Returns the content of form.json but for the decision: each figure with the keys `original` and `form`, the difference of the accuracies
    with its paired interval, the answers that changed, the largest difference of a probability. Raises PipelineError.
    """
    pictures = _judged(model, predictor)
    sources = [picture.source(_TREES / "test") for picture in pictures]
    path = folder / FORMS[kind][0]
    sides, change = _answer(form, model, predictor, pictures, sources)
    correct, losses = sides["correct"], sides["log_loss"]
    bootstrap = Bootstrap(np.unique([picture.group for picture in pictures], return_inverse=True)[1], _SEED)
    difference, (low, high) = paired_difference(correct[0], correct[1], bootstrap, _CONFIDENCE)
    latency = {
        name: _pair(time / count for time in measure_latency([predictor, form], sources[0], count))
        for name, count in (("milliseconds", 1), ("milliseconds_at_8", _AT_ONCE))
    }
    return {
        "form": kind,
        "file": path.name,
        "sha256": sha256_of_file(path),
        "exported_from": {"model": predictor.facts.get("model", model.name), "sha256": sha256_of_file(model / "model.onnx")},
        "maker": maker(kind),
        "outputs": list(form.outputs),
        "missing_outputs": [name for name in predictor.outputs if name not in form.outputs],
        "test_pictures": len(pictures),
        "test_groups": bootstrap.drawn,
        "test_sha256": sha256_of_pictures(pictures),
        "top1_accuracy": {
            **_pair(side.mean() for side in correct),
            **{key: round(float(value), 6) for key, value in {"difference": difference, "low": low, "high": high}.items()},
            "confidence": _CONFIDENCE,
        },
        "log_loss": _pair(side.mean() for side in losses),
        **({"unfamiliar": _pair(side.mean() for side in sides["unfamiliar"])} if "unfamiliar" in sides else {}),
        **change,
        **latency,
        "threads": predictor.threads,
        "megabytes": _pair(_megabytes(place) for place in (model, folder)),
    }


def _pair(values: Any) -> dict[str, float]:
    """A figure of both sides, to six decimal places."""
    return {side: round(float(value), 6) for side, value in zip(_SIDES, values, strict=True)}


def _megabytes(folder: Path) -> float:
    """The size of the files that answer."""
    names = ("model.onnx", "model.onnx.data", *(name for file, _ in FORMS.values() for name in (file, f"{Path(file).stem}.bin")))
    return sum((folder / name).stat().st_size for name in {*names} if (folder / name).is_file()) / 1e6


def _answer(
    form: Form, model: Path, predictor: Predictor, pictures: Sequence[Picture], sources: "Sequence[Path | Slice]"
) -> tuple[dict[str, list[Array]], dict[str, float | int]]:
    """Whether each answer is correct, its log loss, and whether the picture is unfamiliar, if both say so: [original, form], (pictures,).

    And how many answers changed, and the largest difference of a probability. Raises PipelineError if answers are not numbers.
    """
    names = {name: number for number, name in enumerate(predictor.class_names)}
    labels = np.array([names[picture.label] for picture in pictures])
    stored, start, largest, changed = _stored_probs(model, pictures), 0, 0.0, 0
    sides: dict[str, list[list[Array]]] = {"correct": [[], []], "log_loss": [[], []], "unfamiliar": [[], []]}
    try:
        for pixels in square_batches(sources, predictor.preprocessing, _BATCH, predictor.threads, "compare"):
            rows = slice(start, start := start + len(pixels))
            theirs, ours = _run(predictor, pixels, None if stored is None else stored[rows], form), form.run(pixels)
            if not np.isfinite(ours["probs"]).all():
                raise PipelineError(f"{model}: some answers of the form are not numbers; choose another form")
            largest = max(largest, float(np.abs(ours["probs"] - theirs["probs"]).max()))
            answers = [read_answers(labels[rows], outputs["probs"]) for outputs in (theirs, ours)]
            changed += int((answers[0].predicted != answers[1].predicted).sum())
            for side, (each, outputs) in enumerate(zip(answers, (theirs, ours), strict=True)):
                sides["correct"][side].append(each.correct)
                sides["log_loss"][side].append(each.log_losses)
                if "unfamiliarity" in theirs:
                    sides["unfamiliar"][side].append(outputs["unfamiliarity"] > 1)
    except (BrokenPicture, FileNotFoundError) as error:
        raise _unreadable("test", error) from None
    joined = {name: [np.concatenate(parts) for parts in both] for name, both in sides.items() if both[0]}
    return joined, {"changed_answers": changed, "largest_probability_difference": round(largest, 6)}


def _run(predictor: Predictor, pixels: Array, stored: Array | None, form: Form) -> Mapping[str, Array]:
    """The probabilities of the original, those that are stored if they are, and its unfamiliarity, if the form has it too."""
    wanted = [name for name in ("unfamiliarity",) if name in form.outputs]
    if stored is not None and not wanted:
        return {"probs": stored}
    outputs = predictor.run(pixels, *wanted)
    found = {"probs": outputs.probs if stored is None else stored}
    return found if outputs.unfamiliarity is None else {**found, "unfamiliarity": outputs.unfamiliarity}


def _manifest(split: str) -> list[Picture]:
    if not MANIFEST.is_file():
        raise PipelineError(f"{MANIFEST}: does not exist; run `dvc repro`")
    return read_manifest(MANIFEST).split(split)


def _judged(model: Path, predictor: Predictor) -> list[Picture]:
    """The test pictures that the model never learned from. Raises PipelineError if there are none, or if it does not know their classes."""
    pictures = _manifest("test")
    learned = {picture.image_id for picture in recorded(pictures, predictor.facts["learned"])}
    judged = [picture for picture in pictures if picture.image_id not in learned]
    if not judged:
        raise PipelineError(f"{MANIFEST}: has no test pictures that {model} never learned from; add some")
    if unknown := sorted({picture.label for picture in judged} - set(predictor.class_names)):
        raise PipelineError(f"{model}: does not know class {unknown[0]!r} of the test pictures; run `dvc repro`")
    return judged


def _stored_probs(model: Path, pictures: Sequence[Picture]) -> Array | None:
    """The probabilities that `evaluate` stored, float32 (pictures, classes); None if they are not of this model and these pictures."""
    wanted = sha256_of_file(model / "model.onnx"), sha256_of_pictures(_manifest("test"))
    for results in (RESULTS / model.name, model / RESULTS):
        scores = results / "scores.json"
        if (read_value(scores, "model_sha256"), read_value(scores, "test_sha256")) == wanted:
            numbers = {row["image_id"]: number for number, row in enumerate(table_rows(results / "predictions.csv"))}
            if all(picture.image_id in numbers for picture in pictures):
                probs: Array = np.load(results / "predictions.npy", mmap_mode="r", allow_pickle=False)
                return probs[[numbers[picture.image_id] for picture in pictures]]
    return None


def _unreadable(split: str, error: Exception) -> PipelineError:
    return PipelineError(f"{_TREES / split}: a picture cannot be read ({error}); run `dvc repro split`")
