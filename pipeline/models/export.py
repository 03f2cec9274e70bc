"""From torch to ONNX: the same network, the same bytes wherever and whenever it is exported."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.models.session import open_session

Array = np.ndarray[Any, np.dtype[Any]]

_TOLERANCE = 1e-4


def export_onnx(module: nn.Module, image_size: int, outputs: Sequence[str]) -> onnx.ModelProto:
    """A module from pixels, uint8 (batch, S, S, 3), to `outputs`, with a free batch size."""
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        program = torch.onnx.export(
            module.eval().cpu(), (example,), dynamo=True, external_data=False, verbose=False,
            input_names=["pixels"], output_names=list(outputs), dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _clear(model)
    return model


def check_parity(path: Path, module: nn.Module, pixels: Array, threads: int) -> None:
    """Raise PipelineError where the ONNX file at `path` answers otherwise than the module on these pixels."""
    with torch.no_grad():
        answer = module.eval().cpu()(torch.from_numpy(pixels))
    wanted = [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]
    found = open_session(path, threads).run(None, {"pixels": pixels})
    off = max(_distance(np.asarray(one), other) for one, other in zip(found, wanted, strict=True))
    if not off <= _TOLERANCE:
        raise PipelineError(
            f"the exported network: differs from torch by {off:.1e}, more than {_TOLERANCE:g}; this network cannot be exported"
        )


def count_work(module: nn.Module, image_size: int) -> dict[str, float]:
    """The trainable tensors' numbers, and the multiply-adds of one picture in thousand millions (GFLOPs, as torchvision counts them)."""
    from torch.utils.flop_counter import FlopCounterMode

    constants = {name: tensor.detach() for name, tensor in module.named_parameters()}  # the counter stumbles over views of parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(module, constants, torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
    parameters = sum(tensor.numel() for tensor in module.parameters())
    return {"parameters": parameters, "gflops": float(f"{counter.get_total_flops() / 2e9:.4g}")}


def _distance(found: Array, wanted: Array) -> float:
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def _clear(message: Any) -> None:
    """Take out of a protobuf message what names this machine: the exporter leaves stack traces with absolute paths."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type and field.message_type.name != "TensorProto":
            for part in [value] if hasattr(value, "ListFields") else value:
                _clear(part)
