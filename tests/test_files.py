"""Files that are written whole or not at all, sums worked by other means, tables that come back as they were."""

import hashlib

import pytest

from pipeline.files import (
    atomic_dir,
    atomic_file,
    cache_dir,
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


def test_a_folder_does_not_take_over_what_a_killed_process_left(tmp_path):
    with pytest.raises(StopError), atomic_dir(tmp_path / "d") as partial:
        raise StopError
    partial.mkdir()
    (partial / "stale").touch()
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "new").touch()
    assert names_below(tmp_path) == ["d", "d/new"]


def test_the_sum_of_bytes_is_sha256():
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_sum_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_sum_of_a_value_is_that_of_its_plainest_json():
    assert sha256_of_json({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,null]}').hexdigest()


def test_a_value_comes_back_from_json(tmp_path):
    value = {"ä": [1, 0.1, None, True], "b": {"c": "d"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_is_indented_text_of_utf_8(tmp_path):
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
def test_an_odd_name_comes_back_from_a_table(tmp_path, name):
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


def test_the_partial_file_lies_in_the_same_folder(tmp_path):
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.touch()
        assert partial.parent == tmp_path
