"""One look at new pictures: read them, compare them with the reference, and write the page, the figures and what to label next."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of, sha256_of_file, write_json, write_table, writing
from pipeline.drift import choosing
from pipeline.drift.findings import Findings, compare
from pipeline.drift.incoming import Incoming, read_incoming
from pipeline.drift.page import Furthest, write_page
from pipeline.drift.reference import Reference, Sample, read_reference, reference_path
from pipeline.drift.spending import enter_look, plan_look
from pipeline.evaluation.intervals import Array
from pipeline.pictures.images import BrokenPicture, thumbnail_url
from pipeline.promotion.champions import find_served
from pipeline.serving.predictor import open_model

PAGE, JSON, LABEL_NEXT = "index.html", "drift.json", "label_next.csv"
_FURTHEST = 24  # pictures of the grid


@dataclass(frozen=True)
class Options:
    """What was asked for. `folder`: of pictures or a log; `here`: where relative names start; `group`: see `read_incoming`."""

    folder: str
    here: Path
    model: str | None
    group: str | None
    alpha: float
    looks: int
    label_next: int
    output: Path
    threads: int


@dataclass(frozen=True)
class Looked:
    """What a look brought. `facts`: as in drift.json; `faults`: a line per broken picture."""

    findings: Findings
    facts: Mapping[str, Any]
    faults: list[str]


def look(options: Options) -> Looked:
    """Compare, write index.html, drift.json and label_next.csv into the output folder, and enter the look. Raises PipelineError."""
    name, model = find_served(options.model, options.here)
    sha256 = sha256_of_file(model / "model.onnx")
    reference = read_reference(reference_path(name, model), sha256)
    predictor = open_model(model, options.threads)
    folder = options.here / options.folder
    incoming = read_incoming(options.folder, options.here, options.group, reference, predictor, options.threads)
    sample = incoming.sample
    reference_sha256, pictures_sha256 = _digest(reference.sample), _digest(sample)
    planned = plan_look(reference_sha256, pictures_sha256, options.alpha, options.looks)
    rate = (predictor.facts.get("unfamiliar") or {}).get("false_alarm_rate")
    findings = compare(reference, sample, planned.level, rate)
    far = choosing.distances(reference.sample, sample)
    to_label = _to_label(reference, incoming, far, options.label_next)
    about = {
        **{"model": name, "sha256": sha256, "source": options.folder, "alpha": options.alpha, "looks": options.looks},
        **{"number": planned.number, "is_known": planned.is_known, "faults": list(incoming.faults), "notes": list(incoming.notes)},
        "to_label": len(to_label),
    }
    facts = {**asdict(findings), **{key: value for key, value in about.items() if key != "faults"}, "broken": len(incoming.faults)}
    with writing(options.output):
        write_table(options.output / LABEL_NEXT, choosing.COLUMNS, to_label)
        write_page(options.output / PAGE, findings, (reference.sample, sample), _furthest(folder, reference, incoming, far), about)
        write_json(options.output / JSON, facts)
    enter_look(reference_sha256, pictures_sha256, planned, options.alpha, {"p": findings.p, "verdict": findings.verdict})
    return Looked(findings, facts, list(incoming.faults))


def _digest(sample: Sample) -> str:
    """The sha256 of all that is compared."""
    return sha256_of(b"".join(np.ascontiguousarray(values).tobytes() for values in vars(sample).values() if values is not None))


def _to_label(reference: Reference, incoming: Incoming, far: Array, count: int) -> list[dict[str, object]]:
    """The rows of label_next.csv. Pictures that a log did not keep cannot be labelled."""
    kept = np.array([row for row, path in enumerate(incoming.paths) if path is not None], int)
    if not len(kept) or not count:
        return []
    sample = incoming.sample.take(kept)
    score = choosing.scores(far[kept], sample.confidence, len(reference.class_names))
    return [
        {
            **{"path": incoming.paths[kept[row]], "label": "", "split": "train"},
            "predicted": reference.class_names[int(sample.predicted[row])],
            "probability": f"{sample.confidence[row]:.4f}",
            "distance": f"{far[kept[row]]:.3f}",
            "unfamiliarity": "" if sample.unfamiliarity is None else f"{sample.unfamiliarity[row]:.3f}",
            "reason": choosing.reason(float(far[kept[row]]), float(sample.confidence[row])),
        }
        for row in choosing.choose_next(sample, score, count)
    ]


def _furthest(folder: Path, reference: Reference, incoming: Incoming, far: Array) -> list[Furthest]:
    """The pictures of the grid. One that cannot be read any more is left out."""
    found: list[Furthest] = []
    sample = incoming.sample
    for row in np.argsort(-far, kind="stable"):
        path = incoming.paths[row]
        if path is None or len(found) == _FURTHEST:
            continue
        try:
            url = thumbnail_url(folder / path)
        except (BrokenPicture, OSError):
            continue
        predicted = reference.class_names[int(sample.predicted[row])]
        found.append(Furthest(path, url, predicted, float(sample.confidence[row]), float(far[row])))
    return found


def metrics_of(findings: Findings) -> dict[str, float]:
    """The figures that MLflow shows over the looks."""
    found: dict[str, float | None] = {
        "drift": float(findings.verdict == "drift"),
        "drift_pictures": float(findings.pictures["new"]),
        "drift_p": findings.p,
        "drift_estimated_accuracy": findings.accuracy["value"],
        **{f"drift_{row['name']}": row["difference"] for row in findings.traits},
    }
    parts = {"drift_auc": findings.domain, "drift_auc_given_class": findings.within, "drift_unfamiliar": findings.unfamiliar}
    found |= {name: part["value"] for name, part in parts.items() if part}
    return {name: value for name, value in found.items() if value is not None}


def default_group(group: str | None) -> str | None:
    """The group as typed, else the regular expression of `split.group` in params.yaml, if it is one. Raises PipelineError."""
    from pipeline.core.params import read_params

    if group is not None:
        return group
    named = (read_params().get("split") or {}).get("group")
    return named if isinstance(named, str) else None


def check(options: Options) -> Looked:
    """Take a look, and log its figures to MLflow as far as it can be reached; else a sentence is added to `notes`. Raises PipelineError."""
    from pipeline.tracking.watching import log_drift

    looked = look(options)
    try:
        log_drift(str(looked.facts["sha256"]), metrics_of(looked.findings))
    except PipelineError as error:
        return Looked(looked.findings, {**looked.facts, "notes": [*looked.facts["notes"], f"not in MLflow: {error}"]}, looked.faults)
    return looked
