"""Sources in a cloud: an archive, a Parquet file or a folder of objects, on an S3 server of this machine."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import PipelineError
from pipeline.net import store
from pipeline.sources.archives import digest_of
from pipeline.sources.layout import LABELS
from pipeline.sources.source import find_source, measure_digest, open_source, store_keys
from pipeline.sources.tables import Table, label_pictures
from tests.archives import limits, make_zip

FILES = {"cats/1.png": b"one", "dogs/2.png": b"two", "labels.csv": b"image,label\n1,tom\n2,rex\n"}
URL = "s3://pictures/set"


@pytest.fixture
def bucket(s3, root, sleeps):
    s3.pipe({f"pictures/set/{name}": content for name, content in {**FILES, ".hidden/x": b"", "Thumbs.db": b""}.items()})
    return s3


def contents_of(url, digest):
    with open_source(find_source(url), (), digest, limits()) as members:
        return {name: read() for name, read in members.items()}


def message_of(call, *arguments):
    with pytest.raises(PipelineError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "S3"])
@pytest.mark.parametrize(
    ("name", "is_folder"), [("set", True), ("set/", True), ("a.zip", False), ("a.tar.gz", False), ("a.parquet", False)]
)
def test_the_end_of_an_address_tells_a_file_from_a_folder(scheme, name, is_folder):
    source = find_source(f"{scheme}://place/{name}")
    assert (source.url, source.pinned_by_content) == (f"{scheme}://place/{name}", is_folder)


def test_a_folder_is_pinned_by_its_content_without_hidden_objects(bucket):
    digest = measure_digest(find_source(URL), (), limits())
    assert digest == digest_of({name: lambda content=content: content for name, content in FILES.items()})
    assert contents_of(URL, digest) == FILES


def test_a_folder_that_was_measured_is_not_read_again(bucket):
    digest = measure_digest(find_source(URL), (), limits())
    bucket.rm(URL, recursive=True)
    assert contents_of(URL, digest) == FILES
    assert digest in store_keys(URL, (), digest)


def test_measuring_looks_at_the_folder_as_it_is_now(bucket):
    first = measure_digest(find_source(URL), (), limits())
    bucket.pipe("pictures/set/cats/1.png", b"changed")
    assert measure_digest(find_source(URL), (), limits()) != first


def test_a_folder_may_have_a_table_of_labels(bucket):
    with (
        open_source(find_source(URL), (), None, limits()) as files,
        label_pictures(files, Table(table="labels.csv"), "set", limits()) as found,
    ):
        assert sorted(found.members) == [LABELS, "cats/1.png", "dogs/2.png"]


def test_an_archive_is_pinned_by_its_bytes(bucket, tmp_path):
    content = make_zip(tmp_path / "a.zip", "cats/1.png", "dogs/2.png").read_bytes()
    bucket.pipe("pictures/a.zip", content)
    digest = measure_digest(find_source("s3://pictures/a.zip"), (), limits())
    assert digest == hashlib.sha256(content).hexdigest()
    assert contents_of("s3://pictures/a.zip", digest) == {"cats/1.png": b"x", "dogs/2.png": b"x"}


def test_a_parquet_file_is_a_source(bucket):
    with io.BytesIO() as file:
        pq.write_table(pa.table({"image": [b"\xff\xd8\xff", b"\xff\xd8\xff1"], "label": ["a", "b"]}), file)
        bucket.pipe("pictures/data/train.parquet", file.getvalue())
    for url in ("s3://pictures/data/train.parquet", "s3://pictures/data"):
        digest = measure_digest(find_source(url), (), limits())
        with open_source(find_source(url), (), digest, limits()) as files, label_pictures(files, Table(), "set", limits()) as found:
            assert sorted(found.members) == [LABELS, "train/000001.jpg", "train/000002.jpg"]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"files": 2}, "contains more than 2 files; raise download.limits.files if this is intended"),
        ({"gigabytes": 5e-9}, "contains more than 5e-09 gigabytes; raise download.limits.gigabytes if this is intended"),
        ({"fetch_gigabytes": 5e-9}, "is larger than 5e-09 gigabytes; raise download.limits.fetch_gigabytes if this is intended"),
    ],
)
def test_a_folder_beyond_the_limits_is_refused(bucket, changed, fault):
    assert message_of(measure_digest, find_source(URL), (), limits(**changed)) == f"{URL}: {fault}"


def test_objects_that_differ_in_case_alone_are_refused_and_nothing_is_kept(bucket):
    bucket.pipe("pictures/set/CATS/1.png", b"other")
    assert "differ only by case" in message_of(measure_digest, find_source(URL), (), limits())
    assert store.list_items() == []


def test_an_object_with_an_unsafe_name_is_refused(bucket):
    bucket.pipe("pictures/set/cats/a\\b.png", b"other")
    assert "does not have a plain path as its name" in message_of(measure_digest, find_source(URL), (), limits())
