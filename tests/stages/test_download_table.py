"""A source whose labels are in a table, from its digest to the splits."""

import zipfile
from pathlib import Path
from shutil import rmtree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.commands.upkeep import refresh
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table, sha256_of_file, write_table
from pipeline.stages import download, split
from tests import projects
from tests.checkout import make_pictures

SPLIT = ("data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    """Pictures of two classes in one folder, named `left-000.png` and so on."""
    projects.enter(tmp_path, monkeypatch)
    for path in sorted(make_pictures(tmp_path / "made", 12).glob("*/*.png")):
        (tmp_path / "set/images").mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "set/images" / f"{path.parent.name}-{path.name}")
    return tmp_path / "set"


def rows_of(pictures):
    """A row for each picture: the id, its class, and a group of the first two of each class."""
    names = [path.stem for path in sorted(pictures.glob("images/*.png"))]
    return [{"id": name, "side": name[:-4], "who": f"{name[0]} 1" if name[-3:] < "002" else ""} for name in names]


def write_rows(pictures, rows):
    write_table(pictures / "labels.csv", list(rows[0]), rows)


def run_stages(source="set", **columns):
    """Pin the source, run the stages, and return the rows of the manifest by image_id."""
    section = {**projects.PARAMS["download"], "source": source, "table": "labels.csv", "image": "id", "label": "side", **columns}
    Path("params.yaml").write_text(yaml.safe_dump({**projects.PARAMS, "download": section}))
    refresh()
    projects.run(download, "download", "data/raw", "data/source.json")
    projects.run(split, "split", *SPLIT)
    return {row["image_id"]: row for row in read_table(Path("data/manifest.csv"))}


def test_pictures_get_the_labels_and_groups_of_the_table(pictures):
    write_rows(pictures, rows_of(pictures))
    manifest = run_stages(group="who")
    assert {name: row["label"] for name, row in manifest.items()} == {name: name.split("/")[1][:-8] for name in manifest}
    assert len(manifest) == 24
    assert {row["path"] for row in manifest.values()} == {f"{row['label']}/{name.split('/')[1]}" for name, row in manifest.items()}
    for side in ("left", "right"):
        first, second = (manifest[f"images/{side}-00{number}.png"] for number in (0, 1))
        assert (first["split"], first["group"]) == (second["split"], second["group"])


def test_the_splits_of_the_table_are_kept(pictures):
    rows = [{**row, "part": "test" if row["id"] > f"{row['side']}-008" else "train"} for row in rows_of(pictures)]
    write_rows(pictures, rows)
    manifest = run_stages(split="part")
    assert {name for name, row in manifest.items() if row["split"] == "test"} == {
        f"images/{row['id']}.png" for row in rows if row["part"] == "test"
    }


def test_what_the_table_lacks_is_quarantined_and_counted(pictures, capsys):
    rows = rows_of(pictures)
    write_rows(pictures, [*rows[1:], {**rows[1], "side": "right"}, rows[2], {**rows[3], "id": "absent"}])
    run_stages()
    assert {row["image_id"]: row["reason"] for row in read_table(Path("data/quarantine.csv"))} == {
        "absent": "in labels.csv, but not among the files",
        "images/left-000.png": "not in labels.csv",
        "images/left-001.png": "listed 2 times in labels.csv, as 'left' and 'right'",
    }
    counts = {"rows": 26, "labelled": 22, "missing": 1, "unlabelled": 1, "contradicted": 1, "repeated": 1}
    assert read_json(Path("data/source.json"))["table"] == counts
    assert "set: 26 rows, 22 labelled, 1 missing, 1 unlabelled, 1 contradicted, 1 repeated\n" in capsys.readouterr().out


def test_contradictions_are_an_error_where_conflicts_are(pictures, monkeypatch):
    rows = rows_of(pictures)
    write_rows(pictures, [*rows, {**rows[1], "side": "right"}])
    monkeypatch.setitem(projects.PARAMS, "split", {**projects.PARAMS["split"], "leak": "fail"})
    with pytest.raises(PipelineError, match=r"1 conflict of labels or splits, first: 'images/left-001\.png': listed 2 times"):
        run_stages()


def test_the_same_table_gives_the_same_bytes_twice(pictures):
    write_rows(pictures, rows_of(pictures))
    found = []
    for _ in range(2):
        run_stages()
        found.append([Path("data", name).read_bytes() for name in ("raw/pictures.tar", "raw/.labels.csv", "source.json", "manifest.csv")])
    assert found[0] == found[1]


def test_a_changed_table_is_another_digest(pictures):
    write_rows(pictures, rows_of(pictures))
    run_stages()
    write_rows(pictures, rows_of(pictures)[1:])
    with pytest.raises(PipelineError, match=r"params\.yaml pins download\.digest"):
        projects.run(download, "download", "data/raw", "data/source.json")


def test_other_columns_of_the_same_folder_give_other_labels(pictures):
    write_rows(pictures, [{**row, "parity": str(int(row["id"][-3:]) % 2)} for row in rows_of(pictures)])
    run_stages()
    assert {row["label"] for row in run_stages(label="parity").values()} == {"0", "1"}


def test_the_table_is_found_in_an_archive(pictures):
    write_rows(pictures, rows_of(pictures))
    with zipfile.ZipFile("set.zip", "w") as archive:
        for path in sorted(pictures.rglob("*.*")):
            archive.write(path, path.relative_to(pictures))
    (pictures / "labels.csv").unlink()
    assert {row["label"] for row in run_stages("set.zip").values()} == {"left", "right"}


def test_a_parquet_set_needs_no_further_params(pictures):
    for part, numbers in (("train", range(9)), ("test", range(9, 12))):
        paths = [pictures / f"images/{side}-{number:03d}.png" for number in numbers for side in ("left", "right")]
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        (pictures / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": cells, "label": [path.name[:-8] for path in paths]}), pictures / f"data/{part}-0-of-1.parquet")
    rmtree(pictures / "images")
    manifest = run_stages(table=None, image="image", label="label")
    assert {row["label"] for row in manifest.values()} == {"left", "right"}
    assert {name for name, row in manifest.items() if row["split"] == "test"} == {
        f"data/test-0-of-1/{side}-{number:03d}.png" for number in range(9, 12) for side in ("left", "right")
    }
    assert read_json(Path("data/source.json"))["files"] == 24


def test_a_parquet_file_is_pinned_by_its_bytes(pictures):
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(pictures.glob("images/*.png"))]
    pq.write_table(pa.table({"image": cells, "label": [cell["path"][:-8] for cell in cells]}), "pictures.parquet")
    assert len(run_stages("pictures.parquet", table=None, image="image", label="label")) == 24
    assert read_json(Path("data/source.json"))["digest"] == sha256_of_file(Path("pictures.parquet"))
