"""Oxford 102 Flower: its MATLAB files name existing pictures and classes, or are refused in one line."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.sources.formats import FLOWER_NAMES, flower_members
from tests.published_sets import matlab

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def contents(labels=(1, 2, 102), train=(1,), **changed):
    """Three pictures, one a split."""
    splits = {"trnid": np.array([train], np.uint16), "valid": np.array([[2]], np.uint16), "tstid": np.array([[3]], np.uint16)}
    files = {f"jpg/image_{number:05d}.jpg": b"picture" for number in (1, 2, 3)}
    return files | {"imagelabels.mat": matlab(labels=np.array([labels], np.uint8)), "setid.mat": matlab(**splits)} | changed


def test_the_classes_are_named_as_torchvision_names_them():
    source = Path(importlib.util.find_spec("torchvision").origin).parent / "datasets" / "flowers102.py"
    tree = ast.parse(source.read_text())
    (names,) = (node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "classes")
    assert list(FLOWER_NAMES) == [name.removesuffix("?") for name in ast.literal_eval(names)]


def test_each_split_has_the_pictures_that_its_numbers_name(published):
    assert list(flower_members(published(contents()))) == [
        "train/pink primrose/image_00001.jpg",
        "val/hard-leaved pocket orchid/image_00002.jpg",
        "test/blackberry lily/image_00003.jpg",
    ]


def test_a_picture_stays_the_bytes_that_it_is(published):
    assert {read() for read in flower_members(published(contents())).values()} == {b"picture"}


@pytest.mark.parametrize("label", [0, 103, 255])
def test_a_label_outside_the_classes_is_refused(fault_of, label):
    found = fault_of(flower_members, contents(labels=(1, label, 2)))
    assert found == f"'imagelabels.mat' contains the label {label}, but there are 102 classes"


@pytest.mark.parametrize("number", [0, 4, 65535])
def test_a_picture_without_a_label_is_refused(fault_of, number):
    found = fault_of(flower_members, contents(train=(1, number)))
    assert found == f"'setid.mat' names picture {number}, but there are 3 labels"


def test_a_picture_that_is_missing_is_named(fault_of):
    assert fault_of(flower_members, contents(labels=(1, 2, 3, 4), train=(4,))) == "'jpg/image_00004.jpg' is missing"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>log in first</html>", id="a page"),
        pytest.param(matlab(labels=np.array([[1]], np.uint8))[:-10], id="cut"),
        pytest.param(matlab(other=np.array([[1]], np.uint8)), id="another name"),
        pytest.param(matlab(labels=np.array([[1.5]])), id="no whole numbers"),
        pytest.param(matlab(labels="one"), id="text"),
        pytest.param(matlab(labels={"a": 1}), id="a struct"),
        pytest.param(matlab(labels=np.array([1, "a"], dtype=object)), id="cells"),
        pytest.param(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), id="HDF5"),
    ],
)  # fmt: skip
def test_a_file_without_the_numbers_is_refused(fault_of, content):
    found = fault_of(flower_members, contents(**{"imagelabels.mat": content}))
    assert found == "'imagelabels.mat' is not a MATLAB file with whole numbers named labels"


def test_a_file_far_larger_than_its_numbers_is_not_read(fault_of):
    found = fault_of(flower_members, contents(**{"setid.mat": bytes((1 << 16) + 1)}))
    assert found == "'setid.mat' is larger than 64 KiB"


def test_more_numbers_than_files_are_refused_before_they_are_looked_at(fault_of):
    found = fault_of(flower_members, contents(labels=np.zeros(10_000_000)))
    assert found == "'imagelabels.mat' contains 10000000 numbers named labels, but there are 5 files"


@PROPERTY
@given(data=st.data())
def test_a_file_with_damaged_bytes_is_read_or_refused(published, data):
    content = bytearray(matlab(labels=np.array([[1, 2, 102]], np.uint8)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        members = flower_members(published(contents(**{"imagelabels.mat": bytes(content)})))
    except PipelineError:
        return
    assert {name.split("/")[1] for name in members} <= set(FLOWER_NAMES)
