"""The digest of a folder reads only files that changed since the last look. Reads are counted."""

import os
import time
from pathlib import Path

import pytest

from pipeline.commands.upkeep import refresh
from pipeline.core.files import cache_dir
from pipeline.sources import folders
from pipeline.sources.archives import digest_of
from pipeline.sources.folders import FolderFile, folder_digest, folder_members
from pipeline.sources.members import Limits

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
