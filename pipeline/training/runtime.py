"""Where and how numbers are computed: device, precision, threads, seeds."""

import os
import platform
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device() -> "torch.device":
    """CUDA where there is one, then MPS, then the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(wanted: str, device: "torch.device") -> str:
    """`fp32` or `bf16`; `auto` means bf16 where the hardware computes in it."""
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
    """Seed every generator, fix torch's thread count, and warn of operations whose result changes from run to run."""
    import numpy as np
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    mean_fp32()


def mean_fp32() -> None:
    """Let fp32 be fp32 on a GPU, whose convolutions else round to ten bits (TF32), and are chosen by trying."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
