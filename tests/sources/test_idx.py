"""IDX files: read as they were written, refused in one line if they are cut, false, or inconsistent."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.sources.formats import idx_members, read_idx
from tests.published_sets import idx, noise

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = st.tuples(*[st.integers(1, 6)] * 3)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def contents(**changed):
    """A set of two classes, four pictures a split; `images`, `labels`: what the train files hold instead."""
    files = {}
    for prefix in ("train", "t10k"):
        files[f"{prefix}-images-idx3-ubyte"] = idx(noise(prefix, 4, 5, 6))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.array([0, 1, 1, 0]))
    return files | {{"images": IMAGES, "labels": LABELS}[key]: content for key, content in changed.items()}


@PROPERTY
@given(shape=SHAPES)
def test_an_array_is_read_as_it_was_written(published, shape):
    array = noise("array", *shape)
    assert np.array_equal(read_idx(published({"a": idx(array)}), "a", 3), array)


@PROPERTY
@given(shape=SHAPES, data=st.data())
def test_a_file_that_is_cut_anywhere_is_refused(published, shape, data):
    content = idx(noise("array", *shape))
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(PipelineError):
        read_idx(published({"a": content[:cut]}), "a", 3)


@PROPERTY
@given(content=st.binary(max_size=40) | st.builds(lambda rest: b"\0\0\x08\x03" + rest, st.binary(max_size=40)))
def test_any_bytes_are_an_array_or_refused(published, content):
    try:
        array = read_idx(published({"a": content}), "a", 3)
    except PipelineError:
        return
    assert content == idx(array)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0\x08", id="cut in the magic number"),
        pytest.param(b"\0\0\x08\x03\0\0\0\1", id="cut in the sizes"),
        pytest.param(b"\0\0\x08\x01" + bytes(20), id="one dimension"),
        pytest.param(b"\0\0\x0d\x03" + bytes(20), id="floats"),
        pytest.param(b"\x03\x08\0\0" + bytes(20), id="the other byte order"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(20), id="a picture"),
    ],
)
def test_a_file_that_begins_otherwise_is_refused(fault_of, start):
    assert fault_of(read_idx, {"a": start}, "a", 3) == "'a' does not begin like an IDX file of bytes, 3-dimensional"


@pytest.mark.parametrize(
    ("shape", "values", "claim"),
    [
        ((2, 3, 4), 23, "2 x 3 x 4 values and has 23"),
        ((2, 3, 4), 25, "2 x 3 x 4 values and has 25"),
        ((0, 3, 4), 0, "0 x 3 x 4 values and has 0"),
        ((2**32 - 1, 0, 28), 0, "4294967295 x 0 x 28 values and has 0"),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), 1, "4294967295 x 4294967295 x 4294967295 values and has 1"),
    ],
)
def test_a_file_that_claims_other_sizes_than_it_holds_is_refused(fault_of, shape, values, claim):
    content = struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(values)
    assert fault_of(read_idx, {"a": content}, "a", 3) == f"'a' claims {claim}"


def test_pictures_lie_in_their_splits_and_classes_in_the_files_order(published):
    assert list(idx_members(published(contents()), ["cat", "dog"])) == [
        f"{split}/{label}/{number:05d}.png" for split in ("train", "test") for number, label in enumerate(["cat", "dog", "dog", "cat"])
    ]


def test_labels_and_pictures_that_disagree_in_number_are_refused(fault_of):
    assert fault_of(idx_members, contents(labels=idx(np.zeros(3))), ["cat", "dog"]) == f"'{LABELS}' contains 3 labels for 4 pictures"


def test_a_label_outside_the_classes_is_refused(fault_of):
    found = fault_of(idx_members, contents(labels=idx(np.array([0, 1, 2, 0]))), ["cat", "dog"])
    assert found == f"'{LABELS}' contains the label 2, but there are 2 classes"


@pytest.mark.parametrize("name", contents())
def test_a_file_that_is_missing_is_named(fault_of, name):
    assert fault_of(idx_members, {other: content for other, content in contents().items() if other != name}, "01") == f"'{name}' is missing"


def test_pictures_in_the_place_of_labels_are_refused(fault_of):
    found = fault_of(idx_members, contents(labels=contents()[IMAGES]), "01")
    assert found == f"'{LABELS}' does not begin like an IDX file of bytes, 1-dimensional"
