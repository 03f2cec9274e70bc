"""`pipeline serve`: answer over HTTP."""

import argparse
import gc
import ipaddress
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import whole
from pipeline.commands.live import add_live_arguments, attach, positive
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipeline.server.app import Settings
    from pipeline.server.engine import Engine
    from pipeline.server.listening import Connections

TOKEN = "PIPELINE_TOKEN"  # noqa: S105 - the name of a variable
# A thread that comes back from the model waits no longer for the interpreter; Python's own 5 ms are more than a picture takes.
_SWITCH_SECONDS = 0.0005
_ABOUT = """\
Answer pictures over HTTP with a stored model, on this machine alone unless --host says otherwise.

The page at / takes pictures in a browser. POST /predict takes a picture, or a multipart form of several; POST /invocations what
MLflow's clients send; POST /explain one picture, for its activation map. /live, /ready, /metadata, /metrics and /openapi.json are for
machines. SIGTERM ends the server after it has answered what it accepted."""
_EXAMPLES = f"""\
examples:
  pipeline serve
  curl --data-binary @picture.jpg http://127.0.0.1:8000/predict
  {TOKEN}=… pipeline serve --host 10.0.0.7 --port 8080
  pipeline serve --dockerfile > Dockerfile"""


def port_number(text: str) -> int:
    """A TCP port, for argparse; 0 lets the system choose one."""
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def add_serve(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve",
        help="answer pictures over HTTP with a stored model",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "(default: %(default)s)"
    model_help = "a name in models/, or a model folder (default: champion; before there is one, the lowest val loss)"
    parser.add_argument("--model", metavar="NAME|FOLDER", help=model_help)
    parser.add_argument("--host", default="127.0.0.1", help=f"the address to listen at {default}")
    parser.add_argument("--port", type=port_number, default=8000, metavar="N", help=f"{default}; 0: a free one")
    parser.add_argument("--token-file", metavar="FILE", help=f"clients must send the token in this file (or in {TOKEN})")
    parser.add_argument("--access-log", action="store_true", help="print a line per request")
    parser.add_argument("--dockerfile", action="store_true", help="print a Dockerfile for the model, and how to build and run it")
    host_help = (
        "a name by which clients reach the server through a proxy, if it listens on this machine alone without a token; may be repeated"
    )
    parser.add_argument("--host-name", action="append", default=[], metavar="NAME", help=host_help)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--threads", type=whole, metavar="N", help="threads that decode, and that run the model (default: one per CPU)")
    limits.add_argument("--max-bytes", type=whole, default=32 << 20, metavar="N", help=f"of a request's body {default}")
    limits.add_argument("--max-pictures", type=whole, default=32, metavar="N", help=f"of a request {default}")
    limits.add_argument("--max-pixels", type=whole, default=50_000_000, metavar="N", help=f"of a picture {default}")
    limits.add_argument("--queue", type=whole, default=128, metavar="N", help=f"pictures that wait; more are answered with 503 {default}")
    limits.add_argument("--deadline", type=positive, default=10.0, metavar="S", help=f"seconds to an answer {default}")
    limits.add_argument("--body-seconds", type=positive, default=20.0, metavar="S", help=f"to send a body {default}")
    limits.add_argument("--header-seconds", type=positive, default=10.0, metavar="S", help=f"to send the headers {default}")
    limits.add_argument("--connections", type=whole, default=256, metavar="N", help=f"at one time {default}")
    limits.add_argument("--drain-seconds", type=positive, default=30.0, metavar="S", help=f"from SIGTERM to the end {default}")
    add_live_arguments(parser)
    parser.set_defaults(run=serve, here=Path.cwd())  # the user's working directory: commands run in the project's root


def serve(parsed: argparse.Namespace) -> None:
    """Serve until SIGTERM. Raises PipelineError."""
    from pipeline.promotion.champions import find_served

    name, folder = find_served(parsed.model, parsed.here)
    if parsed.dockerfile:
        from pipeline.server.docker import dockerfile, instructions

        print(dockerfile(_below_root(folder)), end="")
        print(instructions(parsed.model), file=sys.stderr)
        return
    token = _read_token(parsed)
    if token is None and not _is_loopback(parsed.host):
        print(f"warning: {parsed.host} is reachable from other machines, and there is no token; set --token-file", file=sys.stderr)
    try:
        engine, settings, connections = _configure(parsed, name, folder, token)
        app = _make_app(parsed, engine, settings)
    except ModuleNotFoundError as error:
        raise PipelineError(f"serve: {error.name} is not installed; run `pip install -e '.[serve]'`") from None
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is there now stays: a collection would look through it again and again, and answers wait for it
    _listen(parsed, engine, app, connections)


def _below_root(folder: Path) -> Path:
    """The folder as a path below the project's root. Raises PipelineError."""
    try:
        return folder.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        raise PipelineError(f"{folder}: is not in the project, from which docker copies it; name a model of the project") from None


def _configure(parsed: argparse.Namespace, name: str, folder: Path, token: str | None) -> "tuple[Engine, Settings, Connections]":
    """The engine with the model loaded, and the limits."""
    from pipeline.core.hardware import usable_cpus
    from pipeline.server.engine import Engine, Limits
    from pipeline.server.following import load_checked

    threads = parsed.threads or usable_cpus()
    limits = Limits(queue=parsed.queue, deadline_seconds=parsed.deadline, runners=threads)
    # Loaded before the other modules: its peak of memory is over when they come. Several runs at a time in one thread each answer as many
    # pictures as one run in several threads, and more of a small network.
    engine = Engine(load_checked(name, folder, 1, limits), limits)

    from pipeline.server.app import Settings
    from pipeline.server.listening import Connections
    from pipeline.server.page import OPEN_PATHS
    from pipeline.server.uploads import Bounds

    bounds = Bounds(parsed.max_bytes, max(1, min(parsed.max_pictures, parsed.queue)), parsed.max_pixels, parsed.body_seconds)
    connections = Connections(most=parsed.connections, header_seconds=parsed.header_seconds, drain_seconds=parsed.drain_seconds)
    # Elsewhere names are the rule, and a token is what keeps strangers out.
    names = frozenset(map(str.lower, parsed.host_name)) if token is None and _is_loopback(parsed.host) else None
    return engine, Settings(bounds, token, Settings.open_paths | OPEN_PATHS, threads, names), connections


def _make_app(parsed: argparse.Namespace, engine: "Engine", settings: "Settings") -> "FastAPI":
    from pipeline.server.app import create_app
    from pipeline.server.metrics import Metrics
    from pipeline.server.page import page_router

    metrics = Metrics(engine)
    live = attach(parsed, engine, metrics, threads=1)
    return create_app(engine, settings, [page_router()], live.observers, live.on_start, live.on_stop, metrics, live.status)


def _listen(parsed: argparse.Namespace, engine: "Engine", app: "FastAPI", connections: "Connections") -> None:
    from pipeline.server.listening import bind, make_server

    with bind(parsed.host, parsed.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"{engine.model.name} {engine.model.sha256[:16]} answers at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        make_server(app, connections, parsed.access_log).run([listening])


def _read_token(parsed: argparse.Namespace) -> str | None:
    """The token, None if there is none. Raises PipelineError if the file cannot be read or has none."""
    if parsed.token_file is None:
        where, text = TOKEN, os.environ.get(TOKEN, "")
        if not text:
            return None
    else:
        path: Path = parsed.here / parsed.token_file
        try:
            where, text = f"--token-file {path}", path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise PipelineError(f"--token-file {path}: cannot be read; name a text file with the token") from None
    token = text.strip()
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise PipelineError(f"{where}: has no token that a header can contain; write one word of ASCII into it")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
