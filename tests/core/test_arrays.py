"""Arrays on the disk: read back as they were, shared by processes, gone with them, and a full disk is an error."""

import multiprocessing
import os
import resource

import numpy as np
import pytest

from pipeline.core.arrays import ArrayFile, create_array, release
from pipeline.core.files import cache_dir

ARRAYS = [np.arange(6, dtype=np.uint8).reshape(2, 3), np.full((1, 4), 7, np.uint8), np.zeros((3, 0), np.uint8)]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def no_room():
    """No file may grow beyond a thousand bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_several_shapes_are_read_back_in_any_order(dtype):
    arrays = [each.astype(dtype) for each in ARRAYS]
    kept = ArrayFile(arrays)
    assert len(kept) == 3
    for index in (2, 0, 1, -1):
        assert kept[index].dtype == dtype
        np.testing.assert_array_equal(kept[index], arrays[index])


def test_an_array_that_is_not_in_the_order_of_its_rows_is_read_back():
    np.testing.assert_array_equal(ArrayFile([ARRAYS[0].T])[0], ARRAYS[0].T)


def test_there_is_no_array_beyond_the_last():
    with pytest.raises(IndexError):
        ArrayFile(ARRAYS)[3]


def test_a_change_of_what_was_read_changes_nothing_on_the_disk():
    kept = ArrayFile(ARRAYS)
    kept[0][:] = 9
    np.testing.assert_array_equal(kept[0], ARRAYS[0])


def test_only_one_array_at_a_time_is_asked_for():
    alive = []

    def draw():
        for number in range(3):
            alive.append(number)
            yield np.full(4, number)
            alive.remove(number)

    assert [each[0] for each in ArrayFile(draw())] == [0, 1, 2]
    assert alive == []


def test_the_file_has_no_name():
    kept = ArrayFile(ARRAYS)
    assert os.listdir(cache_dir("scratch")) == []
    assert len(kept) == 3


def test_forked_processes_read_the_same_arrays():
    kept = ArrayFile(ARRAYS)
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(target=lambda: found.put([each.tolist() for each in kept]))
    process.start()
    assert found.get() == [each.tolist() for each in ARRAYS]
    process.join()
    np.testing.assert_array_equal(kept[1], ARRAYS[1])


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path):
    with pytest.raises(OSError, match="File too large"):
        ArrayFile(np.zeros(400, np.uint8) for _ in range(4))
    with pytest.raises(OSError, match="File too large"):
        create_array(tmp_path / "a.npy", (100, 100))


def test_a_new_array_is_a_plain_file_with_room_for_all_of_it(tmp_path):
    rows = create_array(tmp_path / "a.npy", (1000, 100))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1000 * 100 * 4
    rows[3] = 1
    np.save(tmp_path / "b.npy", np.repeat(np.float32([0, 1, 0]), [300, 100, 99600]).reshape(1000, 100))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_what_was_written_outlives_the_release_of_its_pages(tmp_path):
    rows = create_array(tmp_path / "a.npy", (4, 2))
    rows[1:3] = 5
    release(rows[1:])
    assert rows.tolist() == np.load(tmp_path / "a.npy").tolist() == [[0, 0], [5, 5], [5, 5], [0, 0]]


def test_an_array_in_memory_is_not_released():
    rows = np.ones(3)
    release(rows)
    assert rows.tolist() == [1, 1, 1]
