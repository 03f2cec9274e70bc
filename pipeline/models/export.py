"""From torch to ONNX: the same network, the same bytes wherever and whenever it is exported."""

import contextlib
import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.models.session import open_session

_TOLERANCE = 1e-4


def export_onnx(module: nn.Module, image_size: int, output: str) -> onnx.ModelProto:
    """A module from pixels, uint8 (batch, S, S, 3), to one `output`, with a free batch size."""
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        program = torch.onnx.export(
            module.eval().cpu(), (example,), dynamo=True, external_data=False, verbose=False,
            input_names=["pixels"], output_names=[output], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _clear(model)
    return model


def check_parity(path: Path, module: nn.Module, pixels: np.ndarray[Any, Any], threads: int) -> None:
    """Raise PipelineError where the ONNX file at `path` answers otherwise than the module on these pixels."""
    with torch.no_grad():
        wanted = module.eval().cpu()(torch.from_numpy(pixels)).numpy()
    found = open_session(path, threads).run(None, {"pixels": pixels})[0]
    off = float(np.abs(np.asarray(found) - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    if not off <= _TOLERANCE:
        raise PipelineError(
            f"the exported network: differs from torch by {off:.1e}, more than {_TOLERANCE:g}; this network cannot be exported"
        )


def _clear(message: Any) -> None:
    """Take out of a protobuf message what names this machine: the exporter leaves stack traces with absolute paths."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type and field.message_type.name != "TensorProto":
            for part in [value] if hasattr(value, "ListFields") else value:
                _clear(part)
