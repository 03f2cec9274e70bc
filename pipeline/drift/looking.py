"""One look at new pictures: read them, compare them with the reference, and write the page, the figures and what to label next.

The false-alarm rate is spent over daily looks at one reference. A period has so many looks, 30 as a rule, and each of them the same share
of the rate. So a period in which nothing changed raises a false alarm with at most that probability. Then the next period begins. Pictures
that were looked at before spend nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir, read_json, sha256_of, sha256_of_file, write_json, writing
from pipeline.drift import choosing
from pipeline.drift.findings import LEAST_LEVEL, Findings, compare
from pipeline.drift.incoming import Incoming, read_incoming
from pipeline.drift.page import Furthest, write_page
from pipeline.drift.reference import Reference, Sample, read_reference, reference_path
from pipeline.evaluation.intervals import Array
from pipeline.pictures.images import BrokenPicture, thumbnail_url
from pipeline.promotion.champions import find_served
from pipeline.serving.predictor import open_model

PAGE, JSON, LABEL_NEXT = "index.html", "drift.json", "label_next.csv"
_FURTHEST = 24  # pictures of the grid
_MOST_LOOKS = 1000  # that are kept of one reference


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


def take_look(options: Options) -> Looked:
    """Compare, write index.html, drift.json and label_next.csv into the output folder, and enter the look. Raises PipelineError."""
    if (level := options.alpha / options.looks) < LEAST_LEVEL:
        most = int(options.alpha / LEAST_LEVEL)
        raise PipelineError(
            f"--looks {options.looks}: leave each a level of {level:.2g}, below {LEAST_LEVEL:g}; "
            + (f"take at most {most}" if most else "raise --alpha")
        )
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
    to_label, notes = choosing.label_rows(reference, incoming, far, options.label_next), list(incoming.notes)
    if keeps_labels := choosing.is_filled(options.output / LABEL_NEXT):
        notes.append(f"{LABEL_NEXT} has labels that somebody filled in, and stays as it is; move it away for a new one")
    about = {
        **{"model": name, "sha256": sha256, "source": options.folder, "alpha": options.alpha, "looks": options.looks},
        **{"number": planned.number, "is_known": planned.is_known, "faults": list(incoming.faults), "notes": notes},
        "to_label": 0 if keeps_labels else len(to_label),
    }
    facts = {**asdict(findings), **{key: value for key, value in about.items() if key != "faults"}, "broken": len(incoming.faults)}
    with writing(options.output):
        if not keeps_labels:
            choosing.write_rows(options.output / LABEL_NEXT, to_label)
        write_page(options.output / PAGE, findings, (reference.sample, sample), _furthest(folder, reference, incoming, far), about)
        write_json(options.output / JSON, facts)
    enter_look(reference_sha256, pictures_sha256, planned, options.alpha, {"p": findings.p, "verdict": findings.verdict})
    return Looked(findings, facts, list(incoming.faults))


def _digest(sample: Sample) -> str:
    """The sha256 of all that is compared."""
    return sha256_of(b"".join(np.ascontiguousarray(values).tobytes() for values in vars(sample).values() if values is not None))


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


def check(options: Options) -> Looked:
    """Take a look, and log its figures to MLflow as far as it can be reached; else a sentence is added to `notes`. Raises PipelineError."""
    from pipeline.tracking.watching import log_drift

    looked = take_look(options)
    try:
        log_drift(str(looked.facts["sha256"]), metrics_of(looked.findings))
    except PipelineError as error:
        return Looked(looked.findings, {**looked.facts, "notes": [*looked.facts["notes"], f"not in MLflow: {error}"]}, looked.faults)
    return looked


@dataclass(frozen=True)
class Allowance:
    """What a look may spend. `level`: of its test; `number`: in its period; `spent`: of the rate; `is_known`: it was taken before."""

    level: float
    number: int
    spent: float
    is_known: bool


def looks_path() -> Path:
    """The file of all looks: `.cache/drift/looks.json`."""
    return cache_dir("drift") / "looks.json"


def plan_look(reference: str, pictures: str, alpha: float, looks: int) -> Allowance:
    """The next look at a reference. `reference`, `pictures`: digests of what is compared; `alpha`: the rate of a period. Writes nothing.

    Raises PipelineError if the file of looks is damaged.
    """
    level, period = alpha / looks, list[dict[str, Any]]()
    for look in _read().get(reference, []):
        spent = sum(each["level"] for each in period)
        if look["pictures"] == pictures and look["level"] == level:
            return Allowance(level, len(period) + 1, spent + level, is_known=True)
        period = [look] if _is_over(spent, look["level"], look["alpha"]) else [*period, look]
    spent = sum(each["level"] for each in period)
    if _is_over(spent, level, alpha):
        return Allowance(level, 1, level, is_known=False)
    return Allowance(level, len(period) + 1, spent + level, is_known=False)


def enter_look(reference: str, pictures: str, look: Allowance, alpha: float, facts: dict[str, Any]) -> None:
    """Add a look to the file, unless it is known. `facts`: what else is kept of it."""
    from filelock import FileLock

    if look.is_known:
        return
    path = looks_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        kept = _read()
        kept[reference] = [*kept.get(reference, []), {"pictures": pictures, "level": look.level, "alpha": alpha, **facts}][-_MOST_LOOKS:]
        write_json(path, kept)


def _is_over(spent: float, level: float, alpha: float) -> bool:
    """Whether one more look of that level exceeds the rate, so that it begins a new period."""
    return spent + level > alpha * (1 + 1e-9)


def _read() -> dict[str, list[dict[str, Any]]]:
    path = looks_path()
    if not path.is_file():
        return {}
    try:
        kept = read_json(path)
        assert all(isinstance(each["level"] + each["alpha"], float) and each["pictures"] for looks in kept.values() for each in looks)  # noqa: S101
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError):
        raise PipelineError(f"{path}: is damaged; remove it, and the looks begin anew") from None
    return dict(kept)
