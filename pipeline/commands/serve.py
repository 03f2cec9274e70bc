"""`pipeline serve`: answer over HTTP."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.answering import whole


def add_serve(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("serve", help="answer pictures over HTTP with a stored model")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="a name in models/, or a model folder (default: champion)")
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=whole, default=8000, help="(default: %(default)s)")
    parser.set_defaults(run=serve, here=Path.cwd())


def serve(parsed: argparse.Namespace) -> None:
    """Serve until SIGTERM. Raises PipelineError."""
    import uvicorn

    from pipeline.promotion.champions import find_served
    from pipeline.server.app import Settings, create_app
    from pipeline.server.engine import Engine, load_served

    name, folder = find_served(parsed.model, parsed.here)
    engine = Engine(load_served(name, folder, threads=1))
    uvicorn.run(create_app(engine, Settings()), host=parsed.host, port=parsed.port, http="httptools", ws="none", access_log=False)
