"""Clones in which the default pipeline has run, shared by all that looks at one."""

import os
import re
import shutil

import pytest
from filelock import FileLock


def stages_run(output: str) -> list[str]:
    """The stages that a `dvc repro` ran, in their order."""
    return re.findall(r"^Running stage '(.+)':", output, re.MULTILINE)


@pytest.fixture(scope="session")
def digits(tmp_path_factory, clone, type_in):
    """A clone in which the pipeline ran once on the default data, for all workers, and what the run printed."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, printed = shared / "digits", shared / "digits.txt"
    with FileLock(shared / "digits.lock"):
        if not printed.exists():
            printed.write_text(type_in(clone(folder), "dvc", "repro"))
    return folder, printed.read_text()


@pytest.fixture(scope="session")
def short(digits, tmp_path_factory, clone, type_in):
    """Another clone, with the outs of the first, after fine-tuning for one epoch instead of four; and what that printed."""
    folder = clone(tmp_path_factory.mktemp("short") / "clone")
    shutil.copy(digits[0] / "dvc.lock", folder)
    type_in(folder, "dvc", "config", "cache.dir", str(digits[0] / ".dvc/cache"))
    type_in(folder, "dvc", "repro")
    type_in(folder, "git", "commit", "-qam", "ran", "--allow-empty")
    params = folder / "params.yaml"
    params.write_text(re.sub(r"epochs: auto", "epochs: 1", params.read_text()))
    return folder, type_in(folder, "dvc", "repro")
