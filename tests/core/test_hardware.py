"""Device, precision, threads and seeds."""

import os
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.core import hardware
from pipeline.core.hardware import choose_depthwise, choose_device, choose_precision, make_repeatable
from tests.checkout import ROOT


@pytest.fixture
def settings(monkeypatch):
    """torch's settings, put back afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set in the test is taken back
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_there_is_is_chosen(cuda, mps, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device() == torch.device(device)


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_precision_that_is_named_is_taken(wanted, device):
    assert choose_precision(wanted, torch.device(device)) == wanted


def test_auto_is_fp32_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp16")])
def test_auto_is_what_the_gpu_computes_in(supported, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == precision


def test_auto_on_this_cpu_is_one_of_the_two():
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


def test_auto_is_fp32_on_mps():
    assert choose_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("precision", "device"), [("fp32", "cpu"), ("fp16", "cpu"), ("fp32", "cuda"), ("bf16", "cuda")])
def test_depthwise_convolutions_compute_as_others_do_where_nothing_is_tried(precision, device, monkeypatch):
    monkeypatch.setattr(hardware, "_time_depthwise", None)
    assert choose_depthwise(precision, torch.device(device), 1) == precision


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(1.0, 2.0, "fp32"), (2.0, 1.0, "bf16")])
def test_depthwise_convolutions_compute_in_what_is_faster_which_is_tried_once(fp32, bf16, chosen, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(hardware, "_time_depthwise", {torch.float32: fp32, torch.bfloat16: bf16}.__getitem__)
    assert choose_depthwise("bf16", torch.device("cpu"), 1) == chosen
    monkeypatch.setattr(hardware, "_time_depthwise", None)
    assert choose_depthwise("bf16", torch.device("cpu"), 1) == chosen


def test_the_time_of_a_depthwise_layer_is_measured():
    assert 0 < hardware._time_depthwise(torch.float32) < 60


ASK_TWICE = """
import ctypes, resource, sys
from pipeline.core.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc, size, faults = ctypes.CDLL(None), 64 << 20, []
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
@pytest.mark.parametrize(
    ("how", "settings", "is_kept"), [("keep", {}, True), ("leave", {}, False), ("keep", {"MALLOC_ARENA_MAX": "2"}, False)]
)
def test_memory_that_is_kept_is_not_faulted_in_again(how, settings, is_kept):
    command = [sys.executable, "-c", ASK_TWICE, how]
    faults = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **settings}).stdout)
    assert (faults < 100) == is_kept  # the block has 16,384 pages


@pytest.mark.usefixtures("settings")
def test_one_seed_draws_the_same_numbers_twice():
    draws = []
    for seed in (3, 3, 4):
        make_repeatable(seed, 1)
        draws.append([*torch.rand(4).tolist(), random.random(), np.random.rand()])
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.usefixtures("settings")
def test_the_threads_are_those_that_are_named():
    make_repeatable(0, 1)
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("settings")
def test_operations_that_vary_are_told_of():
    make_repeatable(0, 1)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("settings")
def test_cublas_keeps_a_setting_that_is_there(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_repeatable(0, 1)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
