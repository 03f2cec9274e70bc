"""A stored graph, written and opened (ONNX Runtime, no torch), and where its own facts stand in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "transfer_pipeline"


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
    """Write a model's bytes, always the same for the same model."""
    path.write_bytes(model.SerializeToString(deterministic=True))
