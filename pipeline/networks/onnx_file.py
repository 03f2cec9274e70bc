"""ONNX files: export from torch, comparison with torch, metadata, and sessions of ONNX Runtime."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)
from torch import nn

from pipeline.core.errors import PipelineError

ORT_FAULTS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException)  # of a graph that it cannot run
METADATA_KEY = "transfer_pipeline"
_LARGEST = 2**31 - 2**24  # bytes of tensors in one file: protobuf reads none of 2 GiB, and the nodes need room too
_LEAST = 1024  # bytes; smaller tensors stay in the graph, where shapes are worked out from them


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with that many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def add_facts(model: "onnx.ModelProto", facts: Mapping[str, Any]) -> None:
    """Let a graph say these facts of itself, and no others."""
    from onnx import helper

    helper.set_model_props(model, {METADATA_KEY: json.dumps(facts, sort_keys=True, ensure_ascii=False)})


def read_facts(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """What an opened graph says of itself."""
    facts: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    return facts


def write_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model's bytes, always the same for the same model; what is too large for one file as in `move_tensors_out`."""
    move_tensors_out(model, path)
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_onnx(path: Path) -> "onnx.ModelProto":
    """A written graph with all its tensors. Raises PipelineError where those beside it are missing or cut short.

    onnx's own reader refuses tensors in a file that is a link, as DVC's cache makes them.
    """
    import onnx

    model, data = onnx.load(path, load_external_data=False), data_path(path)
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside and not data.is_file():
        raise PipelineError(f"{data}: is not there; run `dvc checkout`")
    for tensor in outside:
        place = {entry.key: entry.value for entry in tensor.external_data}
        with data.open("rb") as file:
            file.seek(int(place["offset"]))
            tensor.raw_data = file.read(int(place["length"]))
        if len(tensor.raw_data) != int(place["length"]):
            raise PipelineError(f"{data}: is cut short; run `dvc checkout`")
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model


def data_path(path: Path) -> Path:
    """Where the tensors of the graph at `path` lie if it is too large for one file: the graph names this file, beside itself."""
    return path.with_name(f"{path.name}.data")


def move_tensors_out(model: "onnx.ModelProto", path: Path) -> bool:
    """Move the tensors of a graph that is to be written at `path` into `data_path(path)` where one file cannot hold them.

    Tells whether they were moved; the graph is then without them.
    """
    from onnx.external_data_helper import set_external_data

    tensors = model.graph.initializer
    if sum(len(tensor.raw_data) for tensor in tensors) <= _LARGEST:
        return False
    data = data_path(path)
    with data.open("wb") as file:
        for tensor in tensors:
            if len(tensor.raw_data) >= _LEAST:
                set_external_data(tensor, data.name, file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    return True


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
