"""`pipeline ui`: MLflow's page on this machine, with light settings."""

import argparse
import os
import sys
from typing import Any


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("ui", help="serve MLflow's page")
    parser.add_argument("--host", default="127.0.0.1", help="the address to bind to (this machine alone by default)")
    parser.add_argument("--port", type=int, default=5000)
    parser.set_defaults(run=serve)


def serve(parsed: argparse.Namespace) -> None:
    """Become MLflow's server on our database, or name the server that MLFLOW_TRACKING_URI points at."""
    from pipeline.tracking.connection import connect, mendable, tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):
        print(f"MLflow's page is at {uri}")
        return
    with mendable():
        connect()
    # Job execution and four workers would take 2.4 GB of memory for a page that one person looks at.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = ["mlflow", "server", "--backend-store-uri", uri, "--host", parsed.host, "--port", str(parsed.port), "--workers", "1"]
    print(f"MLflow's page: http://{parsed.host}:{parsed.port} (Ctrl-C ends it)", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", *server], environment)  # noqa: S606
