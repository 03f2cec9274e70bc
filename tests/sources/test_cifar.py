"""CIFAR's binary version: whole records, known labels, and class names that are valid folders."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.formats import cifar10_members, cifar100_members
from tests.published_sets import cifar, noise

NAMES = "cifar-10-batches-bin/batches.meta.txt"
BATCH = "cifar-10-batches-bin/data_batch_3.bin"
PICTURES = noise("cifar", 2, 32, 32, 3)


def ten(**changed):
    """CIFAR-10 with two classes and two pictures a batch; of the names or the third batch what is changed."""
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {f"cifar-10-batches-bin/{name}.bin": cifar([0, 1], pictures=PICTURES) for name in batches}
    return files | {BATCH: changed.get("batch", files[BATCH]), NAMES: changed.get("names", b"cat\ndog\n\n")}


def hundred(coarse, fine):
    records = cifar(coarse, fine, pictures=PICTURES)
    files = {f"cifar-100-binary/{name}.bin": records for name in ("train", "test")}
    return files | {"cifar-100-binary/fine_label_names.txt": b"cat\ndog\n"}


def test_the_first_plane_is_red(published):
    record = bytes([0]) + b"\xff" * 1024 + bytes(2048)
    members = cifar10_members(published(ten(batch=record)))
    with Image.open(io.BytesIO(members["train/cat/00004.png"]())) as image:
        assert np.array_equal(np.asarray(image), np.full((32, 32, 3), [255, 0, 0]))


def test_numbers_go_on_from_batch_to_batch(published):
    members = cifar10_members(published(ten()))
    assert [name for name in members if name.startswith("train")] == [f"train/{('cat', 'dog')[n % 2]}/{n:05d}.png" for n in range(10)]


def test_of_two_labels_the_fine_one_is_the_class(published):
    members = cifar100_members(published(hundred([19, 7], [1, 0])))
    assert list(members) == ["train/dog/00000.png", "train/cat/00001.png", "test/dog/00000.png", "test/cat/00001.png"]


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 6145])
def test_a_batch_that_is_cut_is_refused(fault_of, size):
    found = fault_of(cifar10_members, ten(batch=bytes(size)))
    assert found == f"'{BATCH}' has {size} bytes, which is not a whole number of records of 3073"


def test_records_with_one_label_are_no_records_with_two(fault_of):
    files = hundred([0, 0], [0, 1]) | {"cifar-100-binary/train.bin": cifar([0, 1], pictures=PICTURES)}
    found = fault_of(cifar100_members, files)
    assert found == "'cifar-100-binary/train.bin' has 6146 bytes, which is not a whole number of records of 3074"


def test_a_label_outside_the_classes_is_refused(fault_of):
    found = fault_of(cifar10_members, ten(batch=cifar([0, 2], pictures=PICTURES)))
    assert found == f"'{BATCH}' contains the label 2, but there are 2 classes"


def test_a_set_without_class_names_is_refused(fault_of):
    assert fault_of(cifar10_members, ten(names=b"\n")).endswith("contains the label 1, but there are 0 classes")


def test_a_batch_that_is_missing_is_named(fault_of):
    files = ten()
    del files[BATCH]
    assert fault_of(cifar10_members, files) == f"'{BATCH}' is missing"
