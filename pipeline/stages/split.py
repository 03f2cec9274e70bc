"""Split the pictures into train, val and test: ImageFolder trees of all that decodes, a list of all that does not."""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Annotated

from pydantic import Field
from tqdm import tqdm

from pipeline import stage
from pipeline.data.images import IMAGEFOLDER_SUFFIXES, BrokenPicture, decode, is_plain
from pipeline.data.layout import Entry, Layout, find_layout, split_of
from pipeline.data.manifest import SPLITS, Picture, write_manifest
from pipeline.data.partition import deal
from pipeline.errors import PipelineError
from pipeline.files import atomic_dir, sha256_of, write_json, write_table
from pipeline.params import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]

_BATCH = 256


class Params(Section):  # section `split` of params.yaml
    seed: int
    val: Fraction | str  # a share of the training pictures, or the name of a folder in the archive
    test: Fraction | str  # the same; an archive's own test folder comes first


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


def assign(entries: list[Entry], layout: Layout, params: Params) -> dict[str, str]:
    """Decide `image_id: split`: by the archive's own folders where it has them, by the dealt fractions elsewhere."""
    test_folder, val_folder = choose_folders(layout, params)
    given = {folder: name for folder, name in ((test_folder, "test"), (val_folder, "val")) if folder}
    assigned = {entry.name: given[entry.folder] for entry in entries if entry.folder in given}
    rest = {entry.name: entry.label for entry in entries if entry.folder not in given}
    shares = {name: value for name, value in (("val", params.val), ("test", params.test)) if name not in given.values()}
    train_share = 1 - sum(float(value) for value in shares.values())
    if train_share <= 0:
        raise PipelineError(f"params.yaml: split: val {params.val} and test {params.test} leave nothing to train on")
    return assigned | deal(rest, {"train": train_share, **{name: float(value) for name, value in shares.items()}}, params.seed)


def choose_folders(layout: Layout, params: Params) -> tuple[str | None, str | None]:
    """The archive's folders that are the test split and the val split, where it has them.

    With a train and a val folder alone, val is what its publisher held out: it is the test split.
    """
    for name in ("val", "test"):
        folder = getattr(params, name)
        if isinstance(folder, str) and folder not in layout.folders:
            there = ", ".join(layout.folders) or "none"
            raise PipelineError(f"params.yaml: split.{name}: {folder!r} is no split folder of the pictures; there: {there}")
    by_split = {split_of(folder): folder for folder in layout.folders}
    test_folder = params.test if isinstance(params.test, str) else by_split.get("test", by_split.get("val"))
    val_folder = params.val if isinstance(params.val, str) else by_split.get("val")
    if val_folder == test_folder:
        val_folder = None
    if layout.folders and not set(layout.folders) - {test_folder, val_folder}:
        raise PipelineError(f"data/raw.zip: holds {', '.join(layout.folders)} and no training folder; add train/")
    return test_folder, val_folder


def check_classes(entries: list[Entry]) -> None:
    """Raise PipelineError where there is too little to learn from."""
    counts = Counter(entry.label for entry in entries)
    if not counts:
        raise PipelineError("data/raw.zip: not one picture decodes; data/quarantine.csv would name all: look at the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw.zip: holds one class, {next(iter(counts))!r}; a classifier needs two: one folder each")
    for label, count in sorted(counts.items()):
        if count < 3:
            raise PipelineError(
                f"data/raw.zip: class {label!r} has {count} picture{'s' * (count != 1)} that decode{'s' * (count == 1)}, "
                "fewer than 3; add pictures or take the class out"
            )


def check_every_class_everywhere(pictures: list[Picture]) -> None:
    """Raise PipelineError where a class is absent from a split."""
    present = {(picture.label, picture.split) for picture in pictures}
    for label in sorted({label for label, _ in present}):
        for split in SPLITS:
            if (label, split) not in present:
                raise PipelineError(
                    f"data/raw.zip: class {label!r} has no picture in {split}; add some, or let params.yaml deal {split} out"
                )


def place(entries: list[Entry], inspected: dict[str, Inspected], splits: dict[str, str], plain: set[str]) -> list[Picture]:
    """The rows of the manifest. Paths keep their folders; equal ones are told apart, what ImageFolder drops is a .png."""
    taken: set[tuple[str, str]] = set()
    pictures = []
    for entry in entries:
        split, facts = splits[entry.name], inspected[entry.name]
        path = wanted = f"{entry.label}/{entry.inner_path}" + ("" if entry.name in plain else ".png")
        number = 1
        while (split, path.lower()) in taken:
            number += 1
            path = str(PurePosixPath(wanted).with_stem(f"{PurePosixPath(wanted).stem}~{number}"))
        taken.add((split, path.lower()))
        pictures.append(Picture(entry.name, path, facts.sha256, entry.label, split, facts.width, facts.height))
    return pictures


def plain_names(archive: zipfile.ZipFile, entries: list[Entry]) -> set[str]:
    """The pictures whose files any reader of ImageFolder trees understands as they are."""
    return {
        entry.name for entry in entries
        if entry.name.lower().endswith(IMAGEFOLDER_SUFFIXES) and is_plain(archive.read(entry.name))
    }  # fmt: skip


def write_trees(archive: zipfile.ZipFile, pictures: list[Picture], plain: set[str], splits: Path) -> None:
    """Write `<split>/<class>/…`: a picture's own bytes, or its decoded pixels as PNG."""
    with atomic_dir(splits) as partial:
        for picture in tqdm(pictures, "write", disable=None):
            target = partial / picture.split / picture.path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.read(picture.image_id)
            target.write_bytes(content if picture.image_id in plain else as_png(content))


def as_png(content: bytes) -> bytes:
    """A picture's decoded pixels as a PNG file."""
    with io.BytesIO() as file:
        decode(content).save(file, "PNG")
        return file.getvalue()


def quarantine_rows(layout: Layout, inspected: dict[str, Inspected]) -> Iterator[dict[str, str]]:
    """What was left out, and why."""
    for name in layout.outside:
        yield {"image_id": name, "reason": "not in the folder of a class"}
    for name, facts in inspected.items():
        if facts.fault:
            yield {"image_id": name, "reason": facts.fault}


def audit(pictures: list[Picture], left_out: int) -> dict[str, object]:
    """The data at a glance: counts a class and split, sizes, exact duplicates."""
    classes = {
        label: {split: sum((picture.label, picture.split) == (label, split) for picture in pictures) for split in SPLITS}
        for label in sorted({picture.label for picture in pictures})
    }
    return {
        "pictures": len(pictures),
        "quarantined": left_out,
        "exact_duplicates": len(pictures) - len({picture.sha256 for picture in pictures}),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "classes": classes,
    }


def run(params: Params, raw: Path, splits: Path, manifest: Path, quarantine: Path, audit_json: Path) -> None:
    """Inspect every picture, deal them out, write the trees and the tables."""
    with zipfile.ZipFile(raw) as archive:
        layout = find_layout(archive.namelist(), "data/raw.zip")
        inspected = inspect_all(archive, [entry.name for entry in layout.entries])
        entries = sorted((entry for entry in layout.entries if not inspected[entry.name].fault), key=lambda entry: entry.name)
        check_classes(entries)
        plain = plain_names(archive, entries)
        pictures = place(entries, inspected, assign(entries, layout, params), plain)
        check_every_class_everywhere(pictures)
        write_trees(archive, pictures, plain, splits)
    left_out = sorted(quarantine_rows(layout, inspected), key=lambda row: row["image_id"])
    write_manifest(manifest, pictures)
    write_table(quarantine, ["image_id", "reason"], left_out)
    write_json(audit_json, audit(pictures, len(left_out)))


if __name__ == "__main__":
    stage.main("split", Params, run)
