"""Where and how numbers are computed: device, precision, threads, seeds."""

import math
import os
import platform
import random
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.files import sha256_of_json

if TYPE_CHECKING:
    import torch
    from torch import nn

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")  # trained bytes depend on their versions


def choose_device() -> "torch.device":
    """CUDA if available, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(wanted: str, device: "torch.device") -> str:
    """`fp32` or `bf16`, as wanted; `auto` is bf16 if the hardware computes in it."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        on_arm = platform.machine() == "aarch64" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bf16" if on_arm or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def make_repeatable(seed: int, threads: int) -> None:
    """Seed every generator, fix torch's number of threads, and make torch warn of operations that are not deterministic."""
    import numpy as np
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    mean_fp32()


def mean_fp32() -> None:
    """Make fp32 mean fp32 on a GPU: its convolutions otherwise round to ten bits (TF32) and are chosen by timing them."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@dataclass(frozen=True)
class Hardware:
    """Where a network runs: the device, and the precision of matrix products (bf16 or fp32)."""

    device: "torch.device"
    precision: str

    def place(self, model: "nn.Module") -> None:
        """Move a model to the device, in the memory layout in which convolutions are fastest."""
        import torch

        model.to(self.device)
        if self.device.type != "mps":  # its backward pass fails with this layout
            model.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def usable_cpus() -> int:
    """How many processors this process may use: those of the machine, within its affinity and its cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup, or no quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def key_here(identity: str) -> str:
    """A digest of `identity` and all else that trained bytes depend on: versions of packages, the processor, the GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    hardware = [platform.machine(), torch.backends.cpu.get_cpu_capability(), *gpus]
    return sha256_of_json([identity, [version(name) for name in _PACKAGES], hardware])


def choose_hardware(seed: int, threads: int, precision: str) -> Hardware:
    """Seed everything and choose the best available device; `precision` is as in `choose_precision`."""
    make_repeatable(seed, threads)
    device = choose_device()
    return Hardware(device, choose_precision(precision, device))
