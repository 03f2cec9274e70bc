"""`pipeline data refresh`, `mend`, `publish`, `ui` and `deps`: keep a project running."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError


def add_data(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("data", help="refresh: pin the current content of download.source in params.yaml")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("refresh", help="read download.source and rewrite download.digest")
    action.add_argument("--force", action="store_true", help="of a folder, read all files, not only those that changed since the last look")
    action.set_defaults(run=print_refresh)


def print_refresh(parsed: argparse.Namespace) -> None:
    """Refresh the digest and print the result in one line."""
    before, after = refresh(parsed.force)
    if before == after:
        print(f"download.digest {after}: nothing changed")
    else:
        print(f"download.digest {before} -> {after}: see `git diff params.yaml`, then run `dvc repro`")


def refresh(reads_all: bool = False) -> tuple[str | None, str]:
    """Set download.digest in params.yaml to that of the source as it is now. Returns the digest before and after.

    `reads_all`: read also those files of a folder that did not change since the last look. No other byte of params.yaml changes.
    Raises PipelineError.
    """
    from pipeline.core.params import PARAMS, read_params, set_params
    from pipeline.core.sections import read_section
    from pipeline.sources.members import Limits
    from pipeline.sources.source import find_source, measure_digest
    from pipeline.sources.tables import Table

    section = read_params(PARAMS).get("download")
    if not isinstance(section, dict) or not isinstance(section.get("source"), str):
        raise PipelineError(f"{PARAMS}: download.source: is missing")
    if "digest" not in section:
        raise PipelineError(f"{PARAMS}: download.digest: is missing; write `digest: null` below `download`")
    before = section["digest"]
    source = find_source(section["source"])
    limits = read_section("download.limits", Limits, PARAMS)
    mirrors, table = tuple(section.get("url_mirrors") or ()), read_section("download", Table, PARAMS)
    after = measure_digest(source, mirrors, limits, section.get("encoding"), reads_all, table)
    if source.known_digest not in (None, after):
        print(f"{source.title}: differs from its known digest {source.known_digest}; check the pictures before you train", file=sys.stderr)
    if before != after:
        set_params({"download.digest": after})
    return before, after


def add_mend(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("mend", help="repair files that a killed dvc left half-written")
    parser.add_argument(
        "--strays", action="store_true", help="also remove models, results and metrics of names that have left `models` in params.yaml"
    )
    parser.set_defaults(run=print_repairs)


def print_repairs(parsed: argparse.Namespace) -> None:
    """Repair DVC's files and print one line per repair; nothing if there is none."""
    from pipeline.core.dvc import mend

    lines = [*mend(), *(remove_strays() if parsed.strays else [])]
    print("".join(f"{line}\n" for line in lines), end="")


def remove_strays() -> list[str]:
    """Remove what the stages wrote for entries that have left `models`, and nothing else. Returns one line per file or folder."""
    import shutil

    from pipeline.networks.artifact import find_strays

    strays = find_strays(Path())
    for place in strays:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return [f"{place}: has no entry of `models` in params.yaml; removed. DVC's cache or git keeps it" for place in strays]


def publish_all() -> list[str]:
    """Publish every evaluated model. Returns one line per model whose run was not up to date. Raises PipelineError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # longer than in a stage: nothing but the user waits
    from pipeline.tracking.publish import publish

    return publish(Path("data"), Path("models"), Path("results"))


def add_ui(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("ui", help="serve MLflow's page, or print its address")
    parser.add_argument("--host", default="127.0.0.1", help="the address to bind to (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    parser.set_defaults(run=serve)


def serve(parsed: argparse.Namespace) -> None:
    """Replace this process by MLflow's server on the project's database, or print the server of MLFLOW_TRACKING_URI."""
    from pipeline.tracking.connection import connect, hide_secrets, mlflow_errors, tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):
        print(f"MLflow's page is at {hide_secrets(uri)}")
        return
    with mlflow_errors():
        connect()
    # Job execution and four workers would take 2.4 GB of memory for a page that one person reads.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri}
    environment = {**os.environ, **settings}
    store = ["--backend-store-uri", uri] if uri.startswith("sqlite:") else []  # every user can read arguments, which may hold a password
    server = ["mlflow", "server", *store, "--host", parsed.host, "--port", str(parsed.port), "--workers", "1"]
    print(f"MLflow's page: http://{parsed.host}:{parsed.port} (Ctrl-C ends it)", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", *server], environment)  # noqa: S606


def print_deps(parsed: argparse.Namespace) -> None:
    """Rewrite the lists of files in dvc.yaml, and print whether it changed."""
    from pipeline.core.dvc import rewrite_deps

    print("dvc.yaml: rewritten; see `git diff dvc.yaml`" if rewrite_deps() else "dvc.yaml: up to date")
