"""A project with pictures in the folder from which the user types commands, one of them broken, and networks with random weights."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main

NAMES = ["background", "ant", "Käfer"]


@pytest.fixture
def below(tmp_path, monkeypatch):
    """The folder of a project in which the user types commands, with pictures, one of them broken."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("threads: 1\n")
    below = tmp_path / "below"
    for number, name in enumerate(("in/b.png", "in/a.png", "in/c/a.png")):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)).save(below / name)
    (below / "broken.png").write_text("hello")
    monkeypatch.chdir(below)
    return below


@pytest.fixture
def ask(below, capsys, monkeypatch):
    """Type a command in that folder: its exit code, stdout and stderr."""

    def typed(*arguments, stdin=b""):
        monkeypatch.chdir(below)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield typed
    if threads is not None:
        sys.modules["torch"].set_num_threads(threads)


@pytest.fixture
def write_network(below):
    """Write the random weights of a network of torchvision with three classes, and their names."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    def write(model):
        torch.manual_seed(0)
        network = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=3)
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                if "cls_score.weight" in key:
                    tensor.mul_(300)  # so that scores lie far apart
                if "cls_score.bias" in key:
                    tensor[0] = -1e4  # the background
        save_file(network.state_dict(), below / "own.safetensors")
        (below / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")

    return write
