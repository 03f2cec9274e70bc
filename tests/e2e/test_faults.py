"""Hymenoptera with thirty planted faults: each is reported for the right reason, and the rest is split, trained on and tested."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.core.files import read_json, read_table
from tests.checkout import set_params
from tests.conftest import HYMENOPTERA, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not HYMENOPTERA.is_file(), reason="the pictures are not there")]

# The first is the thirtieth fault; a name is no finding, but must survive.
HOSTILE_NAMES = [
    "a\nb.jpg",
    "<script>alert(1)<&>.jpg",
    'it\'s "quoted", or not.jpg',
    "-rf.jpg",
    "🐝.jpg",
    "é" * 125 + "x.jpg",
    "$x${y}%s.jpg",
]
TRAIN, TEST = "hymenoptera_data/train", "hymenoptera_data/val"


def encoded(image, kind="JPEG", **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def turned(content):
    """The picture on its side, with the EXIF orientation that rotates it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(decoded(content).transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)


def deep(content):
    """The picture in 16 bits of grey."""
    return encoded(Image.fromarray(np.asarray(decoded(content).convert("L")).astype(np.uint16) * 257), "PNG")


def bomb():
    """A PNG whose header announces 30,000 x 30,000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def plant(files):
    """Plant thirty faults into `name: content`, and return the expected findings: (kind, names, detail or its beginning)."""
    bees = iter(sorted(name for name in files if name.startswith(f"{TRAIN}/bees/")))
    tested = iter(sorted(name for name in files if name.startswith(f"{TEST}/bees/")))
    wanted = []

    def change(kind, detail, content_of, count=1, suffix=None):
        """Replace some pictures by what `content_of` makes of them, under another suffix if one is given."""
        for _ in range(count):
            old = next(bees)
            new = old if suffix is None else old.removesuffix(".jpg") + suffix
            files[new] = content_of(files.pop(old))
            wanted.append((kind, (new,), detail))

    change("broken", "image file is truncated", lambda content: content[: len(content) // 2], 3)
    change("broken", "an empty file", lambda content: b"", 2)
    change("broken", "not a picture", lambda content: b"To whom it may concern", 2)
    change("broken", "not a picture", lambda content: b"<!doctype html><p>404", 1, ".png")
    change("broken", "more than 80,000,000 pixels", lambda content: bomb(), 1, ".png")
    change("converted", "scaled from 16 bits or more to 8", deep, 2, ".png")
    change("converted", "converted from CMYK to RGB", lambda content: encoded(decoded(content).convert("CMYK")), 2)
    change("converted", "rotated upright by its EXIF orientation", turned, 3)
    change("wrong_suffix", "is PNG, despite its suffix", lambda content: encoded(decoded(content), "PNG"), 2)
    change("one_colour", "shows a single colour", lambda content: encoded(Image.new("RGB", (300, 200), "green")))

    def copy(kind, detail, source, name, content, *others):
        files[name] = content
        wanted.append((kind, tuple(others) or (name, source), detail))

    for number in range(3):
        source = next(bees)
        copy("exact_duplicate", "the same picture 2 times", source, name := f"{TRAIN}/bees/copy {number}.jpg", files[source], source, name)
    for number in range(2):
        source, name = next(bees), f"{TRAIN}/bees/small {number}.jpg"
        copy(
            "near_duplicate",
            "look alike",
            source,
            name,
            encoded(decoded(files[source]).resize((160, 120)), quality=60),
            source,
            name,
        )
    for number in range(3):
        source = next(tested)
        copy("leak", f"the same picture as {source!r} in test", source, f"{TRAIN}/bees/leak {number}.jpg", files[source])
    source = next(tested)
    copy("leak", f"looks like {source!r} in test", source, f"{TRAIN}/bees/leak.jpg", encoded(decoded(files[source]), quality=50))
    source = next(bees)
    other = f"{TRAIN}/ants/a bee.jpg"
    detail = f"one picture with the labels ants, bees: {other!r}, {source!r}"
    copy("label_conflict", detail, source, other, files[source], other, source)
    for name in HOSTILE_NAMES:
        files[f"{TRAIN}/bees/{name}"] = files.pop(next(bees))
    return wanted


@pytest.fixture(scope="module")
def project(tmp_path_factory, clone, type_in):
    """A clone in which the pictures were split, what was planted, and what `pipeline audit` prints."""
    folder = clone(tmp_path_factory.mktemp("faults") / "clone")
    with zipfile.ZipFile(HYMENOPTERA) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name.endswith((".jpg", ".gif"))}
    wanted = plant(files)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    set_params(folder, {"download.source": "pictures.zip", "embed.image_size": 64, "models.finetuned.epochs": 1})
    type_in(folder, "pipeline", "data", "refresh")
    type_in(folder, "dvc", "repro", "split")
    return folder, wanted, type_in(folder, "pipeline", "audit")


@pytest.fixture(scope="module")
def trained(project, type_in):
    """The same clone after all stages."""
    type_in(project[0], "dvc", "repro")
    return project[0]


def test_thirty_faults_are_planted(project):
    assert len(project[1]) + 1 == 30  # the name with a newline is no finding


def test_every_fault_is_found_for_the_right_reason_and_nothing_else_is(project):
    folder, wanted, _ = project
    findings = read_json(folder / "data/audit.json")["findings"]
    found = {
        (finding["kind"], tuple(finding["image_ids"])): finding["detail"]
        for finding in findings
        if not finding["kind"].startswith("unusual")  # no fault: some photographs are large or narrow
    }
    assert sorted(found) == sorted((kind, names) for kind, names, _ in wanted)
    assert [(names, found[kind, names]) for kind, names, detail in wanted if not found[kind, names].startswith(detail)] == []


def test_the_quarantine_holds_what_cannot_be_used(project):
    folder, wanted, _ = project
    left_out = {name for kind, names, _ in wanted for name in {"broken": names, "leak": names[:1], "label_conflict": names}.get(kind, ())}
    assert {row["image_id"] for row in read_table(folder / "data/quarantine.csv")} == left_out
    assert len(left_out) == 15


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_survives(project, name):
    rows = {row["image_id"]: row for row in read_table(project[0] / "data/manifest.csv")}
    row = rows[f"{TRAIN}/bees/{name}"]
    assert (project[0] / "data/splits" / row["split"] / row["path"]).is_file()


def test_no_group_is_torn_apart(project):
    splits = {}
    for row in read_table(project[0] / "data/manifest.csv"):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert {len(found) for found in splits.values()} == {1}


def test_the_published_val_folder_is_the_test_split(project):
    rows = read_table(project[0] / "data/manifest.csv")
    assert {row["split"] for row in rows if row["image_id"].startswith("hymenoptera_data/val/")} == {"test"}
    assert {row["split"] for row in rows if row["image_id"].startswith("hymenoptera_data/train/")} == {"train", "val"}


def test_the_gif_that_image_folder_would_drop_is_decoded_and_kept_as_png(project):
    row = next(row for row in read_table(project[0] / "data/manifest.csv") if row["image_id"].endswith("imageNotFound.gif"))
    assert row["path"] == "ants/imageNotFound.gif.png"
    assert (project[0] / "data/splits" / row["split"] / row["path"]).is_file()


def test_the_documentation_quotes_the_audit(project):
    assert any(project[2] in path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


@pytest.mark.slow
def test_the_rest_is_trained_on_and_tested(trained):
    rows = read_table(trained / "data/manifest.csv")
    answers = {row["image_id"] for row in read_table(trained / "results/finetuned/predictions.csv")}
    assert answers == {row["image_id"] for row in rows if row["split"] == "test"}
    assert read_json(trained / "metrics/comparison.json")["test_pictures"] == 153
    judged = {answer["image_id"] for answer in read_table(trained / "models/out_of_fold.csv")}
    assert {f"{TRAIN}/bees/{name}" for name in HOSTILE_NAMES} <= judged


@pytest.mark.slow
def test_the_report_shows_the_findings(trained):
    html = (trained / "report/index.html").read_text()
    assert "One picture under several labels: 1, left out under each" in html
    assert "Labels in doubt" in html
