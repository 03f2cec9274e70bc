"""Split the pictures into train, val and test: ImageFolder trees of all that decodes, a list of all that does not."""

import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, NonNegativeInt
from tqdm import tqdm

from pipeline import stage
from pipeline.data.audit import Inspected, audit, check_classes, check_every_class_everywhere, inspect_all, quarantine_rows
from pipeline.data.images import IMAGEFOLDER_SUFFIXES, decode, is_plain
from pipeline.data.layout import Entry, Layout, choose_folders, find_layout
from pipeline.data.manifest import Picture, write_manifest
from pipeline.data.partition import deal
from pipeline.errors import PipelineError
from pipeline.files import atomic_dir, write_json, write_table
from pipeline.params import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Params(Section):  # section `split` of params.yaml
    seed: NonNegativeInt
    val: Fraction | str  # a share of the pictures that the archive deals to no split, or the name of a folder in the archive
    test: Fraction | str  # the same; an archive's own test folder comes first


def assign(entries: list[Entry], layout: Layout, params: Params) -> dict[str, str]:
    """Decide `image_id: split`: by the archive's own folders where it has them, by the dealt fractions elsewhere."""
    test_folder, val_folder = choose_folders(layout, params.val, params.test)
    given = {folder: name for folder, name in ((test_folder, "test"), (val_folder, "val")) if folder}
    assigned = {entry.name: given[entry.folder] for entry in entries if entry.folder in given}
    rest = {entry.name: entry.label for entry in entries if entry.folder not in given}
    shares = {name: value for name, value in (("val", params.val), ("test", params.test)) if name not in given.values()}
    train_share = 1 - sum(float(value) for value in shares.values())
    if train_share <= 0:
        raise PipelineError(f"params.yaml: split: val {params.val} and test {params.test} leave nothing to train on")
    return assigned | deal(rest, {"train": train_share, **{name: float(value) for name, value in shares.items()}}, params.seed)


def place(entries: list[Entry], inspected: dict[str, Inspected], splits: dict[str, str], plain: set[str]) -> list[Picture]:
    """The rows of the manifest. Paths keep their folders; equal ones are told apart, what ImageFolder drops is a .png."""
    taken = {
        (splits[entry.name], str(folder).lower()) for entry in entries for folder in PurePosixPath(entry.label, entry.inner_path).parents
    }
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


def run(params: Params, raw: Path, splits: Path, manifest: Path, quarantine: Path, audit_json: Path) -> None:
    """Inspect every picture, deal them out, write the trees and the tables."""
    with zipfile.ZipFile(raw) as archive:
        layout = find_layout(archive.namelist(), "data/raw.zip")
        inspected = inspect_all(archive, [entry.name for entry in layout.entries])
        entries = sorted((entry for entry in layout.entries if not inspected[entry.name].fault), key=lambda entry: entry.name)
        check_classes(layout.entries, inspected)
        plain = plain_names(archive, entries)
        pictures = place(entries, inspected, assign(entries, layout, params), plain)
        check_every_class_everywhere(pictures)
        write_trees(archive, pictures, plain, splits)
    left_out = sorted(quarantine_rows(layout, inspected), key=lambda row: row["image_id"])
    write_manifest(manifest, pictures)
    write_table(quarantine, ["image_id", "reason"], left_out)
    write_json(audit_json, audit(pictures, len(left_out)))
    if left_out:
        print(f"{len(left_out)} of {len(pictures) + len(left_out)} files were left out; {quarantine} says which and why")


if __name__ == "__main__":
    stage.main("split", Params, run)
