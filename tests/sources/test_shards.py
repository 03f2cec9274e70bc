"""Shards: which picture is in which, and tar files that are the same bytes for the same pictures."""

import hashlib
import tarfile
from collections import Counter

import pytest
import webdataset

from pipeline.core.errors import PipelineError
from pipeline.sources.shards import assign_shards, read_index
from tests.archives import make_shards, read_shards

NAMES = [f"class {number % 10}/{number:06d}.jpg" for number in range(100_000)]
SHARDS = {shard: set(names) for shard, names in assign_shards(NAMES).items()}
ODD = {
    "cats/1.jpg": b"a jpg",
    "cats/1.png": b"of the same stem",
    "cats.of.2026/1.small.JPG": b"dots",
    "кошки/\u0301e 1.png": b"Unicode",
    f"{'long/' * 60}1.png": b"a path of more than 256 bytes",
    "cats/no suffix": b"",
}


def bits_of(name):
    return f"{int(hashlib.sha256(name.encode()).hexdigest(), 16):0256b}"


def test_every_picture_is_in_one_shard_of_at_most_400():
    assert Counter(name for names in SHARDS.values() for name in names) == dict.fromkeys(NAMES, 1)
    assert max(map(len, SHARDS.values())) <= 400


def test_few_pictures_are_one_shard_in_any_order():
    assert assign_shards(NAMES[:400]) == assign_shards(NAMES[399::-1])
    assert list(assign_shards(NAMES[:400])) == ["pictures.tar"]


def test_ten_new_pictures_of_a_hundred_thousand_push_less_than_5_percent_again():
    grown = assign_shards([*NAMES, *(f"class 3/new {number}.jpg" for number in range(10))])
    assert sum(len(names) for shard, names in grown.items() if SHARDS.get(shard) != set(names)) < 5000


def test_a_shard_that_grows_too_large_splits_in_two_and_no_other_changes():
    shard, names = max(SHARDS.items(), key=lambda item: len(item[1]))
    stem = shard.removesuffix(".tar")
    more = [name for name in (f"new/{number}" for number in range(20_000)) if f"pictures-{bits_of(name)}".startswith(stem)]
    grown = {shard: set(names) for shard, names in assign_shards([*NAMES, *more[: 401 - len(names)]]).items()}
    assert grown.keys() ^ SHARDS.keys() == {shard, f"{stem}0.tar", f"{stem}1.tar"}
    assert {name for name in grown.keys() & SHARDS.keys() if grown[name] != SHARDS[name]} == set()


def test_pictures_of_any_path_are_found_by_it(tmp_path):
    assert read_shards(make_shards(tmp_path, ODD)) == ODD


def test_the_same_pictures_give_the_same_bytes_without_times_and_owners(tmp_path):
    first, again = (make_shards(tmp_path / name, dict(items)) for name, items in (("1", ODD.items()), ("2", reversed(ODD.items()))))
    assert (first / "pictures.tar").read_bytes() == (again / "pictures.tar").read_bytes()
    with tarfile.open(first / "pictures.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar} == {(0, 0, 0, "", "", 0o644)}


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = make_shards(tmp_path, {"cats/1.jpg": bytes(5000)}) / "pictures.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PipelineError, match=r"pictures\.tar: is damaged: .*; run `dvc repro --force download`$"):
        read_index(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the package leaves files open
def test_the_package_webdataset_reads_every_picture_with_a_suffix_and_its_class(tmp_path):
    make_shards(tmp_path, ODD)
    samples = list(webdataset.WebDataset([str(path) for path in tmp_path.glob("*.tar")], shardshuffle=False))
    found = {(sample["__key__"].split("/")[1], *(content for key, content in sample.items() if key[0] != "_")) for sample in samples}
    assert found == {(name.split("/")[0], content) for name, content in ODD.items() if name != "cats/no suffix"}
