"""`pipeline publish`: bring MLflow up to date from the files."""

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("publish", help="bring MLflow up to date from the files; twice changes nothing")
    parser.set_defaults(run=lambda parsed: print("\n".join(publish_all()) or "MLflow is up to date"))


def publish_all() -> list[str]:
    """Publish every evaluated model, and return a line for each whose run was not up to date."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # nothing waits for this but the one who asked for it
    from pipeline.tracking.publish import publish

    return publish(Path("data"), Path("models"), Path("results"))
