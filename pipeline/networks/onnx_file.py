"""ONNX files: export from torch, comparison with torch, metadata, and sessions of ONNX Runtime."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.core.errors import PipelineError

# From its import on, ONNX Runtime reports home unless told not to. A value that the user sets wins; no other module imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

if TYPE_CHECKING:
    import onnx
    from torch import nn

Array = np.ndarray[Any, np.dtype[Any]]
# Raised by ONNX Runtime for a graph that it cannot run.
ORT_FAULTS = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented, ort.RuntimeException)
METADATA_KEY = "transfer_pipeline"
PART = 4  # pictures that are run at once: what their layers hand on stays in the caches of a core
_LARGEST = 2**31 - 2**24  # bytes of tensors in one file: protobuf reads no file of 2 GiB, and the nodes need room too
_LEAST = 1024  # bytes; smaller tensors stay in the graph, because shapes are inferred from them
_TOLERANCE = 1e-4  # between ONNX Runtime and torch
_OWN_ROUNDING = 10  # a network that amplifies rounding may differ by so many times the difference between two of torch's own answers,
_MOST = 1e-2  # and by no more than this


def open_session(path: Path, threads: int, on_gpu: bool = False) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session in fp32: on the CPU with that many threads, or on a GPU whose provider is installed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread without work sleeps: spinning, it would take a core from those that decode or run another part.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cuda = ("CUDAExecutionProvider", {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"})  # the other searches time the algorithms
    has_cuda = on_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(path, options, providers=[*([cuda] if has_cuda else []), "CPUExecutionProvider"])


def run_in_parts(session: onnxruntime.InferenceSession, outputs: Sequence[str], pixels: Array, threads: int) -> list[Array]:
    """Return outputs, each float32 (N, ...), of pixels, uint8 (N, S, S, 3), which are run in parts of `PART` in that many threads."""
    parts = [pixels[start : start + PART] for start in range(0, len(pixels), PART)]

    def run(part: Array) -> list[Array]:
        return cast("list[Array]", session.run(outputs, {"pixels": part}))

    if threads == 1 or len(parts) == 1:  # starting threads takes longer than a small network
        results = [run(part) for part in parts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(run, parts))
    return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def add_facts(model: "onnx.ModelProto", facts: Mapping[str, Any]) -> None:
    """Store facts in the metadata of a graph, in place of any others."""
    from onnx import helper

    helper.set_model_props(model, {METADATA_KEY: json.dumps(facts, sort_keys=True, ensure_ascii=False)})


def read_facts(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return the facts in the metadata of an open graph."""
    facts: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    return facts


def write_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a graph, with equal bytes for equal graphs. Tensors too large for one file go beside it, see `move_tensors_out`."""
    move_tensors_out(model, path)
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_onnx(path: Path) -> "onnx.ModelProto":
    """Read a graph with all its tensors. Raises PipelineError if the file beside it is missing or cut short."""
    import onnx

    model, data = onnx.load(path, load_external_data=False), data_path(path)
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside and not data.is_file():
        raise PipelineError(f"{data}: is not there; run `dvc checkout`")
    for tensor in outside:  # by hand: onnx's own reader refuses a file that is a link, as those of DVC's cache may be
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
    """Return the path of the tensors of a graph at `path` that is too large for one file. The graph refers to it by name."""
    return path.with_name(f"{path.name}.data")


def move_tensors_out(model: "onnx.ModelProto", path: Path) -> bool:
    """Move the tensors of a graph into `data_path(path)` if one file cannot hold them. Returns whether they were moved.

    protobuf cannot serialise a message of 2 GiB or more, and a large transformer has more than that in weights.
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


def export_onnx(module: "nn.Module", image_size: int, outputs: Sequence[str]) -> "onnx.ModelProto":
    """Export a module from pixels, uint8 (batch, S, S, 3), to `outputs`, with a free batch size. Raises PipelineError if torch cannot."""
    import torch

    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), _unfused_attention(module):
            program = torch.onnx.export(
                module.eval().cpu(), (example,), dynamo=True, external_data=False, verbose=False,
                input_names=["pixels"], output_names=list(outputs), dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise PipelineError(f"the network: torch cannot export it to ONNX: {_first_cause(error)}; choose another") from error
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _clear_traces(model)
    return model


def check_parity(path: Path, module: "nn.Module", pixels: Array, threads: int) -> None:
    """Raise PipelineError if the outputs of the ONNX file at `path` differ from the module's on these pixels by more than rounding."""
    import torch

    expected = _run_torch(module, pixels)
    try:
        outputs = open_session(path, threads).run(None, {"pixels": pixels})
    except ORT_FAULTS as error:
        reason = str(error).rpartition("failed:")[2].strip().rstrip(".")
        raise PipelineError(f"the exported network: ONNX Runtime refuses it: {reason}; choose another") from None
    difference = _largest_difference(outputs, expected)
    if difference <= _TOLERANCE:
        return
    # Some networks amplify rounding. torch without oneDNN adds up in another order: the difference between both of its answers is the
    # rounding of this network, which no exporter can undercut.
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        own_rounding = _largest_difference(_run_torch(module, pixels), expected)
    allowed = max(_TOLERANCE, min(_MOST, _OWN_ROUNDING * float(np.nan_to_num(own_rounding))))
    if not difference <= allowed:  # also if it is NaN
        raise PipelineError(
            f"the exported network: differs from torch by {difference:.1e}, more than {allowed:.1g}; this network cannot be exported"
        )


def spread(count: int, most: int) -> Array:
    """At most that many positions, evenly from the first to the last of `count`: of pictures sorted by path, they cover the classes."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def count_work(module: "nn.Module", image_size: int) -> dict[str, float]:
    """Return the number of `parameters`, and `gmacs`: billions of multiply-adds per picture, as torchvision counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    constants = {name: tensor.detach() for name, tensor in module.named_parameters()}  # the counter fails on views of parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(module, constants, torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8))
    parameters = sum(tensor.numel() for tensor in module.parameters())
    return {"parameters": parameters, "gmacs": float(f"{counter.get_total_flops() / 2e9:.4g}")}


@contextlib.contextmanager
def _unfused_attention(module: "nn.Module") -> Iterator[None]:
    """Let timm's layers compute attention as separate products: torch exports fused attention of four dimensions only."""
    layers: list[Any] = [layer for layer in module.modules() if getattr(layer, "fused_attn", False)]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield
    finally:
        for layer in layers:
            layer.fused_attn = True


def _run_torch(module: "nn.Module", pixels: Array) -> list[Array]:
    import torch

    with torch.no_grad(), _unfused_attention(module):
        outputs = module.eval().cpu()(torch.from_numpy(pixels))
    return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _largest_difference(outputs: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest difference of all outputs, as a share of an output's largest value if that is above 1."""
    pairs = zip(outputs, expected, strict=True)
    return float(np.max([np.abs(one - other).max() / max(1.0, np.abs(other).max()) for one, other in pairs]))


def _first_cause(error: BaseException) -> str:
    """Return the first line of the error at the start of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _clear_traces(message: Any) -> None:
    """Remove the exporter's stack traces from a protobuf message: their absolute paths differ from machine to machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type and field.message_type.name != "TensorProto":
            for part in [value] if hasattr(value, "ListFields") else value:
                _clear_traces(part)
