"""A stored graph, written and opened (ONNX Runtime, no torch), and where its own facts stand in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import onnx

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
