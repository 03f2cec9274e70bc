"""Files that are written whole or not at all, checksums, JSON and tables that are read back unchanged."""

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest

from pipeline.core.files import (
    atomic_dir,
    atomic_file,
    cache_dir,
    is_running,
    process_space,
    project_root,
    read_json,
    read_table,
    sha256_of,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_table,
)


class StopError(Exception):
    """What the tests raise inside a block."""


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("one")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "one"


def test_a_file_leaves_nothing_beside_it(tmp_path):
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    assert names_below(tmp_path) == ["a.txt"]


def test_a_file_keeps_its_old_content_when_the_block_raises(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(StopError), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise StopError
    assert (names_below(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "old")


def test_a_new_file_is_not_there_when_the_block_raises(tmp_path):
    with pytest.raises(StopError), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise StopError
    assert names_below(tmp_path) == []


def test_a_block_that_writes_no_file_is_a_fault(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").touch()
        assert names_below(tmp_path / "d") == ["old"]
    assert names_below(tmp_path) == ["d", "d/sub", "d/sub/new"]


def test_a_folder_keeps_its_old_content_when_the_block_raises(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(StopError), atomic_dir(tmp_path / "d") as partial:
        (partial / "new").touch()
        raise StopError
    assert names_below(tmp_path) == ["d", "d/old"]


def test_a_folder_does_not_keep_what_a_killed_process_left(tmp_path):
    with pytest.raises(StopError), atomic_dir(tmp_path / "d") as partial:
        raise StopError
    partial.mkdir()
    (partial / "stale").touch()
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "new").touch()
    assert names_below(tmp_path) == ["d", "d/new"]


def test_a_file_does_not_keep_what_a_killed_process_of_the_same_number_left(tmp_path):
    (tmp_path / f".a.txt.{process_space()}-{os.getpid()}.partial").touch()
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass
    assert names_below(tmp_path) == []


def test_a_folder_is_not_there_half_removed_while_a_new_one_takes_its_place(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    seen = []
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **settings: (seen.append(names_below(tmp_path / "d")), remove(path, **settings)))
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "new").touch()
    assert seen == [["new"]]


def test_a_file_is_replaced_by_a_folder(tmp_path):
    (tmp_path / "d").touch()
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "new").touch()
    assert names_below(tmp_path) == ["d", "d/new"]


@pytest.fixture
def synced(tmp_path, monkeypatch):
    """What was synced to the disk, in order, and whether `out` existed by then."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_ino, (tmp_path / "out").exists())) or 0)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_block_ends(tmp_path, synced):
    with atomic_file(tmp_path / "out") as partial:
        partial.touch()
    assert synced == [((tmp_path / "out").stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_folder_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_block_ends(tmp_path, synced):
    with atomic_dir(tmp_path / "out") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").touch()
    inside = {((tmp_path / name).stat().st_ino, False) for name in ("out", "out/sub", "out/sub/a")}
    assert (set(synced[:-1]), synced[-1]) == (inside, (tmp_path.stat().st_ino, True))


def write_many(path):
    with atomic_dir(path) as partial:
        for number in range(100):
            (partial / str(number)).touch()


def test_many_files_are_on_the_disk_by_one_call_before_their_folder_has_its_name(tmp_path, monkeypatch, synced):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syncfs=os.fsync))
    write_many(tmp_path / "out")
    assert synced == [((tmp_path / "out").stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_many_files_are_synced_one_by_one_where_the_system_has_no_such_call(tmp_path, monkeypatch, synced):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    write_many(tmp_path / "out")
    assert len(synced) == 102


def test_many_files_that_do_not_reach_the_disk_are_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syncfs=lambda _: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match=r"Input/output error.*out"):
        write_many(tmp_path / "out")
    assert names_below(tmp_path) == []


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize("name", [f".d.{process_space()}-{{}}{end}" for end in (".partial", ".old.partial", ".partial-journal")])
@pytest.mark.parametrize("write", [atomic_file, atomic_dir])
def test_what_killed_processes_left_vanishes_when_the_same_is_written_again(tmp_path, gone, write, name):
    (tmp_path / name.format(gone)).mkdir()
    (tmp_path / name.format(gone) / "stale").touch()
    with write(tmp_path / "d"):
        assert [left for left in names_below(tmp_path) if str(gone) in left] == []
        (tmp_path / f".d.{process_space()}-{os.getpid()}.partial").touch()


def test_a_killed_processs_file_vanishes_too(tmp_path, gone):
    (tmp_path / f".d.{process_space()}-{gone}.partial").touch()
    with atomic_dir(tmp_path / "d"):
        pass
    assert names_below(tmp_path) == ["d"]


@pytest.mark.parametrize("write", [atomic_file, atomic_dir])
def test_what_a_living_process_writes_is_left_alone(tmp_path, write):
    other = f".d.{process_space()}-{os.getppid()}.partial"
    (tmp_path / other).touch()
    with write(tmp_path / "d"):
        (tmp_path / f".d.{process_space()}-{os.getpid()}.partial").touch()
    assert names_below(tmp_path) == [other, "d"]


@pytest.mark.parametrize(
    "name", [*(f"{start}{process_space()}-{{}}.partial" for start in (".e.", ".d.txt.", ".d.1.", "d.", ".dx")), ".d.partial"]
)
def test_temporary_files_of_other_paths_are_left_alone(tmp_path, gone, name):
    (tmp_path / name.format(gone)).touch()
    with atomic_file(tmp_path / "d") as partial:
        partial.touch()
    assert names_below(tmp_path) == sorted(["d", name.format(gone)])


@pytest.mark.parametrize("write", [atomic_file, atomic_dir])
def test_what_another_machine_or_container_writes_is_left_alone_for_a_day(tmp_path, gone, write):
    young, old = (tmp_path / f".d.{space}-{gone}.partial" for space in ("0123abcd", "4567cdef"))
    for path in (young, old):
        path.touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    with write(tmp_path / "d"):
        (tmp_path / f".d.{process_space()}-{os.getpid()}.partial").touch()
    assert names_below(tmp_path) == [young.name, "d"]


def test_this_process_is_running():
    assert is_running(os.getpid())


def test_a_process_that_ended_is_not_running(gone):
    assert not is_running(gone)


def test_somebody_elses_process_is_running(monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert is_running(1)


def test_the_digest_of_bytes_is_sha256():
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_value_is_that_of_its_canonical_json():
    assert sha256_of_json({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,null]}').hexdigest()


def test_a_value_is_read_back_from_json(tmp_path):
    value = {"ä": [1, 0.1, None, True], "b": {"c": "d"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_is_indented_utf_8(tmp_path):
    write_json(tmp_path / "a.json", {"ä": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "ä": 1\n}\n'.encode()


def test_a_nan_is_refused_and_the_old_json_stays(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert (names_below(tmp_path), read_json(tmp_path / "a.json")) == (["a.json"], 1)


def test_a_table_is_plain_csv(tmp_path):
    write_table(tmp_path / "t.csv", ["n", "b"], [{"n": 1, "b": "x"}, {"b": "y,z", "n": None}])
    assert (tmp_path / "t.csv").read_bytes() == b'n,b\n1,x\n,"y,z"\n'


@pytest.mark.parametrize(
    "name", ["", " x ", "a,b", 'a"b', '"', "a\nb", "a\rb", "a\r\nb", "ä 猫.png", "\\", "'", ";", "#a", "a\tb", "\ufeffa"]
)
def test_an_odd_name_is_read_back_from_a_table(tmp_path, name):
    write_table(tmp_path / "t.csv", ["name", "reason"], [{"name": name, "reason": "z"}])
    assert read_table(tmp_path / "t.csv") == [{"name": name, "reason": "z"}]


def test_a_column_that_the_header_lacks_is_refused_and_the_old_table_stays(tmp_path):
    write_table(tmp_path / "t.csv", ["a"], [{"a": "1"}])
    with pytest.raises(ValueError, match="fields not in fieldnames: 'b'"):
        write_table(tmp_path / "t.csv", ["a"], [{"a": "2", "b": "3"}])
    assert (names_below(tmp_path), read_table(tmp_path / "t.csv")) == (["t.csv"], [{"a": "1"}])


def test_the_root_is_the_one_that_dvc_names(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "named"))
    assert (project_root(), cache_dir("store")) == (tmp_path / "named", tmp_path / "named" / ".cache" / "store")


def test_the_root_is_the_nearest_folder_upwards_with_a_dvc_yaml(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert project_root() == tmp_path.resolve()


def test_the_partial_file_is_in_the_same_folder(tmp_path):
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.touch()
        assert partial.parent == tmp_path
