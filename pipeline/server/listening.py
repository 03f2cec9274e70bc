"""Connections: limits on headers and on slow clients, which uvicorn does not have, and an end that answers what was accepted."""

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.core.errors import PipelineError

_BACKLOG = 512  # connections that the system accepts before the server does
_PIPELINED = 64  # requests of a connection that wait for the one before
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_CLOSING_SECONDS = 5.0  # how long an answer to a client that does not read it is kept


@dataclass(frozen=True)
class Connections:
    """Limits of connections.

    `most`: at one time; `header_bytes`, `headers`: of a request; `header_seconds`: to send them; `idle_seconds`: between two requests;
    `write_seconds`: until a client that reads nothing of its answers is cut off; `linger_seconds`: from SIGTERM, when /ready turns 503,
    until no new connection is taken; `drain_seconds`: then, until what was accepted must have been answered.
    """

    most: int = 256
    header_bytes: int = 16 << 10
    headers: int = 100
    header_seconds: float = 10.0
    idle_seconds: float = 15.0
    write_seconds: float = 20.0
    linger_seconds: float = 1.0
    drain_seconds: float = 30.0


class _TooLarge(Exception):  # noqa: N818 - the parser turns it into its own error
    pass


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the limits of a subclass made by `limited`."""

    limits = Connections()
    refused: Callable[[str], None] = staticmethod(lambda reason: None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._idle_bytes = 0  # since the headers, or since the last byte of the body
        self._is_head, self._has_begun, self._is_ending = True, False, False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.most:
            self._refuse(503, "connections", "there are too many connections; try again later")
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._cancel("_header_timer")
        self._cancel("_write_timer")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes. Those that begin a request start the time for its headers."""
        if self.transport.is_closing():
            return
        if self._is_ending:
            return
        self._head_bytes += len(data) if self._is_head else 0
        self._idle_bytes += len(data)
        super().data_received(self._without_upgrade(data) if self._is_head else data)
        if self.transport.is_closing() or self._is_ending:
            return
        if not self._is_head:
            if self._idle_bytes > self.limits.header_bytes:  # extensions of chunks, or trailers, for which the parser has no limit
                self._refuse(431, "headers", self._header_sentence())
            return
        if self._head_bytes > self.limits.header_bytes and self._has_begun:
            self._refuse(431, "headers", self._header_sentence())
        elif self._has_begun or not self._is_answering():
            self._await_headers()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._has_begun, self._size = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= self.limits.headers:
            raise _TooLarge
        if self._is_head:  # not a trailer: it is no header, and could replace one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All headers are there."""
        if len(self.pipeline) >= _PIPELINED:
            raise _TooLarge
        self._is_head, self._idle_bytes = False, 0
        self._cancel("_header_timer")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there to its end."""
        self._is_head, self._has_begun, self._head_bytes = True, False, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or what has too many headers."""
        if self._is_head and self._has_begun and (self._size > self.limits.header_bytes or len(self.headers) >= self.limits.headers):
            self._refuse(431, "headers", self._header_sentence())
        else:
            self._refuse(400, "http", "the request is not HTTP/1.1")

    def pause_writing(self) -> None:
        """The client does not read: it is cut off, unless it begins to."""
        super().pause_writing()
        self._write_timer = self._write_timer or self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._cancel("_write_timer")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is idle, also if its last answer is not read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _without_upgrade(self, data: bytes) -> bytes:
        """The head of a request without the wish for another protocol, which a server may ignore: the parser would drop the body."""
        head, end, rest = data.partition(b"\r\n\r\n")
        return _UPGRADE.sub(b"\r\nx-older:", head) + end + rest

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self.limits.header_bytes:
            raise _TooLarge

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _header_sentence(self) -> str:
        return f"the headers have more than {self.limits.header_bytes:,} bytes, or are more than {self.limits.headers}"

    def _await_headers(self) -> None:
        self._header_timer = self._header_timer or self.loop.call_later(self.limits.header_seconds, self._headers_are_late)

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self._is_answering():  # a pipelined request waits for the one before
            self._await_headers()
        elif not self.transport.is_closing():
            self._refuse(408, "slow", f"the headers did not arrive within {self.limits.header_seconds:g} s")

    def _refuse(self, status: int, reason: str, sentence: str) -> None:
        """Answer without the application, unless it is answering, and close the connection, after what came whole was answered."""
        if self.transport.is_closing():
            return
        type(self).refused(reason)
        if self._is_answering():
            if self._is_head:
                self._is_ending, self.cycle.keep_alive = True, False
                return
        else:
            body = json.dumps({"error": sentence}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            retry = "Retry-After: 1\r\n" if status == 503 else ""
            self.transport.write(f"{head}{retry}Connection: close\r\n\r\n".encode() + body)
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """A closed connection stays open while its answer is not read; not for ever."""
        self._write_timer = self._write_timer or self.loop.call_later(_CLOSING_SECONDS, self.transport.abort)

    def _cancel(self, name: str) -> None:
        if (timer := getattr(self, name)) is not None:
            timer.cancel()
            setattr(self, name, None)


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 on SIGTERM or SIGINT, after it has answered what it accepted."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, linger_seconds: float) -> None:
        super().__init__(config)
        self._app, self._linger_seconds, self._ends_at = app, linger_seconds, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal turns /ready to 503 and starts the end; the second ends at once."""
        if self._ends_at < float("inf"):
            self.should_exit = self.force_exit = True
        self._app.state.service.is_ready = False
        self._ends_at = time.monotonic() + self._linger_seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        return await super().on_tick(counter) or time.monotonic() >= self._ends_at


def limited(limits: Connections, refused: Callable[[str], None]) -> type[LimitedProtocol]:
    """The protocol with these limits. `refused`: called with the reason of each refusal."""
    return type("Protocol", (LimitedProtocol,), {"limits": limits, "refused": staticmethod(refused)})


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 lets the system choose one. Raises PipelineError if the address is taken or is not of this machine."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name with a part that is too long
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]  # the socket module repeats the address
        raise PipelineError(f"{host}:{port}: cannot listen there: {reason}; choose another --host or --port") from None
    # Its connections inherit this. asyncio would set it only on sockets that name their protocol, and headers and body of an answer are two
    # packets: the second would wait 40 ms for the client to acknowledge the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def make_server(app: FastAPI, limits: Connections, access_log: bool = False) -> Server:
    """A server of the application of `create_app`, in this process. `run([socket])` returns when it has ended."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it writes a line per damaged form
    config = uvicorn.Config(
        app,
        http=limited(limits, app.state.service.metrics.refused),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="info" if access_log else "error",
        access_log=access_log,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=limits.drain_seconds,  # type: ignore[arg-type]
        server_header=False,
        proxy_headers=False,
    )
    return Server(config, app, limits.linger_seconds)
