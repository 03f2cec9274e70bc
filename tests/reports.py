"""A small report with values as the stages write them, and what is in a page."""

from html.parser import HTMLParser

import numpy as np

from pipeline.pictures.audit import KINDS
from pipeline.report.page import FIGURES, Model, Report

# A JPEG of one grey pixel.
PICTURE = (
    "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgyPC4z"
    "NDL/wAALCAABAAEBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
    "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW"
    "19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APn+v//Z"
)
HISTORY = [
    {"epoch": "0", "train_loss": "", "train_accuracy": "", "val_loss": "0.9", "val_accuracy": "0.5"},
    {"epoch": "1", "train_loss": "0.8", "train_accuracy": "0.6", "val_loss": "0.7", "val_accuracy": "0.75"},
]
RELIABILITY = {
    "from": "0.4",
    "to": "0.5",
    "pictures": "4",
    "probability": "0.45",
    "accuracy": "0.5",
    "accuracy_low": "0.15",
    "accuracy_high": "0.85",
}
COVERAGE = [
    {"coverage": share, "threshold": "0.5", "accuracy": "0.98", "accuracy_low": low, "accuracy_high": "0.99"}
    for share, low in (("0.01", "0.2"), ("1.0", "0.96"))
]
VERDICT = "finetuned is better by 7.1 points."


def make_figure(value=0.5, low=0.25, high=0.75):
    """A figure and its interval."""
    return {"value": value, "low": low, "high": high}


def make_audit(class_names=("ants", "bees"), *findings):
    """An audit, as its file holds it; each finding is (kind, image_ids, sentence)."""
    kinds = {
        kind: {"title": title, "fate": fate, "count": sum(finding[0] == kind for finding in findings)}
        for kind, (title, fate) in KINDS.items()
    }
    shown = [dict(zip(("kind", "image_ids", "sentence"), finding, strict=True)) for finding in findings]
    return {
        "pictures": 1234, "quarantined": 1, "median_width": 8, "median_height": 8.5,
        "classes": {name: {"train": 1006, "val": 3, "test": 1} for name in class_names},
        "kinds": kinds, "findings": shown, "thumbnails": {name: PICTURE for finding in findings for name in finding[1]},
    }  # fmt: skip


def make_doubt(image_id="a.png", label="ants"):
    """A row of out_of_fold.csv, with its thumbnail."""
    return {
        "image_id": image_id,
        "label": label,
        "predicted": "bees",
        "probability": "0.96",
        "label_probability": "0.0312",
        "thumbnail": PICTURE,
    }


def make_gallery(class_names, image_id="a.png", shown=1, with_maps=True):
    """Galleries with one mistake and one correct answer; the other two are empty."""
    wrong = {"image_id": image_id, "label": class_names[0], "predicted": class_names[1], "label_probability": 0.1, "probability": 0.9}
    correct = {**wrong, "predicted": class_names[0], "label_probability": 0.8, "probability": 0.8}
    galleries = {"mistakes": [wrong] * shown, "least_sure": [], "mislabelled": [], "unfamiliar": [], "random": [correct]}
    return {"pictures": {image_id: {"picture": PICTURE, "map": PICTURE if with_maps else None}}, "galleries": galleries}


def make_rows(answers):
    """Predictions for pictures of ants: + is a correct answer, - a wrong one."""
    return [
        {"image_id": f"{number}.png", "group": f"{number}.png", "label": "ants", "predicted": "ants" if sign == "+" else "bees"}
        for number, sign in enumerate(answers)
    ]


def make_model(name="baseline", class_names=("ants", "bees"), comparison=None, tells=True, **changes):
    """A model with 30 correct answers per class and one mistake, the next class. `tells`: unfamiliar pictures."""
    ends = ("log_loss_unscaled", "brier_unscaled", "ece_unscaled")
    figures = {key: make_figure() for key in (*FIGURES, *ends) if key != "top5_accuracy"}
    classes = {
        label: {**{key: make_figure(0.9 - 0.01 * number) for key in ("precision", "recall", "f1", "roc_auc", "pr_auc")}, "support": 3}
        for number, label in enumerate(class_names)
    }
    scores = {
        "model": name, "model_sha256": "ab" * 32, "test_pictures": 268, "test_groups": 268, "learned_test_pictures": 0,
        "confidence": 0.95, "temperature": 0.9,
        "size": {"megabytes": 13.5, "parameters": 3383818, "gmacs": 0.03}, "figures": figures, "classes": classes,
    }  # fmt: skip
    if tells:
        foreign = {"pictures": 60, "detected": make_figure(0.9), "auroc": make_figure(0.987)}
        rate = {"value": 0.041, "low": 0.02, "high": 0.07}
        scores["unfamiliar"] = {"false_alarm_rate": 0.05, "on_test": rate, "sets": {"digits": foreign}}
    facts = {
        "params": {"seed": 0},
        "preprocessing": {"image_size": 64},
        "hardware": {"device": "cpu"},
        "inputs_sha256": {"data": "cd" * 32},
    }
    size = len(class_names)
    counts = 30 * np.eye(size, dtype=int) + np.roll(np.eye(size, dtype=int), 1, axis=1)
    tables = {"history": HISTORY, "reliability": [RELIABILITY], "reliability_before": [RELIABILITY], "coverage": COVERAGE}
    given = {**tables, "confusion": (list(class_names), counts), "galleries": make_gallery(class_names), **changes}
    return Model(name=name, scores=scores, facts=facts, comparison=comparison, **given)


def make_comparison(**changes):
    """The comparison of the second model with the first."""
    facts = {
        "verdict": VERDICT,
        "mcnemar_p": 0.00123,
        "mcnemar_p_adjusted": 0.00123,
        "against": "baseline",
        "only_first_right": 2,
        "only_second_right": 21,
        "best_epoch": 3,
        "last_epoch": 4,
        "epochs": 4,
    }
    return {**facts, **changes}


def make_report(class_names=("ants", "bees"), model="finetuned", comparison=None, findings=(), doubts=(), **changes):
    """A baseline and another model."""
    facts = make_comparison(**(comparison or {}))
    given = {
        "models": [make_model("baseline", class_names), make_model(model, class_names, facts)],
        "source": {"source": "insects.zip", "licence": "CC BY 4.0"},
        "backbone": {"architecture": {"name": "resnet18", "library": "torchvision"}, "weights": {"name": "a package", "licence": "MIT"}},
        "embedding": {"preprocessing": {"image_size": 64}, "image_sizes": []},
        "audit": make_audit(class_names, *findings),
        "sizes": ((8, 8), (640, 480)),
        "doubts": doubts,
        "against_best": [],
        "montage": {name: [PICTURE] * 3 for name in class_names},
        "digests": {"data/manifest.csv": "ef" * 32},
        "versions": {"python": "3.11.7"},
    }
    return Report(**{**given, **changes})


def tags_of(html):
    """All start tags with their attributes."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found
