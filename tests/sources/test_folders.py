"""The digest of a folder reads only files that changed since the last look. Reads are counted."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.commands.upkeep import refresh
from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir
from pipeline.sources import folders, shards
from pipeline.sources.archives import digest_of
from pipeline.sources.folders import FolderFile, folder_digest, folder_members
from pipeline.sources.members import Limits
from pipeline.stages.download import Params, run

LIMITS = Limits(fetch_gigabytes=1, fetch_hours=1, files=100, gigabytes=1, ratio=10)
NAMES = [f"{label}/{number}.png" for label in ("ants", "bees") for number in range(3)]
OLD_NS = 1_600_000_000 * 10**9


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of six files, all last changed long ago, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in NAMES:
        write(tmp_path / "pictures" / name, name.encode(), OLD_NS)
    return tmp_path / "pictures"


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read since the list was cleared."""
    names, original = [], FolderFile.__call__

    def count(file):
        names.append(file.name)
        return original(file)

    monkeypatch.setattr(FolderFile, "__call__", count)
    return names


def write(path, content, changed_ns):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(changed_ns, changed_ns))


def look(pictures, read, reads_all=False):
    """The digest, and the names of the files that were read for it."""
    read.clear()
    digest = folder_digest(pictures, folder_members(pictures, LIMITS), reads_all)
    return digest, list(read)


def test_an_unchanged_folder_is_read_once(pictures, read):
    first, found = look(pictures, read)
    assert found == NAMES
    assert [look(pictures, read) for _ in range(2)] == [(first, [])] * 2
    assert first == digest_of(folder_members(pictures, LIMITS))


def test_new_and_changed_and_replaced_files_alone_are_read(pictures, read):
    look(pictures, read)
    write(pictures / "ants/9.png", b"new", OLD_NS)
    write(pictures / "ants/1.png", b"other", OLD_NS)  # its size
    write(pictures / "bees/0.png", b"bees/7.png", OLD_NS + 1)  # its time
    write(pictures / "bees/new", b"bees/8.png", OLD_NS)
    (pictures / "bees/new").rename(pictures / "bees/1.png")  # its inode
    (pictures / "bees/2.png").unlink()
    digest, found = look(pictures, read)
    assert found == ["ants/1.png", "ants/9.png", "bees/0.png", "bees/1.png"]
    assert digest == digest_of(folder_members(pictures, LIMITS))
    assert look(pictures, read) == (digest, [])


def test_a_file_that_changed_just_before_the_look_is_read_again(pictures, read, monkeypatch):
    """Git's «racily clean»: a second change within the granularity of its time would leave the same state."""
    now = time.time_ns()
    for name, age in (("ants/0.png", 0), ("ants/1.png", 10**9), ("ants/2.png", -(10**12)), ("bees/0.png", 10 * 10**9)):
        write(pictures / name, name.encode(), now - age)
    look(pictures, read)
    (pictures / "ants/0.png").write_bytes(b"ants/9.png")
    os.utime(pictures / "ants/0.png", ns=(now, now))
    digest, found = look(pictures, read)
    assert found == ["ants/0.png", "ants/1.png", "ants/2.png"]
    assert digest == digest_of(folder_members(pictures, LIMITS))
    monkeypatch.setattr(folders.time, "time_ns", lambda: now + 10**13)
    look(pictures, read)
    assert look(pictures, read) == (digest, [])


def test_force_reads_all_and_finds_a_change_that_left_no_trace(pictures, read):
    first, _ = look(pictures, read)
    write(pictures / "ants/1.png", b"ants/7.png", OLD_NS)
    assert look(pictures, read) == (first, [])
    forced, found = look(pictures, read, reads_all=True)
    assert (found, forced != first) == (NAMES, True)
    assert look(pictures, read) == (forced, [])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"3", b'{"ants/0.png": 1}', b'{"ants/0.png": [[1, 2, 3, 4], "no sum"]}', b"\xff"])
def test_a_damaged_file_of_sums_is_not_trusted(pictures, read, damage):
    digest, _ = look(pictures, read)
    [note] = cache_dir("sums").iterdir()
    note.write_bytes(damage)
    assert look(pictures, read) == (digest, NAMES)
    assert look(pictures, read) == (digest, [])


def test_each_folder_has_sums_of_its_own(pictures, read, tmp_path):
    look(pictures, read)
    write(tmp_path / "others/ants/0.png", b"ants/0.png", OLD_NS)
    assert look(tmp_path / "others", read)[1] == ["ants/0.png"]
    assert look(pictures, read)[1] == []


def test_data_refresh_and_retrain_look_so_and_force_reads_all(pictures, read):
    limits = "limits: {fetch_gigabytes: 1, fetch_hours: 1, files: 10, gigabytes: 1, ratio: 10}"
    Path("params.yaml").write_text(f"download: {{source: pictures, digest: null, {limits}}}\n")
    counts = []
    for reads_all in (False, False, True):
        read.clear()
        refresh(reads_all)
        counts.append(len(read))
    assert counts == [6, 0, 6]


@pytest.fixture
def download(tmp_path, pictures, read):
    """Run the stage as DVC does, which keeps its outs and removes them before: the files that were read, and the bytes of the outs."""

    def run_once():
        digest = folder_digest(pictures, folder_members(pictures, LIMITS))
        raw, source_json = tmp_path / "data/raw", tmp_path / "data/source.json"
        shutil.rmtree(raw, ignore_errors=True)
        read.clear()
        run(Params(source="pictures", digest=digest, url_mirrors=[], encoding=None, limits=LIMITS), raw, source_json)
        found = {path.name: path.read_bytes() for path in sorted(raw.iterdir())}
        listing = [{"relpath": name, "md5": cached(content)} for name, content in found.items()]
        lock = {"stages": {"download": {"outs": [{"path": str(raw), "md5": cached(json.dumps(listing).encode(), ".dir")}]}}}
        Path("dvc.lock").write_text(json.dumps(lock))
        return sorted(read), [source_json.read_bytes(), found]

    return run_once


def cached(content, ending=""):
    """Put a file into DVC's cache; its name there."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + ending
    path = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


def test_the_stage_download_reads_no_file_of_a_folder_that_it_packed_before(download):
    found, outs = download()
    assert found == NAMES
    assert download() == ([], outs)


def test_the_stage_packs_the_shards_anew_that_changed(pictures, download, monkeypatch):
    monkeypatch.setattr(shards, "_MOST", 2)
    download()
    write(pictures / "ants/1.png", b"another", OLD_NS)
    (changed,) = [names for names in shards.assign_shards(NAMES).values() if "ants/1.png" in names]
    assert len(changed) < len(NAMES)
    assert download()[0] == sorted(changed)


def test_the_stage_packs_a_changed_folder(pictures, download):
    _, outs = download()
    write(pictures / "ants/1.png", b"another", OLD_NS)
    found, changed = download()
    assert (found, changed != outs) == (NAMES, True)
    assert download() == ([], changed)


def test_a_folder_that_changed_after_its_digest_was_pinned_is_refused(tmp_path, pictures, download):
    download()
    digest = folder_digest(pictures, folder_members(pictures, LIMITS))
    write(pictures / "ants/1.png", b"another", OLD_NS)
    params = Params(source="pictures", digest=digest, url_mirrors=[], encoding=None, limits=LIMITS)
    with pytest.raises(PipelineError, match=r"params\.yaml pins download\.digest"):
        run(params, tmp_path / "data/raw", tmp_path / "data/source.json")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"code": 3, "shards": 4}'])
@pytest.mark.parametrize("name", [".cache/sums/packed.json", "dvc.lock", ".dvc/cache/files/md5/*/*.dir", ".dvc/cache/files/md5/*/*[!r]"])
def test_where_a_shard_of_the_last_run_is_damaged_or_not_known_it_is_packed_again(download, name, content):
    _, outs = download()
    [path] = Path().glob(name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert download() == (NAMES, outs)
    assert download() == ([], outs)


def test_other_code_packs_anew(download, monkeypatch):
    download()
    monkeypatch.setattr(shards, "code_digest", lambda _: "of other code")
    assert download()[0] == NAMES
