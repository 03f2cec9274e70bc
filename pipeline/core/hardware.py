"""Where and how numbers are computed: device, precision, threads, seeds."""

import ctypes
import math
import os
import platform
import random
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.files import cache_dir, read_value, sha256_of_json, write_json
from pipeline.core.processes import group_size, processes_here

if TYPE_CHECKING:
    import torch
    from torch import nn

# M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h: no block of its own mapping, nothing is handed back, 64 MiB at a time.
_MALLOPT = {-4: 0, -1: -1, -2: 64 << 20}
# Files of the drivers: NVIDIA's, that of its boards with one memory, Windows' for its Linux, AMD's.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")  # trained bytes depend on their versions


def choose_device() -> "torch.device":
    """CUDA if available, else MPS, for which several processes cannot exchange gradients, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available() and group_size() == 1:
        return torch.device("mps")
    return torch.device("cpu")


def device_type() -> str:
    """The type of `choose_device`: `cuda`, `mps` or `cpu`. Linux without a driver has no GPU; torch, slow to import, is not asked."""
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in _DRIVERS):
        return "cpu"
    return choose_device().type


def choose_precision(wanted: str, device: "torch.device") -> str:
    """`fp32`, `bf16` or `fp16`, as wanted; `auto` is bf16 if the hardware computes in it, else fp16 on a GPU of CUDA."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # ours reads none, and filling it takes seconds
    mean_fp32()


def mean_fp32() -> None:
    """Make fp32 mean fp32 on a GPU: its convolutions otherwise round to ten bits (TF32) and are chosen by timing them."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@dataclass(frozen=True)
class Hardware:
    """Where a network runs: the device, and the precision (fp32, bf16 or fp16) of matrix products and of depthwise convolutions."""

    device: "torch.device"
    precision: str
    depthwise: str = "fp32"

    def place(self, model: "nn.Module") -> None:
        """Move a model to the device, in the memory layout in which convolutions are fastest."""
        import torch

        model.to(self.device)
        if self.device.type != "mps":  # its backward pass fails with this layout
            model.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        import torch

        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def make_scaler(self) -> "torch.amp.GradScaler":
        """A scaler of losses, so that small gradients do not vanish in fp16. In the other precisions it does nothing."""
        import torch

        # The usual first scale, 65536, overflows in the first step, which would be skipped.
        return torch.amp.GradScaler(self.device.type, init_scale=1024, enabled=self.precision == "fp16")


def usable_cpus() -> int:
    """How many processors this process may use: those of the machine, within its affinity and its cgroup's quota, and its group's part."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup, or no quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return max(1, count // processes_here())


def key_here(identity: str) -> str:
    """A digest of `identity` and all else that trained bytes depend on: versions of packages, the processor, the GPUs."""
    import numpy as np

    hardware = [platform.machine(), np.show_config(mode="dicts")["SIMD Extensions"], *_gpu_names()]
    return sha256_of_json([identity, [version(name) for name in _PACKAGES], hardware])


def _gpu_names() -> list[str]:
    if device_type() != "cuda":
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed: a training step asks for the same large blocks again, and the kernel would clear each anew.

    It costs as much memory as the process ever used, and a few percent more. Settings of the user's own (`MALLOC_…_`) stay as they are.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        for option, value in _MALLOPT.items():
            libc.mallopt(option, value)


def choose_hardware(seed: int, threads: int, precision: str) -> Hardware:
    """Seed everything and choose the best available device; `precision` is as in `choose_precision`."""
    make_repeatable(seed, threads)
    device = choose_device()
    chosen = choose_precision(precision, device)
    return Hardware(device, chosen, choose_depthwise(chosen, device, threads))


def choose_depthwise(precision: str, device: "torch.device", threads: int) -> str:
    """The precision of depthwise convolutions: fp32 where a CPU is no slower in it than in bf16, which is tried once and cached."""
    import torch

    if precision != "bf16" or device.type != "cpu":
        return precision
    path = cache_dir("hardware") / f"{key_here(f'depthwise {threads}')}.json"
    if (known := read_value(path, "depthwise")) is None:
        seconds = {name: _time_depthwise(dtype) for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items()}
        known = min(seconds, key=seconds.__getitem__)
        write_json(path, {"depthwise": known})
    return str(known)


def _time_depthwise(dtype: "torch.dtype") -> float:
    """The seconds of the fastest of five passes, forth and back, through a layer of a common size."""
    import torch

    layer = torch.nn.Conv2d(96, 96, 3, padding=1, groups=96).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.ones(8, 96, 56, 56, dtype=dtype, requires_grad=True).contiguous(memory_format=torch.channels_last)
    fastest = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        layer(inputs).sum().backward()
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest
