"""The data at a glance: whether there is enough to learn from, how many there are of what, what was found."""

import base64
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median

from PIL import Image

from pipeline.data.findings import KINDS, Finding
from pipeline.data.images import PICTURE_SUFFIXES, decode
from pipeline.data.inspection import Inspected
from pipeline.data.layout import Entry
from pipeline.data.manifest import SPLITS, Picture
from pipeline.errors import PipelineError

SHOWN_FINDINGS = 8  # of each kind
_SHOWN_PICTURES = 4  # of each finding
_THUMBNAIL = 96


def check_classes(entries: list[Entry], inspected: Mapping[str, Inspected], left_out: set[str]) -> None:
    """Raise PipelineError where there is too little to learn from. A folder without one picture's name is no class."""
    good = [entry for entry in entries if entry.name not in left_out]
    broken = [entry for entry in entries if inspected[entry.name].fault and entry.name.lower().endswith(PICTURE_SUFFIXES)]
    others = [entry for entry in entries if not inspected[entry.name].fault and entry.name in left_out]
    counts = Counter({entry.label: 0 for entry in (*good, *broken, *others)})
    counts.update(entry.label for entry in good)
    if not good and not others:
        raise PipelineError(f"data/raw.zip: not one picture decodes{_first_of(broken, inspected)}; look at the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw.zip: holds one class, {next(iter(counts))!r}; a classifier needs two: one folder each")
    for label, count in sorted(counts.items()):
        if count < 3:
            apart = f" and may stay ({sum(entry.label == label for entry in others)} may not, by their labels or splits)"
            raise PipelineError(
                f"data/raw.zip: class {label!r} has {count} picture{'s' * (count != 1)} that decode{'s' * (count == 1)}"
                f"{apart * any(entry.label == label for entry in others)}, fewer than 3; add pictures or take the class out"
                f"{_first_of([e for e in broken if e.label == label], inspected)}"
            )


def _first_of(broken: list[Entry], inspected: Mapping[str, Inspected]) -> str:
    if not broken:
        return ""
    word = "does" if len(broken) == 1 else "do"
    return f" ({len(broken)} {word} not decode, first {broken[0].name!r}: {inspected[broken[0].name].fault})"


def check_every_class_everywhere(pictures: list[Picture]) -> None:
    """Raise PipelineError where a class is absent from a split."""
    present = {(picture.label, picture.split) for picture in pictures}
    for label in sorted({label for label, _ in present}):
        for split in SPLITS:
            if (label, split) not in present:
                raise PipelineError(f"data/raw.zip: class {label!r} has no picture in {split}; add some, or take the class out")


def quarantine_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """What was left out and why, by image_id."""
    rows = [{"image_id": name, "reason": finding.detail} for finding in findings for name in finding.left_out]
    return sorted(rows, key=lambda row: row["image_id"])


def audit(pictures: list[Picture], findings: Sequence[Finding], thumbnails: Mapping[str, str]) -> dict[str, object]:
    """What `data/audit.json` holds: counts a class and split, sizes, how often each kind was found, and every finding."""
    counts = Counter((picture.label, picture.split) for picture in pictures)
    found = Counter(finding.kind for finding in findings)
    return {
        "pictures": len(pictures),
        "quarantined": sum(len(finding.left_out) for finding in findings),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "classes": {label: {split: counts[label, split] for split in SPLITS} for label in sorted({label for label, _ in counts})},
        "found": {kind: found[kind] for kind in KINDS},
        "findings": [{**asdict(finding), "sentence": finding.sentence} for finding in findings],
        "thumbnails": dict(thumbnails),
    }


def draw_thumbnails(archive: zipfile.ZipFile, findings: Sequence[Finding]) -> dict[str, str]:
    """`image_id: data URL` of small JPEGs, of the pictures in the first findings of each kind that can be drawn."""
    return {name: thumbnail_url(archive.read(name)) for name in sorted(set(_shown(findings)))}


def _shown(findings: Sequence[Finding]) -> Iterator[str]:
    for kind in KINDS.keys() - {"misplaced", "broken"}:
        for finding in [finding for finding in findings if finding.kind == kind][:SHOWN_FINDINGS]:
            yield from finding.image_ids[:_SHOWN_PICTURES]


def thumbnail_url(content: bytes) -> str:
    """A picture at 96 pixels at the most, as the data URL of a JPEG."""
    image = decode(content, at_least=_THUMBNAIL)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
