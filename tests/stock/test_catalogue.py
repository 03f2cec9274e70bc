"""The catalogue: names that contain a text, sizes from torchvision or by counting."""

import pytest

from pipeline.networks import zoo
from pipeline.stock import networks as catalogue
from pipeline.stock.networks import ModelListing, find_names, list_entries


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A project's root, with nothing in its store."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_names_of_both_libraries_are_found_by_a_part():
    assert find_names("ResNet18", None) == [
        "resnet18",
        "legacy_seresnet18",
        "timm/resnet18",
        "resnet18d",
        "seresnet18",
        "skresnet18",
    ]


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_may_be_asked_alone(library):
    names = find_names("resnet18", library)
    assert ("resnet18" in names, "timm/resnet18" in names) == (library == "torchvision", library == "timm")


def test_every_name_of_timms_that_torchvision_has_too_asks_timm():
    names = find_names("", None)
    assert len(set(names)) == len(names) == len(zoo.torchvision_names()) + len(zoo.timm_names())


def test_torchvision_publishes_sizes():
    assert list(list_entries(["resnet18"])) == [
        ModelListing("resnet18", "torchvision", 11689512, 1.814, 224, "BSD-3-Clause", "pytorch", "-"),
    ]


def test_timms_are_counted():
    (entry,) = list_entries(["timm/resnet18"])
    assert entry == ModelListing("timm/resnet18", "timm", 11689512, pytest.approx(1.814, abs=2e-3), 224, "apache-2.0", "github", "-")


def test_many_of_timms_are_not_counted(monkeypatch):
    monkeypatch.setattr(catalogue, "_COUNTED", 1)
    entries = list(list_entries(["timm/resnet18", "resnet18d", "resnet18"]))
    assert [(entry.parameters, entry.gmacs) for entry in entries] == [(None, None), (None, None), (11689512, 1.814)]


def test_a_packaged_model_is_on_this_disk():
    assert [entry.disk for entry in list_entries(["tf_efficientnet_lite1", "tf_efficientnet_lite3"])] == ["packaged", "-"]


def test_a_file_in_the_store_is_known_by_the_digits_in_its_name(root):
    digits = zoo.torchvision_weights("resnet18").url.rpartition("-")[2].removesuffix(".pth")
    (root / ".cache/store").mkdir(parents=True)
    (root / ".cache/store" / digits.ljust(64, "0")).touch()
    assert [entry.disk for entry in list_entries(["resnet18"])] == ["in store"]


def test_a_network_that_nobody_publishes_has_no_licence():
    (entry,) = list_entries(["seresnet18"])
    assert (entry.licence, entry.source) == ("-", "-")
