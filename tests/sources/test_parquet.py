"""Parquet files as tables of labels: pictures by their path or in the file itself, as Hugging Face publishes them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.layout import LABELS, read_labels
from pipeline.sources.tables import Table, label_pictures
from tests.archives import limits

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
JPEG, PNG = b"\xff\xd8\xff one", b"\x89PNG\r\n two"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def parquet(columns, class_names=None, **options):
    """A file of columns. `class_names`: what Hugging Face writes about the numbers of the column label."""
    table = pa.table(columns)
    if class_names:
        features = {"label": {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pa.BufferOutputStream() as stream:
        pq.write_table(table, stream, **options)
        return stream.getvalue().to_pybytes()


def images(*cells):
    return pa.array([None if cell is None else {"path": cell[0], "bytes": cell[1]} for cell in cells], IMAGE)


def opened(files, table=None, /, **changed):
    """What is packed of the files, by name, and what `split` reads of the table."""
    members = {name: lambda content=content: content for name, content in files.items()}
    with label_pictures(members, table or Table(), "set", limits(**changed)) as found:
        packed = {name: read() for name, read in sorted(found.members.items(), reverse=True)}
    return packed, read_labels(packed.pop(LABELS), "auto")


def labels(files, table=None):
    return {entry.name: entry.label for entry in opened(files, table)[1].layout.entries}


def message_of(content, table=None, /, **changed):
    with pytest.raises(PipelineError) as caught:
        opened({"a.parquet": content}, table, **changed)
    return str(caught.value).removeprefix("set: a.parquet: ")


def test_pictures_in_the_file_are_packed_under_their_own_paths():
    content = parquet({"image": images(("x/1.jpg", JPEG), ("2.png", PNG)), "label": ["cat", "dog"]})
    packed, found = opened({"data/all.parquet": content, "README.md": b""})
    assert packed == {"data/all/x/1.jpg": JPEG, "data/all/2.png": PNG}
    assert {entry.name: (entry.label, entry.inner_path) for entry in found.layout.entries} == {
        "data/all/x/1.jpg": ("cat", "x/1.jpg"),
        "data/all/2.png": ("dog", "2.png"),
    }


@pytest.mark.parametrize("path", [None, "", "../1.jpg", "/etc/passwd", "a\\b", ".hidden", "\x1b.jpg", "a\nb"])
def test_a_picture_without_a_safe_path_is_called_by_its_row(path):
    packed, _ = opened({"a.parquet": parquet({"image": images((path, JPEG), (path, PNG)), "label": ["cat", "dog"]})})
    assert packed == {"a/000001.jpg": JPEG, "a/000002.png": PNG}


def test_pictures_of_one_path_stay_apart():
    packed, _ = opened({"a.parquet": parquet({"image": images(("1.jpg", JPEG), ("1.jpg", PNG)), "label": ["cat", "dog"]})})
    assert packed == {"a/1.jpg": JPEG, "a/1~2.jpg": PNG}


def test_a_column_of_bytes_alone_is_enough():
    packed, _ = opened({"a.parquet": parquet({"image": pa.array([JPEG], pa.binary()), "label": ["cat"]})})
    assert packed == {"a/000001.jpg": JPEG}


def test_a_file_may_name_pictures_by_their_paths():
    files = {"train/1.jpg": b"one", "labels.parquet": parquet({"file": ["1"], "breed": ["cat"]})}
    assert labels(files, Table(table="labels.parquet", image="file", label="breed")) == {"train/1.jpg": "cat"}


def test_parquet_files_beside_folders_of_pictures_are_no_tables_unless_they_are_named():
    files = {"cats/1.jpg": bytes, "dogs/1.jpg": bytes, "extra.parquet": bytes}
    with label_pictures(files, Table(), "set", limits()) as found:
        assert found.members == files


def test_numbers_of_classes_get_the_names_that_hugging_face_writes_with_them():
    content = parquet({"image": images(("1", JPEG), ("2", PNG), ("3", b"")), "label": [1, 0, -1]}, ["cat", "dog"])
    _, found = opened({"a.parquet": content})
    assert {entry.name: entry.label for entry in found.layout.entries} == {"a/1": "dog", "a/2": "cat"}
    assert found.faults == [("unlabelled", "a/3", "without a label in a.parquet")]


def test_a_class_without_a_name_is_refused():
    content = parquet({"image": images(("1", JPEG)), "label": [2]}, ["cat", "dog"])
    assert message_of(content) == "label: contains the class 2, but there are 2 names; correct the table"


@pytest.mark.parametrize("described", [b"no JSON", b"[]", b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [3]}}}}'])
def test_a_description_that_is_damaged_is_ignored(described):
    table = pa.table({"image": images(("1", JPEG)), "label": [0]}).replace_schema_metadata({b"huggingface": described})
    with pa.BufferOutputStream() as stream:
        pq.write_table(table, stream)
        assert labels({"a.parquet": stream.getvalue().to_pybytes()}) == {"a/1": "0"}


@pytest.mark.parametrize(
    ("column", "label"),
    [([7], "7"), ([7.0], "7"), ([7.5], "7.5"), ([True], "True"), ([" x "], "x"), (pa.array(["x"]).dictionary_encode(), "x")],
)
def test_labels_may_be_numbers_or_texts(column, label):
    assert labels({"a.parquet": parquet({"image": images(("1", JPEG)), "label": column})}) == {"a/1": label}


@pytest.mark.parametrize("label", [pa.array([None], pa.string()), pa.array([float("nan")]), pa.array([""])])
def test_pictures_without_a_label_are_named(label):
    _, found = opened({"a.parquet": parquet({"image": images(("1", JPEG)), "label": label})})
    assert found.faults == [("unlabelled", "a/1", "without a label in a.parquet")]


@pytest.mark.parametrize("names", [("data/train-00000-of-00001", "data/test-00000-of-00001"), ("default/train/0000", "default/test/0000")])
def test_the_names_of_several_files_are_splits(names):
    files = {f"{name}.parquet": parquet({"image": images(("1", JPEG)), "label": ["cat"]}) for name in names}
    _, found = opened(files)
    assert {entry.name: entry.folder for entry in found.layout.entries} == {f"{names[0]}/1": "train", f"{names[1]}/1": "test"}


def test_splits_and_groups_may_be_columns():
    columns = {"image": images(("1", JPEG), ("2", PNG)), "label": ["a", "b"], "part": ["train", "test"], "who": [1, None]}
    _, found = opened({"a.parquet": parquet(columns)}, Table(split="part", group="who"))
    assert {entry.name: entry.folder for entry in found.layout.entries} == {"a/1": "train", "a/2": "test"}
    assert found.groups == {"a/1": "1"}


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"img": ["1"], "label": [1]}, "has no column 'image'; its columns are 'img', 'label'; set download.image in params.yaml"),
        ({"image": [1], "label": [1]}, "the column 'image' has neither paths nor pictures; set download.image in params.yaml"),
        ({"image": [[1]], "label": [1]}, "the column 'image' has neither paths nor pictures; set download.image in params.yaml"),
        ({"image": ["1"], "label": [[1]]}, "the column 'label' is of the type list<element: int64>; name one of texts or numbers"),
        ({"image": ["1"], "label": [b"x"]}, "the column 'label' is of the type binary; name one of texts or numbers"),
        ({"image": images(None), "label": [1]}, "row 1 has no picture; correct it"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(columns, fault):
    assert message_of(parquet(columns)) == fault


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"PAR1", lambda content: content.replace(b"cat", b"\xff\xff\xff")]
)
def test_a_damaged_file_is_refused(damage):
    content = damage(parquet({"image": images(("1", JPEG)), "label": ["cat"]}, compression="none"))
    assert message_of(content).startswith("is damaged or not a Parquet file: ")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"files": 1}, "set: contains more than 1 files; raise download.limits.files if this is intended"),
        ({"gigabytes": 1e-8}, "unpacks to more than 1e-08 gigabytes; raise download.limits.gigabytes if this is intended"),
    ],
)
def test_a_file_beyond_the_limits_is_refused(changed, fault):
    assert message_of(parquet({"image": images(("1", JPEG), ("2", PNG)), "label": ["cat", "dog"]}), **changed) == fault


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused():
    content = parquet({"image": images(("1", bytes(20_000_000))), "label": ["cat"]}, compression="zstd")
    assert message_of(content) == "unpacks to more than 200 times its size; raise download.limits.ratio if this is intended"
