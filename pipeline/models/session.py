"""A stored graph, written and opened (ONNX Runtime, no torch), and where its own facts stand in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

if TYPE_CHECKING:
    import onnx

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
