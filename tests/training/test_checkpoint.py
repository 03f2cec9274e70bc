"""A run that is killed anywhere and started again ends with the bits of one that nothing disturbed."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.core import hardware
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.training import loop
from pipeline.training.checkpoint import Checkpoint, find_checkpoint
from tests.recipes import trainer_of

ROOT = Path(__file__).parent.parent.parent
EPOCHS = 4
VAL = [(torch.randint(0, 256, (6, 8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8), torch.tensor([0, 1] * 3))]


class Killed(BaseException):
    """A kill as far as a test in one process can have it."""


class NoisyPictures(Dataset):
    """Pictures that are varied by every global generator of random numbers."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.randint(0, 20, (8, 8, 3)) + random.randrange(20) + int(np.random.randint(20))
        return (noise + 150 * (index % 2)).to(torch.uint8), index % 2


def build(seed):
    """A network with dropout and its batches; the seed decides everything that is random in them."""
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)
    batches = DataLoader(NoisyPictures(), 4, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return model, batches


def make_trainer(seed=0, learning_rate=0.05, patience=9, channels_last=False):
    model, batches = build(seed)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    changes = {"epochs": EPOCHS, "learning_rate": learning_rate, "label_smoothing": 0.05, "patience": patience}
    return trainer_of(model, batches, VAL, **changes)


def train(path, kill_at=None, seed=0, rows=None, **settings):
    """Train from the seed, or from the checkpoint; return the history and the weights."""
    torch.set_num_threads(1)  # whatever tests before this one left
    trainer = make_trainer(seed, channels_last=True, **settings)

    def log(row):
        if row["epoch"] == kill_at:
            raise Killed
        if rows is not None:
            rows.append(row)

    history = loop.train(trainer, log, Checkpoint(path))
    return history, {name: tensor.numpy().tobytes() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small" / "key.pt"


@pytest.fixture
def written(path):
    """A checkpoint after epoch 1, and what wrote it."""
    with pytest.raises(Killed):
        train(path, kill_at=2)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed") / "key.pt")


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_run_that_was_killed_in_an_epoch_ends_with_the_same_bits(path, undisturbed, epoch):
    with pytest.raises(Killed):
        train(path, kill_at=epoch)
    assert train(path, seed=99) == undisturbed  # another seed: nothing of the second start is left


def test_a_run_that_was_killed_before_the_first_checkpoint_starts_over(path, undisturbed):
    with pytest.raises(Killed):
        train(path, kill_at=0)
    assert not path.exists()
    assert train(path) == undisturbed


def test_a_run_that_was_killed_in_every_epoch_ends_with_the_same_bits(path, undisturbed):
    for epoch in range(EPOCHS + 1):
        with pytest.raises(Killed):
            train(path, kill_at=epoch)
    assert train(path, seed=99) == undisturbed


def test_a_run_that_was_killed_after_its_last_epoch_trains_no_more(path, undisturbed, monkeypatch):
    train(path)
    monkeypatch.setattr("pipeline.training.loop.train_epoch", None)
    assert train(path, seed=99) == undisturbed


def test_early_stopping_stops_where_it_would_have(tmp_path):
    settings = {"learning_rate": 0.2, "patience": 2}
    wanted = train(tmp_path / "undisturbed.pt", **settings)
    assert 2 < len(wanted[0]) <= EPOCHS  # early, and not at once
    for epoch in range(1, len(wanted[0])):
        with pytest.raises(Killed):
            train(tmp_path / f"{epoch}.pt", kill_at=epoch, **settings)
        assert train(tmp_path / f"{epoch}.pt", seed=99, **settings) == wanted


def test_a_run_that_was_killed_after_it_stopped_early_trains_no_more(path):
    settings = {"learning_rate": 0.2, "patience": 2}
    assert train(path, **settings) == train(path, seed=99, **settings)


SIGKILL_BEFORE_RENAME = f"""
import os, signal, sys
from pathlib import Path
from tests.training.test_checkpoint import train
renames = iter(range(9))
rename = Path.replace
Path.replace = lambda *paths: rename(*paths) if next(renames) < 2 else os.kill(os.getpid(), {int(signal.SIGKILL)})
train(Path(sys.argv[1]))
"""


def test_a_kill_between_the_write_and_the_rename_costs_that_epoch_alone(path, undisturbed, capsys):
    killed = subprocess.run([sys.executable, "-c", SIGKILL_BEFORE_RENAME, str(path)], cwd=ROOT, check=False)
    assert (killed.returncode, len(list(path.parent.iterdir()))) == (-signal.SIGKILL, 2)
    assert train(path, seed=99) == undisturbed
    assert capsys.readouterr().err == "small: resumes after epoch 1 of 4\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_run_that_goes_on_says_so(written, capsys):
    train(written)
    assert capsys.readouterr().err == "small: resumes after epoch 1 of 4\n"


def test_a_run_that_starts_says_nothing(path, capsys):
    train(path)
    assert capsys.readouterr() == ("", "")


def test_the_rows_of_a_run_that_goes_on_are_logged_from_the_start(written):
    rows = []
    history, _ = train(written, rows=rows)
    assert rows == history


def test_the_best_weights_that_come_back_are_not_those_that_are_trained(written):
    trainer = make_trainer()
    Checkpoint(written).restore(trainer)
    best = trainer.stopping.weights
    before = {name: tensor.clone() for name, tensor in best.items()}
    for tensor in trainer.model.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(best[name], before[name]) for name in before)
    assert before["head.weight"].any()


def test_weights_keep_their_layout_in_memory(written):
    trainer = make_trainer(channels_last=True)
    Checkpoint(written).restore(trainer)
    weight = trainer.model.backbone.network[0].weight
    layouts = [weight, trainer.stopping.weights["backbone.network.0.weight"], trainer.optimiser.state[weight]["exp_avg"]]
    assert [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in layouts] == [True] * 3


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpus_random_state_comes_back(path, monkeypatch, device):
    stood, seen = torch.arange(5, dtype=torch.uint8), []
    if device == "cuda":
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [stood])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", seen.extend)
    else:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: stood)
        monkeypatch.setattr(torch.mps, "set_rng_state", seen.append)
    Checkpoint(path).write(make_trainer(), [{"epoch": 0}])
    Checkpoint(path).restore(make_trainer())
    assert [state.tolist() for state in seen] == [stood.tolist()]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_the_weights(path):
    content = bytearray(path.read_bytes())
    state = torch.load(path, weights_only=True)
    content[content.find(state["model"]["head.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def put_another_runs_in_its_place(path):
    train(path.with_stem("another"))
    path.with_stem("another").replace(path)


def put_a_bare_tensor_in_its_place(path):
    torch.save(torch.zeros(3), path)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def put_code_in_its_place(path):
    torch.save({"key": path.stem, "model": Evil()}, path)


def put_a_bare_pickle_in_its_place(path):
    path.write_bytes(pickle.dumps(Evil()))


@pytest.fixture(
    params=[
        truncate, flip_a_bit_of_the_weights, empty, put_another_runs_in_its_place, put_a_bare_tensor_in_its_place, put_code_in_its_place,
        put_a_bare_pickle_in_its_place,
    ]
)  # fmt: skip
def spoilt(request, written, monkeypatch):
    monkeypatch.chdir(written.parent.parent)
    request.param(written)
    return written


def test_training_starts_over_where_the_checkpoint_is_spoilt(spoilt, undisturbed):
    assert train(spoilt) == undisturbed


def test_a_spoilt_checkpoint_is_reported_in_one_line(spoilt, capsys):
    train(spoilt)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{spoilt}: is damaged")


def test_no_code_in_a_checkpoint_is_run(spoilt):
    train(spoilt)
    assert not Path("ran").exists()


def test_a_removed_checkpoint_is_gone(written):
    Checkpoint(written).remove()
    Checkpoint(written).remove()  # another process may have been faster
    assert list(written.parent.iterdir()) == []


def test_what_lies_beside_for_a_week_is_removed_and_nothing_else(written):
    names = ["young.pt", "old.pt", ".old.pt.4711.partial"]
    day = 24 * 3600
    for name, days in zip(names, (6.9, 7.1, 7.1), strict=True):
        written.with_name(name).touch()
        os.utime(written.with_name(name), (time.time() - days * day,) * 2)
    os.utime(written, (0, 0))
    Checkpoint(written).restore(make_trainer())
    assert sorted(file.name for file in written.parent.iterdir()) == ["key.pt", "young.pt"]


def test_a_checkpoint_lies_in_the_projects_cache_below_the_models_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = find_checkpoint("small", "0" * 64).path
    assert (path.parent, path.suffix, len(path.stem)) == (tmp_path / ".cache" / "checkpoints" / "small", ".pt", 64)


def test_one_run_has_one_checkpoint():
    assert find_checkpoint("small", "a") == find_checkpoint("small", "a")


def test_other_inputs_have_another_checkpoint():
    assert find_checkpoint("small", "a") != find_checkpoint("small", "b")


@pytest.mark.parametrize("package", ["torch", "torchvision", "timm"])
def test_another_version_has_another_checkpoint(monkeypatch, package):
    before = find_checkpoint("small", "a")
    version = hardware.version
    monkeypatch.setattr(hardware, "version", lambda name: "0.0" if name == package else version(name))
    assert find_checkpoint("small", "a") != before


def test_another_architecture_has_another_checkpoint(monkeypatch):
    before = find_checkpoint("small", "a")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert find_checkpoint("small", "a") != before


def test_a_processor_of_other_skills_has_another_checkpoint(monkeypatch):
    before = find_checkpoint("small", "a")
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {}})
    assert find_checkpoint("small", "a") != before


def test_another_gpu_has_another_checkpoint(monkeypatch):
    monkeypatch.setattr(hardware, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"first-{number}")
    before = find_checkpoint("small", "a")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"second-{number}")
    assert find_checkpoint("small", "a") != before
