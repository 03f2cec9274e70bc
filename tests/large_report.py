"""A large report: 100 classes and 20,000 test pictures, scored, written and read by the functions of the stages."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
from PIL import Image

from pipeline.core.files import read_table, write_json, write_table
from pipeline.evaluation import galleries
from pipeline.evaluation.galleries import SIDE, montage, overlay
from pipeline.evaluation.scores import score, write_predictions
from pipeline.pictures.manifest import Picture
from pipeline.stages import evaluate, report
from tests.reports import HISTORY, make_audit, make_doubt, make_model, make_report

NAMES = [f"a_class_of_a_hundred_{number}" for number in range(100)]
PARAMS = {"seed": 0, "confidence": 0.95}
_COUNT, _PICTURES, _TEMPERATURE = 20_000, 10, 1.5


def make_answers(generator):
    """Labels and calibrated probabilities. About four of five are correct, and the mistakes are spread over the matrix."""
    labels = np.arange(_COUNT) % len(NAMES)
    logits = generator.normal(0, 1, (_COUNT, len(NAMES))).astype(np.float32)
    logits[np.arange(_COUNT), labels] += 3.5
    raised = np.exp(3.5 * logits)  # the posterior, if the logit of the true class is shifted by 3.5
    return labels, raised / raised.sum(axis=1, keepdims=True)


def draw_pictures(folder, generator):
    """Pictures of noise, the largest JPEGs."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(_PICTURES)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return paths


def write_results(folder, model, pictures, labels, probs, paths):
    """Write what the stage `evaluate` writes, without a network."""
    folder.mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"model")
    params = evaluate.Params(**PARAMS, threads=1)
    predictor = SimpleNamespace(facts={"temperature": _TEMPERATURE, "size": {"parameters": 10_000_000, "gmacs": 0.5}, "learned": ""})
    scores = {
        **evaluate.about(model, pictures, predictor),
        "confidence": params.confidence,
        **score(labels, probs, np.arange(len(labels)), NAMES, _TEMPERATURE, params.confidence, params.seed),
    }
    chosen = galleries.choose(labels, probs, params.seed)
    repeated = [paths[number % len(paths)] for number in range(len(labels))]
    overlays = {int(number): overlay(Image.open(repeated[number]), np.eye(7)) for each in chosen.values() for number in each}
    write_json(folder / "scores.json", scores)
    write_predictions(folder / "predictions.csv", pictures, probs, NAMES)
    evaluate.write_results(folder, model.name, labels, probs, np.arange(len(labels)), scores, params)
    galleries.write_galleries(folder, chosen, read_table(folder / "predictions.csv"), repeated, overlays)


def make_large_report(root):
    """The report of a baseline and of a model with the same answers, since scoring 20,000 answers is slow."""
    generator = np.random.default_rng(0)
    models, results, names = root / "models", root / "results", ["baseline", "finetuned"]
    paths = draw_pictures(root / "pictures", generator)
    labels, probs = make_answers(generator)
    pictures = [
        Picture(f"{NAMES[label]}/{number}.png", paths[number % _PICTURES].name, "0" * 64, NAMES[label], "test", "", SIDE, SIDE)
        for number, label in enumerate(labels)
    ]
    for name in names:
        write_json(models / name / "model.json", make_model().facts)
        write_table(models / name / "history.csv", list(HISTORY[0]), HISTORY)
    write_results(results / names[0], models / names[0], pictures, labels, probs, paths)
    shutil.copytree(results / names[0], results / names[1])
    comparison = report.compare_all(names, models, results, report.Params(**PARAMS))
    read = [report.read_model(name, models, results, comparison.get(name)) for name in names]
    return dataclasses.replace(
        make_report(),
        models=read,
        audit=make_audit(NAMES),
        doubts=[make_doubt(f"{number}.png", NAMES[number]) for number in range(min(12, len(NAMES)))],
        montage=montage(pictures, root / "pictures", 0),
    )
