"""A large report: 1,000 classes and 50,000 test pictures, scored, written and read by the functions of the stages."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
from PIL import Image

from pipeline.core.files import table_rows, write_json, write_table
from pipeline.evaluation import galleries
from pipeline.evaluation.answers import prediction_row, read_answers, write_predictions, write_probs
from pipeline.evaluation.comparison import compare_all
from pipeline.evaluation.galleries import SIDE, montage, overlay
from pipeline.evaluation.scores import score
from pipeline.pictures.manifest import Picture
from pipeline.stages import evaluate, report
from tests.reports import HISTORY, make_audit, make_comparison, make_doubt, make_model, make_report

NAMES = [f"a_class_of_a_thousand_{number}" for number in range(1000)]
COUNT = 50_000
_PICTURES, _TEMPERATURE, _CONFIDENCE = 10, 1.5, 0.95


def make_answers(path, generator):
    """Labels, and calibrated probabilities in a file. About four of five are correct, and the mistakes are spread over the matrix."""
    labels = np.arange(COUNT) % len(NAMES)

    def batches():
        for start in range(0, COUNT, 1000):
            logits = generator.normal(0, 1, (1000, len(NAMES))).astype(np.float32)
            logits[np.arange(1000), labels[start : start + 1000]] += 4.2
            raised = np.exp(4.2 * logits)  # the posterior, if the logit of the true class is shifted by 4.2
            yield raised / raised.sum(axis=1, keepdims=True)

    return labels, write_probs(path, batches(), (COUNT, len(NAMES)))


def draw_pictures(folder, generator):
    """Pictures of noise, the largest JPEGs."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(_PICTURES)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return paths


def write_results(folder, model, pictures, labels, probs, paths):
    """Write what the stage `evaluate` writes, without a network."""
    (model / "model.onnx").write_bytes(b"model")
    predictor = SimpleNamespace(facts={"temperature": _TEMPERATURE, "size": {"parameters": 10_000_000, "gmacs": 0.5}, "learned": ""})
    answers, unscaled = read_answers(labels, probs), read_answers(labels, probs, _TEMPERATURE)
    groups = np.arange(COUNT)
    scores = {
        **evaluate.about(model, pictures, predictor),
        "confidence": _CONFIDENCE,
        **score(answers, unscaled, probs, groups, NAMES, _CONFIDENCE, 0),
    }
    write_json(folder / "scores.json", scores)
    write_predictions(folder / "predictions.csv", pictures, answers, NAMES)
    evaluate.write_results(folder, answers, unscaled, groups, scores, _CONFIDENCE)
    chosen = galleries.choose(answers, probs, 0)
    rows = {number: prediction_row(pictures[number], answers, number, NAMES) for number in galleries.shown(chosen)}
    repeated = {number: paths[number % _PICTURES] for number in rows}
    overlays = {number: overlay(Image.open(path), np.eye(7)) for number, path in repeated.items()}
    galleries.write_galleries(folder, chosen, rows, COUNT, repeated, overlays)


def write_large_results(root):
    """Write the results of a baseline and of a model with the same answers, since scoring so many is slow. Returns the test pictures."""
    generator = np.random.default_rng(0)
    models, results = root / "models", root / "results"
    paths = draw_pictures(root / "pictures", generator)
    (results / "baseline").mkdir(parents=True)
    for name in ("baseline", "finetuned"):
        write_json(models / name / "model.json", make_model().facts)
        write_table(models / name / "history.csv", list(HISTORY[0]), HISTORY)
    labels, probs = make_answers(results / "baseline" / "predictions.npy", generator)
    pictures = [
        Picture(f"{NAMES[label]}/{number}.png", paths[number % _PICTURES].name, "0" * 64, NAMES[label], "test", str(number), SIDE, SIDE)
        for number, label in enumerate(labels)
    ]
    write_results(results / "baseline", models / "baseline", pictures, labels, probs, paths)
    shutil.copytree(results / "baseline", results / "finetuned")
    return pictures


def read_large_report(root, pictures):
    """The report of these results."""
    models, results, names = root / "models", root / "results", ["baseline", "finetuned"]
    compared = compare_all({name: table_rows(results / name / "predictions.csv") for name in names}, _CONFIDENCE, 0)["differences"]
    facts = {name: make_comparison(**each) for name, each in compared.items()}
    return dataclasses.replace(
        make_report(),
        models=[report.read_model(name, models, results, facts.get(name)) for name in names],
        audit=make_audit(NAMES),
        doubts=[make_doubt(f"{number}.png", NAMES[number]) for number in range(12)],
        montage=montage(pictures, root / "pictures", 0),
    )
