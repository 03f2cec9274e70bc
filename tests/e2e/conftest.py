"""Clones in which the default pipeline has run, shared by all that looks at one."""

import re
import shutil
from pathlib import Path

import pytest

_SHARE_A_CLONE = ("test_digits", "test_readme")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With several workers one runs all tests of a file, and of the files that share a clone."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            group = "clone" if item.path.stem in _SHARE_A_CLONE else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))


def stages_run(output: str) -> list[str]:
    """The stages that a `dvc repro` ran, in their order."""
    return re.findall(r"^Running stage '(.+)':", output, re.MULTILINE)


@pytest.fixture(scope="session")
def digits(tmp_path_factory, clone, type_in):
    """A clone in which the pipeline ran once on the default data, and what the run printed."""
    folder = clone(tmp_path_factory.mktemp("digits") / "clone")
    return folder, type_in(folder, "dvc", "repro")


@pytest.fixture(scope="session")
def short(digits, tmp_path_factory, clone, type_in):
    """Another clone, with the outs of the first, after fine-tuning for one epoch instead of four; and what that printed."""
    folder = clone(tmp_path_factory.mktemp("short") / "clone")
    shutil.copy(digits[0] / "dvc.lock", folder)
    type_in(folder, "dvc", "config", "cache.dir", str(digits[0] / ".dvc/cache"))
    type_in(folder, "dvc", "repro")
    params = folder / "params.yaml"
    params.write_text(re.sub(r"epochs: auto", "epochs: 1", params.read_text()))
    return folder, type_in(folder, "dvc", "repro")
