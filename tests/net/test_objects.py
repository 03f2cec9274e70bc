"""Objects in a cloud: fetched from an S3 server on this machine, resumed, pinned, and refused in one line."""

import threading

import fsspec
import pytest

from pipeline.core.errors import PipelineError
from pipeline.net import objects, store
from pipeline.net.fetch import Bounds, Pin, fetch
from pipeline.net.objects import list_objects, reading_objects
from tests.servers import offer

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc"
HOUR = Bounds(gigabytes=1, hours=1)
URL = "s3://pictures/a.zip"


@pytest.fixture
def bucket(s3, root, sleeps):
    """A bucket with an object."""
    s3.pipe("pictures/a.zip", b"abc")
    return s3


@pytest.fixture
def read(monkeypatch):
    """The ranges that were read of objects: (path, first byte)."""
    ranges, blocks = [], objects._blocks
    monkeypatch.setattr(objects, "_blocks", lambda *arguments: ranges.append(arguments[1:]) or blocks(*arguments))
    return ranges


def message_of(call, *arguments, **settings):
    with pytest.raises(PipelineError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def test_an_object_is_stored_by_its_sha256(bucket):
    path = fetch(URL, HOUR)
    assert (path.name, path.read_bytes()) == (ABC, b"abc")


def test_an_object_that_did_not_change_is_not_read_again(bucket, read):
    assert fetch(URL, HOUR) == fetch(URL, HOUR)
    assert read == [("pictures/a.zip", 0)]


def test_an_object_that_changed_is_read_again(bucket):
    fetch(URL, HOUR)
    bucket.pipe("pictures/a.zip", b"abd")
    assert fetch(URL, HOUR).read_bytes() == b"abd"


def test_an_object_that_is_pinned_and_stored_is_not_looked_at(bucket):
    fetch(URL, HOUR)
    bucket.rm("pictures/a.zip")
    assert fetch(URL, HOUR, ABC).read_bytes() == b"abc"


def plant(version):
    """What a process left that was killed after one byte of the object."""
    with store.Partial(URL) as partial:
        partial.restart(version)
        partial.append(b"a")


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(bucket, read):
    plant(objects._look(bucket, "pictures/a.zip")[1])
    assert fetch(URL, HOUR).read_bytes() == b"abc"
    assert read == [("pictures/a.zip", 1)]


def test_a_transfer_of_another_version_starts_anew(bucket, read):
    plant('"of yesterday"')
    assert fetch(URL, HOUR).read_bytes() == b"abc"
    assert read == [("pictures/a.zip", 0)]


def test_an_object_that_changes_while_it_is_read_is_read_again(bucket, monkeypatch):
    changes, blocks = [b"other"], objects._blocks

    def change_first(*arguments):
        yield from blocks(*arguments)
        while changes:
            bucket.pipe("pictures/a.zip", changes.pop())

    monkeypatch.setattr(objects, "_blocks", change_first)
    assert fetch(URL, HOUR).read_bytes() == b"other"


def test_an_object_with_other_content_than_is_pinned_is_refused(bucket):
    pin = Pin("0" * 64, "is {found}, not {digits}", "look again")
    assert message_of(fetch, URL, HOUR, None, pin) == f"{URL}: is {ABC}, not {'0' * 64}; look again"


def test_an_object_may_be_the_mirror_of_an_address(bucket, server):
    server.answers["/a.zip"] = [offer(b"other")]
    pin = Pin(ABC, "is {found}, not {digits}", "look again")
    assert fetch(f"{server.url}/a.zip", HOUR, ABC, pin, (URL,)).read_bytes() == b"abc"


@pytest.mark.parametrize("url", ["s3://pictures/b.zip", "s3://nowhere/a.zip"])
def test_an_object_that_is_not_there_is_refused_at_once(bucket, sleeps, url):
    assert message_of(fetch, url, HOUR) == f"{url}: does not exist; check the address and the network, or name a local file"
    assert sleeps == []


def test_a_folder_in_place_of_an_object_is_refused(bucket):
    bucket.pipe("pictures/b.zip/1.png", b"one")
    assert message_of(fetch, "s3://pictures/b.zip", HOUR) == (
        "s3://pictures/b.zip: is a folder, not an object; check the address and the network, or name a local file"
    )


def test_an_object_beyond_the_bounds_is_not_read(bucket, read):
    assert message_of(fetch, URL, Bounds(2e-9, 1, "download.limits")) == (
        f"{URL}: is larger than 2e-09 gigabytes; raise download.limits.fetch_gigabytes if this is intended"
    )
    assert read == []


def test_a_fault_that_may_pass_is_tried_again(bucket, monkeypatch, sleeps):
    faults, blocks = [ConnectionError("reset"), TimeoutError()], objects._blocks

    def falter(*arguments):
        with objects._faults():
            if faults:
                raise faults.pop(0)
        yield from blocks(*arguments)

    monkeypatch.setattr(objects, "_blocks", falter)
    assert fetch(URL, HOUR).read_bytes() == b"abc"
    assert len(sleeps) == 2


DENIED = "access is refused: {}; set the credentials as the provider's own tools expect them"
PASSING = "{}; check the address and the network, or name a local file"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Forbidden"), DENIED.format("Forbidden")),
        (ValueError("Unable to\nlocate credentials."), DENIED.format("Unable to locate credentials")),
        (ConnectionError("http://me:word@host/ is gone"), PASSING.format("http://host/ is gone")),
        (TimeoutError(), PASSING.format("TimeoutError")),
    ],
)
def test_what_a_provider_says_is_one_line_without_a_password(bucket, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(bucket, "info", refuse)
    assert message_of(fetch, URL, HOUR) == f"{URL}: {message}"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs"), ("hf", "huggingface-hub")])
def test_a_package_that_is_missing_is_named(root, monkeypatch, scheme, package):
    def refuse(_):
        raise ImportError

    monkeypatch.setattr(fsspec, "url_to_fs", refuse)
    url = f"{scheme}://place/a.zip"
    assert message_of(fetch, url, HOUR) == f"{url}: needs the package {package}; install it: pip install -e '.[{scheme}]'"


def test_a_chain_of_addresses_is_refused(root):
    url = "s3://pictures/a.zip::file:///etc/passwd"
    assert message_of(fetch, url, HOUR) == f"{url}: is a chain of addresses; give the address of the object itself"


def test_the_objects_below_a_prefix_are_listed_by_their_paths_in_it(bucket):
    bucket.pipe({"pictures/set/cats/1.png": b"one", "pictures/set/2.png": b"", "pictures/settle/3.png": b"three"})
    assert list_objects("s3://pictures/set") == list_objects("s3://pictures/set/") == {"2.png": 0, "cats/1.png": 3}


def test_a_prefix_without_objects_is_refused(bucket):
    assert message_of(list_objects, "s3://pictures/none") == (
        "s3://pictures/none: does not exist; check the address and the network, and run again"
    )


def test_an_object_in_place_of_a_prefix_is_refused(bucket):
    assert message_of(list_objects, URL) == (f"{URL}: is an object, but its name is not that of an archive or a Parquet file; rename it")


NAMES = [f"{number:02d}.png" for number in range(50)]


@pytest.fixture
def prefix(bucket):
    bucket.pipe({f"pictures/set/{name}": name.encode() for name in NAMES})
    return "s3://pictures/set"


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_objects_are_read_in_any_order(prefix, order):
    with reading_objects(prefix, list_objects(prefix), HOUR) as read:
        assert [read(name) for name in order] == [name.encode() for name in order]


def test_several_objects_are_read_at_the_same_time(prefix, bucket, monkeypatch):
    together, cat = threading.Barrier(objects._READERS, timeout=30), bucket.cat_file

    def wait_for_all(path):
        if path < f"pictures/set/{NAMES[objects._READERS]}":
            together.wait()
        return cat(path)

    monkeypatch.setattr(bucket, "cat_file", wait_for_all)
    with reading_objects(prefix, list_objects(prefix), HOUR) as read:
        assert read(NAMES[0]) == b"00.png"


def test_an_object_that_changed_after_it_was_listed_is_refused(prefix, bucket):
    sizes = list_objects(prefix)
    bucket.pipe("pictures/set/03.png", b"more than before")
    with reading_objects(prefix, sizes, HOUR) as read:
        assert message_of(read, "03.png") == f"{prefix}/03.png: changed while it was read; run again"


def test_objects_that_are_together_beyond_the_bounds_are_not_read(prefix):
    with pytest.raises(PipelineError, match=r"^s3://pictures/set: is larger than 1e-07 gigabytes; raise download"):
        reading_objects(prefix, list_objects(prefix), Bounds(1e-7, 1, "download.limits")).__enter__()
