"""From torch to ONNX: the same network, the same bytes wherever and whenever it is exported."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from pipeline.errors import PipelineError
from pipeline.models.session import ORT_FAULTS, open_session

Array = np.ndarray[Any, np.dtype[Any]]

_TOLERANCE = 1e-4
_OWN_ROUNDING, _MOST = 10, 1e-2  # of a network in which small differences grow: times how far torch is from itself, and how much at all


def export_onnx(module: nn.Module, image_size: int, outputs: Sequence[str]) -> onnx.ModelProto:
    """A module from pixels, uint8 (batch, S, S, 3), to `outputs`, with a free batch size. Raises PipelineError where torch cannot."""
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), _plain_attention(module):
            program = torch.onnx.export(
                module.eval().cpu(), (example,), dynamo=True, external_data=False, verbose=False,
                input_names=["pixels"], output_names=list(outputs), dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise PipelineError(f"the network: torch cannot export it to ONNX: {_first_cause(error)}; take another") from error
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _clear(model)
    return model


def check_parity(path: Path, module: nn.Module, pixels: Array, threads: int) -> None:
    """Raise PipelineError where the ONNX file at `path` answers otherwise than the module on these pixels, beyond rounding."""
    wanted = _answer(module, pixels)
    try:
        found = open_session(path, threads).run(None, {"pixels": pixels})
    except ORT_FAULTS as error:
        reason = str(error).rpartition("failed:")[2].strip().rstrip(".")
        raise PipelineError(f"the exported network: ONNX Runtime refuses it: {reason}; take another") from None
    off = _distance(found, wanted)
    if off <= _TOLERANCE:
        return
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # sums in another order
        own = _distance(_answer(module, pixels), wanted)
    allowed = max(_TOLERANCE, min(_MOST, _OWN_ROUNDING * float(np.nan_to_num(own))))
    if not off <= allowed:
        raise PipelineError(
            f"the exported network: differs from torch by {off:.1e}, more than {allowed:.1g}; this network cannot be exported"
        )


def count_work(module: nn.Module, image_size: int) -> dict[str, float]:
    """How many numbers the parameters are, and multiply-adds a picture in thousand millions (GFLOPs, as torchvision counts them)."""
    from torch.utils.flop_counter import FlopCounterMode

    constants = {name: tensor.detach() for name, tensor in module.named_parameters()}  # the counter stumbles over views of parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(module, constants, torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
    parameters = sum(tensor.numel() for tensor in module.parameters())
    return {"parameters": parameters, "gflops": float(f"{counter.get_total_flops() / 2e9:.4g}")}


@contextlib.contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """timm's layers compute attention product by product meanwhile: of the fused kind torch exports four dimensions alone."""
    layers: list[Any] = [layer for layer in module.modules() if getattr(layer, "fused_attn", False)]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield
    finally:
        for layer in layers:
            layer.fused_attn = True


def _answer(module: nn.Module, pixels: Array) -> list[Array]:
    with torch.no_grad(), _plain_attention(module):
        answer = module.eval().cpu()(torch.from_numpy(pixels))
    return [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]


def _distance(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest difference of all outputs, as a share of an output's largest value where that is above 1."""
    pairs = zip(found, wanted, strict=True)
    return float(np.max([np.abs(one - other).max() / max(1.0, np.abs(other).max()) for one, other in pairs]))


def _first_cause(error: BaseException) -> str:
    """The first line of what was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _clear(message: Any) -> None:
    """Take out of a protobuf message what names this machine: the exporter leaves stack traces with absolute paths."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type and field.message_type.name != "TensorProto":
            for part in [value] if hasattr(value, "ListFields") else value:
                _clear(part)
