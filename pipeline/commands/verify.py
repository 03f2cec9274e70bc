"""`pipeline verify`: check that the model that was scored is the model that is stored."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("verify", help="check that scored, stored and described models are one file")
    parser.set_defaults(run=lambda parsed: print("\n".join(verify_all())))


def verify_all() -> list[str]:
    """A line for each model that its own metadata, model.json and its scores agree on. Raises PipelineError."""
    from pipeline.models.artifact import verify

    folders = sorted(path.parent for path in Path("models").glob("*/model.json"))
    if not folders:
        raise PipelineError("models: holds no model; run `dvc repro`")
    lines = []
    for folder in folders:
        sha256, scores = verify(folder), Path("results") / folder.name / "scores.json"
        if not scores.is_file() or read_json(scores)["model_sha256"] != sha256:
            raise PipelineError(f"{scores}: tells of another model than {folder}/model.onnx; run `dvc repro`")
        lines.append(f"{sha256}  {folder}/model.onnx: scored, stored and described alike")
    return lines
