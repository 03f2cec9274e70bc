"""Named datasets in their published formats, from a server on this machine to the split tables."""

import csv
import hashlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.commands.upkeep import refresh
from pipeline.core import files
from pipeline.core.errors import PipelineError
from pipeline.sources.formats import PublishedFile
from pipeline.sources.members import Limits
from pipeline.sources.source import NAMED
from pipeline.stages import download, split
from tests.published_sets import SETS
from tests.servers import serving

LIMITS = {"fetch_gigabytes": 1, "fetch_hours": 1, "files": 1000, "gigabytes": 1, "ratio": 1000}


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """An import of torch, wherever it stands, is a fault."""
    for name in ("torch", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(files, "_sync", lambda _: None)
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as listening:
        yield listening


@pytest.fixture
def publish(server, monkeypatch):
    """Serve the small files of a set, and let the catalogue state their addresses and checksums; what comes of them."""

    def serve(name):
        contents, expected = SETS[name]()
        assert [file.name for file in NAMED[name].files] == list(contents)
        server.answers |= {f"/{file}": [(200, {}, content)] for file, content in contents.items()}
        published = tuple(PublishedFile(f"{server.url}/{file}", md5_of(content)) for file, content in contents.items())
        monkeypatch.setitem(NAMED, name, replace(NAMED[name], files=published))
        return expected

    return serve


def md5_of(content):
    return hashlib.md5(content).hexdigest()


def pin(root, name):
    """Write params.yaml as a user does, and let the command pin the pictures."""
    params = {"download": {"source": name, "digest": None, "url_mirrors": [], "encoding": None, "limits": LIMITS}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return refresh()[1]


def run_download(root, name, digest, mirrors=()):
    params = download.Params(source=name, digest=digest, url_mirrors=[*mirrors], encoding=None, limits=Limits(**LIMITS))
    download.run(params, root / "raw", root / "source.json")


def run_split(root):
    """Run the stage; the rows of the manifest."""
    params = split.Params(seed=0, val=0.2, test=0.2, folders="auto", group=None, similarity=0.99, folders_up_to=1000, leak="fail")
    split.run(params, root / "raw", root / "splits", *(root / name for name in ("manifest.csv", "quarantine.csv", "audit.json")))
    with (root / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digest_of(expected):
    """What the pictures are pinned by: the sums of their files by their names."""
    lines = (f"{hashlib.sha256(file_of(expected[name])).hexdigest()}  {name}\n" for name in sorted(expected))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_of(picture):
    """A JPEG's bytes as they are, an array as PNG."""
    if isinstance(picture, bytes):
        return picture
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "PNG", compress_level=0)
        return file.getvalue()


def message_of(call, *arguments, **settings):
    with pytest.raises(PipelineError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def kept(root):
    return sorted(path.name for path in (root / ".cache" / "store").iterdir())


@pytest.mark.parametrize("name", SETS)
def test_a_dataset_arrives_in_the_split_tables_with_its_published_splits_classes_and_values(root, publish, name):
    expected = publish(name)
    run_download(root, name, pin(root, name))
    facts = json.loads((root / "source.json").read_text())
    assert (facts["source"], facts["licence"]) == (name, NAMED[name].licence)
    rows = run_split(root)
    assert {row["image_id"] for row in rows} == set(expected)
    for row in rows:
        *_, folder, label, _ = row["image_id"].split("/")
        assert row["label"] == label
        assert row["split"] in {"train": ("train", "val"), "test": ("test",), "val": ("val",), "2750": ("train", "val", "test")}[folder]
        content = (root / "splits" / row["split"] / row["path"]).read_bytes()
        there = expected[row["image_id"]]
        if isinstance(there, bytes):
            assert content == there
        else:
            with Image.open(io.BytesIO(content)) as image:
                assert np.array_equal(np.asarray(image), there)


def test_a_validation_split_that_is_published_is_the_val_split(root, publish):
    publish("flowers102")
    run_download(root, "flowers102", pin(root, "flowers102"))
    assert {row["image_id"]: row["split"] for row in run_split(root) if row["split"] == "val"} == {
        f"val/{picture}.jpg": "val"
        for picture in (
            "pink primrose/image_00003",
            "pink primrose/image_00004",
            "blackberry lily/image_00009",
            "blackberry lily/image_00010",
        )
    }


@pytest.mark.parametrize("name", SETS)
def test_a_wrong_checksum_is_refused_and_named_with_the_file(root, publish, server, name):
    publish(name)
    *_, file = NAMED[name].files
    server.answers[f"/{file.name}"] = [(200, {}, b"tampered")]
    assert message_of(run_download, root, name, "0" * 64) == (
        f"{server.url}/{file.name}: its MD5 is {md5_of(b'tampered')}, the published one is {file.md5}; "
        "run again later, or name a mirror in params.yaml: download.url_mirrors"
    )
    assert not (root / "raw").exists()
    assert not (root / "source.json").exists()


def test_a_file_of_a_wrong_checksum_is_not_kept(root, publish, server):
    publish("mnist")
    server.answers["/train-labels-idx1-ubyte.gz"] = [(200, {}, b"tampered")]
    message_of(run_download, root, "mnist", "0" * 64)
    pictures = hashlib.sha256(server.answers["/train-images-idx3-ubyte.gz"][0][2]).hexdigest()
    assert kept(root) == sorted([pictures, f"{NAMED['mnist'].files[0].md5}.alias"])


def test_what_was_fetched_before_a_wrong_checksum_is_not_fetched_again(root, publish, server):
    publish("mnist")
    good = server.answers["/t10k-labels-idx1-ubyte.gz"][0]
    server.answers["/t10k-labels-idx1-ubyte.gz"] = [(200, {}, b"tampered"), good]
    message_of(pin, root, "mnist")
    server.asked.clear()
    pin(root, "mnist")
    assert server.asked == ["/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("name", ["mnist", "oxford_iiit_pet"])
def test_what_is_in_the_store_needs_no_network(root, publish, server, name):
    publish(name)
    digest = pin(root, name)
    assert server.asked == [f"/{file.name}" for file in NAMED[name].files]
    run_download(root, name, digest)
    pin(root, name)
    assert len(server.asked) == len(NAMED[name].files)


def test_a_mirror_is_a_folder_that_holds_the_files(root, publish, server):
    expected = publish("mnist")
    for file in NAMED["mnist"].files:
        server.answers[f"/copies/{file.name}"], server.answers[f"/{file.name}"] = server.answers[f"/{file.name}"], [(404, {}, b"")]
    run_download(root, "mnist", digest_of(expected), [f"{server.url}/copies"])
    assert server.asked[1::2] == [f"/copies/{file.name}" for file in NAMED["mnist"].files]


def test_a_mirror_serves_where_the_publisher_holds_another_file(root, publish, server):
    expected = publish("eurosat")
    server.answers["/copies/EuroSAT.zip"], server.answers["/EuroSAT.zip"] = server.answers["/EuroSAT.zip"], [(200, {}, b"<html>")]
    run_download(root, "eurosat", digest_of(expected), [f"{server.url}/copies/"])
    assert server.asked == ["/EuroSAT.zip", "/copies/EuroSAT.zip"]


def test_pictures_of_another_digest_are_refused_and_both_are_named(root, publish):
    expected = publish("mnist")
    assert message_of(run_download, root, "mnist", "0" * 64) == (
        f"mnist: its digest is {digest_of(expected)}, params.yaml pins download.digest {'0' * 64}; "
        "if the change is intended, run `pipeline data refresh`"
    )


def test_the_same_files_give_the_same_bytes_twice(root, publish):
    publish("cifar10")
    digest, found = pin(root, "cifar10"), []
    for _ in range(2):
        run_download(root, "cifar10", digest)
        found.append([path.read_bytes() for path in [*sorted((root / "raw").iterdir()), root / "source.json"]])
    assert found[0] == found[1]


def test_more_pictures_than_the_limits_allow_are_refused(root, publish):
    publish("mnist")
    params = download.Params(source="mnist", digest="0" * 64, url_mirrors=[], encoding=None, limits=Limits(**LIMITS | {"files": 29}))
    assert message_of(download.run, params, root / "raw", root / "source.json") == (
        "mnist: contains more than 29 files; raise download.limits.files if this is intended"
    )
