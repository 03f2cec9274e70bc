"""A project's root, pictures, and networks with random weights in files."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.networks import zoo
from pipeline.stock.networks import NetworkRequest


@pytest.fixture(autouse=True)
def seeded():
    """Build networks with the same random weights, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The root of an empty project."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def make_picture():
    """A picture of that width and height: large patches of colours, and noise."""

    def make(width, height, seed=0):
        generator = np.random.default_rng(seed)
        patches = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-20, 20, (height, width, 3))
        return Image.fromarray((np.asarray(patches) + noise).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def random_weights():
    """The state dict of a new network, with random biases and BatchNorm statistics in place of 0 and 1."""

    def draw(network, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
        return network.eval().state_dict()

    return draw


@pytest.fixture
def own(root):
    """Write tensors to the user's own file, and request a network with them."""

    def write(model, state, metadata=None, **wanted):
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, root / "own.safetensors", metadata)
        return NetworkRequest(model, root, "own.safetensors", **wanted)

    return write


@pytest.fixture
def cpu():
    """Where the tests compute."""
    return torch.device("cpu")


@pytest.fixture
def published():
    """torchvision's best published weights of a model: their URL, their classes, how pictures are prepared."""
    return zoo.torchvision_weights
