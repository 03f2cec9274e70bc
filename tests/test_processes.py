"""`processes: N`: the stages `train` and `embed` under torchrun, with gloo on the CPU, end as they do in one process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.core import processes
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table
from tests.checkout import ROOT
from tests.projects import NOBODY, PARAMS, TREES, enter, train_by

# There are 12 training pictures. Of the third batch of 5, with 2 pictures, the first of three processes has none.
MODELS = {
    "whole": {"regime": "finetuned", "batch_size": 5, "accumulate": 2, "clip_norm": 1.0, "ema": 0.9, "balance": "loss"},
    "gradual": {"regime": "gradual", "batch_size": 5, "balance": "sampling"},
    "partial": {"regime": "partial", "batch_size": 3},
    "scratch": {"regime": "scratch"},
}
COUNTS = {"whole": 2, "gradual": 3, "partial": 2}
FILES = ("model.onnx", "model.safetensors", "model.json", "history.csv")


@pytest.fixture(scope="module")
def project(small_project, tmp_path_factory):
    """A copy of the small project, which is the current folder."""
    folder = tmp_path_factory.mktemp("processes") / "project"
    shutil.copytree(small_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield folder


def write_params(count):
    Path("params.yaml").write_text(yaml.safe_dump({**PARAMS, "processes": count, "models": MODELS}))


def start(stage, *arguments):
    command = [sys.executable, "-m", f"pipeline.stages.{stage}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_training(name, count, folder):
    write_params(count)
    return start("train", "--model", name, *TREES, "models/backbone", "data/embeddings", "models/baseline", f"{folder}/{{model}}")


def end(stage):
    """The exit code of a stage, and the lines on its stderr but those on MLflow, which nobody serves."""
    out, err = stage.communicate(timeout=300)
    return SimpleNamespace(code=stage.returncode, out=out, lines=[line for line in err.splitlines() if not line.startswith("MLflow at ")])


def wait_until(is_so):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() != ""  # of a zombie it is empty
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def trained(project):
    """Train a model by several processes, once: its folder."""

    @cache
    def train(name):
        ended = end(start_training(name, COUNTS[name], "several"))
        assert (ended.code, ended.out, ended.lines) == (0, "", [])
        return project / "several" / name

    return train


def rows_of(path):
    """The figures of a history but the losses, as they are written, and the losses."""
    rows = read_table(path / "history.csv")
    return [{key: row[key] for key in row if "loss" not in key} for row in rows], [
        float(row[key]) for row in rows for key in row if "loss" in key and row[key]
    ]


@pytest.mark.parametrize("name", ["whole", *(pytest.param(name, marks=pytest.mark.slow) for name in ("partial", "gradual"))])
def test_several_processes_train_as_one_does(name, trained, project):
    write_params(1)
    train_by(name, f"one/{name}")
    folders = project / "one" / name, trained(name)
    (exact, losses), (exact_of_several, losses_of_several) = map(rows_of, folders)
    assert exact_of_several == exact
    assert losses_of_several == pytest.approx(losses, rel=1e-4)
    start, one, several = (load_file(folder / "model.safetensors") for folder in (project / "models/baseline", *folders))
    assert any((one[key] - start[key]).abs().max() > 1e-3 for key in one if one[key].is_floating_point())
    for key in one:
        torch.testing.assert_close(several[key], one[key], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_group_and_the_next_run_ends_with_the_same_bytes(trained, project):
    undisturbed = trained("partial")
    stage = start_training("partial", 2, "killed")
    checkpoints = project / ".cache/checkpoints/partial"
    wait_until(lambda: list(checkpoints.glob("*.pt")))
    ranks = children_of(stage.pid)
    os.kill(ranks[1], signal.SIGKILL)
    ended = end(stage)
    assert (ended.code, ended.lines) == (
        1, ["the process of rank 1 was ended by SIGKILL; run `dvc repro` again, it continues from there"]
    )  # fmt: skip
    assert [rank for rank in ranks if is_alive(rank)] == []

    stage = start_training("partial", 2, "killed")  # its launcher is killed, too
    wait_until(lambda: (project / ".cache/locks/killed_partial.pid").exists())
    ranks = children_of(stage.pid)
    stage.kill()
    wait_until(lambda: not any(map(is_alive, ranks)))
    stage.communicate()

    ended = end(start_training("partial", 2, "killed"))
    assert (ended.code, [line.split(" after epoch ")[0] for line in ended.lines]) == (0, ["partial: resumes"])
    for file in FILES:
        assert (project / "killed/partial" / file).read_bytes() == (undisturbed / file).read_bytes()


@pytest.mark.slow
def test_a_terminated_launcher_ends_its_processes_in_order(project):
    stage = start_training("whole", 2, "terminated")
    wait_until(lambda: (project / ".cache/locks/terminated_whole.pid").exists())
    ranks = children_of(stage.pid)
    stage.terminate()
    assert end(stage).code == 128 + signal.SIGTERM
    assert [rank for rank in ranks if is_alive(rank)] == []


def test_a_fault_that_all_processes_meet_is_one_line(project):
    ended = end(start_training("scratch", 2, "none"))
    line = "params.yaml: processes: without GPUs several cannot train BatchNorm; set batchnorm: frozen, or processes: 1"
    assert (ended.code, ended.out, ended.lines) == (1, "", [line])


def test_each_process_embeds_its_share_once_and_the_bytes_are_those_of_one(project):
    before = (project / "data/embeddings/features.npy").read_bytes()
    shutil.rmtree(project / ".cache/features")
    write_params(2)
    lines = [end(start("embed", *TREES, "models/backbone", name)).lines for name in ("cold", "warm")]
    assert lines == [["embed: 16 pictures embedded, 0 from the cache"], ["embed: 0 pictures embedded, 16 from the cache"]]
    assert len(list((project / ".cache/features").rglob("*.npy"))) == 2
    assert (project / "cold/features.npy").read_bytes() == (project / "warm/features.npy").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "rank", "master"),
    [("PET_NNODES", "PET_NODE_RANK", "PET_MASTER"), ("WORLD_SIZE", "RANK", "MASTER")],
    ids=["a launcher per machine", "no launcher"],
)
def test_machines_join_each_other_by_the_environment(size, rank, master, project, monkeypatch):
    write_params(2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for name, value in {size: "2", f"{master}_ADDR": "127.0.0.1", f"{master}_PORT": port}.items():
        monkeypatch.setenv(name, value)
    stages = []
    for number in ("0", "1"):
        monkeypatch.setenv(rank, number)
        stages.append(start("embed", *TREES, "models/backbone", f"joined/{size}"))
    first, second = map(end, stages)
    assert (first.code, len(first.lines), second.code, second.lines) == (0, 1, 0, [])
    features = [(project / folder / "features.npy").read_bytes() for folder in (f"joined/{size}", "data/embeddings")]
    assert features[0] == features[1]


def test_the_processes_of_one_machine_listen_on_loopback_alone(project):
    code = (
        "from pathlib import Path; from pipeline.core import processes\n"
        "if processes.must_launch(2): raise SystemExit(processes.launch(2))\n"
        "with processes.joined(2):\n"
        "    processes.wait_for_all()\n"
        "    import os; own = {each.resolve().name for pid in (os.getpid(), os.getppid()) for each in Path(f'/proc/{pid}/fd').iterdir()}\n"
        "    rows = [row.split() for name in ('tcp', 'tcp6') for row in Path('/proc/net', name).read_text().splitlines()[1:]]\n"
        "    print(*(row[1] for row in rows if row[3] == '0A' and f'socket:[{row[9]}]' in own))\n"
        "    processes.wait_for_all()"
    )
    listening = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert listening
    assert {address.partition(":")[0] for address in listening} == {"0100007F"}


def test_shares_follow_each_other_and_leave_nothing_out(monkeypatch):
    def shares(size, count):
        for rank in range(size):
            monkeypatch.setattr(processes, "_group", processes._Group(size, size, rank))
            yield list(range(count)[processes.share(count)])

    assert list(shares(2, 5)) == [[0, 1], [2, 3, 4]]
    assert list(shares(3, 2)) == [[], [0], [1]]


def test_an_environment_of_another_size_is_one_line(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert not processes.must_launch(2)
    with pytest.raises(PipelineError, match=r"^params\.yaml: processes: 2 is not WORLD_SIZE, which is 3; "), processes.joined(2):
        pass


def test_machines_have_equally_many_processes(monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    with pytest.raises(PipelineError, match=r"^params\.yaml: processes: 3 is not a multiple of the 2 machines "):
        processes.launch(3)
