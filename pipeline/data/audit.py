"""What the pictures are like: which decode, which are left out and why, how many there are of what."""

import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from tqdm import tqdm

from pipeline.data.images import PICTURE_SUFFIXES, BrokenPicture, decode
from pipeline.data.layout import Entry, Layout
from pipeline.data.manifest import SPLITS, Picture
from pipeline.errors import PipelineError
from pipeline.files import sha256_of

_BATCH = 256


@dataclass(frozen=True)
class Inspected:
    """What a look at a picture's bytes told: its sum, and its size in pixels or what is wrong with it."""

    sha256: str
    width: int = 0
    height: int = 0
    fault: str | None = None


def inspect(content: bytes) -> Inspected:
    """Decode a picture to its last byte."""
    try:
        image = decode(content)
    except BrokenPicture as error:
        return Inspected(sha256_of(content), fault=str(error))
    return Inspected(sha256_of(content), image.width, image.height)


def inspect_all(archive: zipfile.ZipFile, names: list[str]) -> dict[str, Inspected]:
    """Inspect members of the archive, some at once on all cores."""
    inspected: dict[str, Inspected] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(names), desc="decode", disable=None) as bar:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            inspected.update(zip(batch, pool.map(inspect, [archive.read(name) for name in batch]), strict=True))
            bar.update(len(batch))
    return inspected


def check_classes(entries: list[Entry], inspected: Mapping[str, Inspected]) -> None:
    """Raise PipelineError where there is too little to learn from. A folder without one picture's name is no class."""
    good = [entry for entry in entries if not inspected[entry.name].fault]
    broken = [entry for entry in entries if inspected[entry.name].fault and entry.name.lower().endswith(PICTURE_SUFFIXES)]
    counts = Counter({entry.label: 0 for entry in (*good, *broken)})
    counts.update(entry.label for entry in good)
    if not good:
        raise PipelineError(f"data/raw.zip: not one picture decodes{_first_of(broken, inspected)}; look at the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw.zip: holds one class, {next(iter(counts))!r}; a classifier needs two: one folder each")
    for label, count in sorted(counts.items()):
        if count < 3:
            raise PipelineError(
                f"data/raw.zip: class {label!r} has {count} picture{'s' * (count != 1)} that decode{'s' * (count == 1)}, "
                f"fewer than 3; add pictures or take the class out{_first_of([e for e in broken if e.label == label], inspected)}"
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


def quarantine_rows(layout: Layout, inspected: dict[str, Inspected]) -> Iterator[dict[str, str]]:
    """What was left out, and why."""
    for name in layout.outside:
        yield {"image_id": name, "reason": "not in the folder of a class"}
    for name, facts in inspected.items():
        if facts.fault:
            yield {"image_id": name, "reason": facts.fault}


def audit(pictures: list[Picture], left_out: int) -> dict[str, object]:
    """The data at a glance: counts a class and split, sizes, exact duplicates (bytes, and those in more than one split)."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        splits_of[picture.sha256].add(picture.split)
    classes = {
        label: {split: sum((picture.label, picture.split) == (label, split) for picture in pictures) for split in SPLITS}
        for label in sorted({picture.label for picture in pictures})
    }
    return {
        "pictures": len(pictures),
        "quarantined": left_out,
        "exact_duplicates": len(pictures) - len(splits_of),
        "exact_duplicates_across_splits": sum(len(splits) > 1 for splits in splits_of.values()),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "classes": classes,
    }
