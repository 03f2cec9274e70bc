"""The label loop: label_next.csv with its labels filled in is a table of the source, and its pictures are trained on, never tested on."""

import csv
import shutil
from pathlib import Path

import yaml

from pipeline.commands.upkeep import refresh
from pipeline.core.files import read_table, write_table
from pipeline.drift.choosing import COLUMNS
from pipeline.pictures.manifest import read_manifest
from pipeline.stages import download, split
from tests.checkout import make_pictures
from tests.projects import PARAMS, run


def split_pictures(**table):
    """Run the stages from the source to the splits, and return each picture by its name."""
    params = {**PARAMS, "models": {}, "download": {**PARAMS["download"], **table}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    refresh()
    run(download, "download", "data/raw", "data/source.json")
    run(split, "split", "data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
    return {picture.image_id: picture for picture in read_manifest(Path("data/manifest.csv")).pictures}


def table_of_manifest(path):
    """Write the table of the pictures that have labels already, as docs/drift.md does."""
    with Path("data/manifest.csv").open(newline="") as old, path.open("w", newline="") as new:
        rows = csv.writer(new)
        rows.writerow(["path", "label", "split"])
        rows.writerows([row["image_id"], row["label"], row["split"]] for row in csv.DictReader(old))


def add_new(folder):
    """Add three pictures per class below the source, and label_next.csv, whose first row has no label. Returns their labels."""
    (folder / "new").mkdir()
    labels = {}
    for path in sorted(make_pictures(Path("made"), 3, start=50).rglob("*.png")):
        labels[f"{path.parent.name}_{path.name}"] = path.parent.name
        shutil.copy(path, folder / "new" / list(labels)[-1])
    first = next(iter(labels))
    others = dict.fromkeys(COLUMNS, "0.5") | {"split": "train"}
    rows = [{**others, "path": name, "label": label * (name != first)} for name, label in labels.items()]
    write_table(folder / "label_next.csv", COLUMNS, rows)
    return labels


def test_labelled_pictures_join_train_and_those_without_a_label_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    source = make_pictures(tmp_path / "pictures", 12)
    before = split_pictures()
    table_of_manifest(source / "labels.csv")
    (first, _), *labelled = add_new(source).items()
    after = split_pictures(table="*.csv", image="path", split="split")
    assert {name: after[name].split for name in before} == {name: picture.split for name, picture in before.items()}
    added = {name: (picture.label, picture.split) for name, picture in after.items() if name not in before}
    assert added == {f"new/{name}": (label, "train") for name, label in labelled}
    reasons = {row["image_id"]: row["reason"] for row in read_table(Path("data/quarantine.csv"))}
    assert reasons == {f"new/{first}": "without a label in label_next.csv, labels.csv"}
