"""The named datasets: addresses and checksums as torchvision states them, without torch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.sources.source import NAMED
from tests.conftest import ROOT

DATASETS = Path(importlib.util.find_spec("torchvision").origin).parent / "datasets"
MODULES = {
    "mnist": "mnist",
    "fashion_mnist": "mnist",
    "flowers102": "flowers102",
    "oxford_iiit_pet": "oxford_iiit_pet",
    "food101": "food101",
    "eurosat": "eurosat",
}


@pytest.mark.parametrize("name", MODULES)
def test_addresses_and_checksums_are_those_of_torchvision(name):
    stated = (DATASETS / f"{MODULES[name]}.py").read_text()
    for file in NAMED[name].files:
        folder = file.url.removesuffix(file.name)
        assert file.url in stated or (folder in stated and f'"{file.name}", "{file.md5}"' in stated)
        assert f'"{file.md5}"' in stated


# As https://www.cs.toronto.edu/~kriz/cifar.html states them of the binary versions.
@pytest.mark.parametrize(
    ("name", "md5"), [("cifar10", "c32a1d4ab5d03f1284b67883e8d87530"), ("cifar100", "03b5dce01913d631647c71ecec9e9cb8")]
)
def test_cifar_comes_from_the_folder_that_torchvision_names_but_not_as_a_pickle(name, md5):
    (file,) = NAMED[name].files
    stated = (DATASETS / "cifar.py").read_text()
    assert file.url.replace("binary", "python") in stated
    assert file.md5 == md5
    assert f'"{md5}"' not in stated


@pytest.mark.parametrize("name", NAMED)
def test_of_several_files_each_has_a_checksum_and_a_name_of_its_own(name):
    files = NAMED[name].files
    assert len({file.name for file in files}) == len(files)
    assert len(files) < 2 or all(file.md5 for file in files)


@pytest.mark.parametrize("name", NAMED)
def test_a_licence_is_stated(name):
    assert NAMED[name].licence


def test_the_classes_of_fashion_mnist_are_those_of_torchvision():
    stated = (DATASETS / "mnist.py").read_text()
    names = NAMED["fashion_mnist"].read.keywords["class_names"]
    assert f"classes = {[name.replace('_', '/') for name in names]}".replace("'", '"') in stated


def test_no_torch_is_needed():
    code = "import sys, pipeline.stages.download; print(sorted({'torch', 'torchvision', 'scipy', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
