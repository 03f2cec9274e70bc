"""Clones with 400 of the digits, a tiny network and three epochs: one in which nothing has run, one in which all stages ran."""

from pathlib import Path

import pytest

from tests.checkout import clone, commit, copy, set_params, type_in, write_digits
from tests.repro import stages_run

EPOCHS = 3  # training can be killed between two of them


def write_weights(path: Path) -> str:
    """Write random weights of the tiny network, and return the sha256 of the file: a seed does not change such a backbone."""
    import timm
    import torch
    from safetensors.torch import save_file

    from pipeline.core.files import sha256_of_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), path)
    return sha256_of_file(path)


def prepare(folder: Path) -> str:
    """Write the pictures, the weights and a clone that uses both."""
    write_digits(folder / "pictures", range(400))
    clone(folder / "clone")
    backbone = {"name": "test_resnet", "weights": "../test_resnet.safetensors", "digest": write_weights(folder / "test_resnet.safetensors")}
    training = {"regime": "finetuned", "epochs": EPOCHS}
    changes = {"threads": 1, "download.source": "../pictures", "backbone": backbone, "embed.image_size": 32, "models.finetuned": training}
    set_params(folder / "clone", changes)
    printed = type_in(folder / "clone", "pipeline", "data", "refresh")
    commit(folder / "clone", "400 digits")
    return printed


@pytest.fixture(scope="session")
def fresh(once):
    """The folder of pictures, weights and a clone in which nothing has run. Copy it before you change it."""
    return once("fresh", prepare)[0]


@pytest.fixture(scope="session")
def digits(once, fresh):
    """A clone in which the pipeline ran once, and what that printed. It is never changed: type commands in a copy."""

    def run(folder):
        copy(fresh, folder)
        printed = type_in(folder / "clone", "dvc", "repro")
        commit(folder / "clone", "ran")
        return printed

    folder, printed = once("digits", run)
    return folder / "clone", printed


@pytest.fixture(scope="session")
def copy_of_digits(digits, tmp_path_factory):
    """Copy the clone in which the pipeline ran, its pictures and weights beside it; returns the copied clone."""
    return lambda: copy(digits[0].parent, tmp_path_factory.mktemp("copy") / "digits") / "clone"


@pytest.fixture(scope="session")
def all_stages(digits):
    """The names of all stages, in the order in which they ran."""
    return stages_run(digits[1])
