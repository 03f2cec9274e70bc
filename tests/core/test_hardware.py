"""Device, precision, threads and seeds."""

import os
import random

import numpy as np
import pytest
import torch

from pipeline.core.hardware import choose_device, choose_precision, make_repeatable


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


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_precision_that_is_named_is_taken(wanted, device):
    assert choose_precision(wanted, torch.device(device)) == wanted


def test_auto_is_fp32_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_gpu_computes_in(supported, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == precision


def test_auto_on_this_cpu_is_one_of_the_two():
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


def test_auto_is_fp32_on_mps():
    assert choose_precision("auto", torch.device("mps")) == "fp32"


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
