"""What tests of networks share: backbones of random weights, each built once, and their folders."""

import copy
from functools import lru_cache

import pytest
import torch

from pipeline.networks import zoo
from pipeline.networks.classifier import headless
from pipeline.stages import backbone as backbone_stage


@pytest.fixture(scope="session")
def backbone_of():
    """Return a backbone of random weights, of its own for each caller, in eval mode."""

    @lru_cache
    def build(name):
        architecture = zoo.find_architecture(name)
        torch.manual_seed(0)
        return headless(zoo.build(architecture), architecture).eval()

    return lambda name: copy.deepcopy(build(name))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return the folder that the stage `backbone` writes for a network of random weights; nobody may write into it."""

    @lru_cache
    def write(name):
        folder = tmp_path_factory.mktemp("models") / "backbone"
        backbone_stage.run(backbone_stage.Params(seed=0, name=name, weights="none", digest=None), folder)
        return folder

    return write
