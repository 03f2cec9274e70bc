"""A stored graph, written and opened (ONNX Runtime, no torch), and where its own facts stand in it."""

from pathlib import Path
from typing import TYPE_CHECKING

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


def write_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model's bytes, always the same for the same model."""
    path.write_bytes(model.SerializeToString(deterministic=True))
