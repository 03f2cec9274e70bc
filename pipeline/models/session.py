"""A stored graph, opened: ONNX Runtime, and where the graph's own facts stand in it. No torch."""

from pathlib import Path

import onnxruntime

METADATA_KEY = "transfer_pipeline"


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with that many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
