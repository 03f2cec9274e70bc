"""What holds for every request: its id, the token, headers of the answer, errors as one sentence of JSON, and clients that have gone."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, MutableMapping
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Scope, Send

from pipeline.pictures.images import BrokenPicture
from pipeline.server.engine import Engine, Late, Overloaded, Served
from pipeline.server.metrics import Metrics
from pipeline.server.uploads import Gone, Receive, Refused

_LOG = logging.getLogger("pipeline.server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:=+/-]{1,128}")
_LINGER_SECONDS = 1.0
_SENTENCES = {404: "there is no such address", 405: "the method is not allowed here"}
Result = TypeVar("Result")


def sentence_response(request: Request, error: Exception) -> Response:
    """The answer to a request that failed: status, and a JSON object with `error`, `request_id` and the model.

    For /invocations it has `error_code` and `message`, too, as MLflow's clients read them.
    """
    status, reason, headers = _status_of(error)
    service = request.app.state.service
    service.metrics.refused(reason)
    text = _SENTENCES.get(status, "the request failed") if isinstance(error, HTTPException) else str(error)
    facts = {"error": text, "request_id": request.state.request_id, "model": model_facts(service.engine.model)}
    if request.url.path == "/invocations":
        facts |= {"error_code": "BAD_REQUEST" if status < 500 else "TEMPORARILY_UNAVAILABLE", "message": text}
    return json_response(facts, status, headers)


def _status_of(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, reason for the metrics, and headers."""
    if isinstance(error, Refused):
        return error.status, error.reason, {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if isinstance(error, BrokenPicture):
        return 422, "broken", {}
    if isinstance(error, Overloaded):
        return 503, "queue", {"Retry-After": str(error.retry_seconds)}
    if isinstance(error, Late):
        return 503, "deadline", {"Retry-After": "1"}
    if isinstance(error, HTTPException):
        return error.status_code, "address", dict(error.headers or {})
    return 499, "gone", {}


EXPECTED = (Refused, BrokenPicture, Overloaded, Late, Gone, HTTPException)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer in pure ASCII."""
    return Response(json.dumps(value, allow_nan=False), status, headers, media_type="application/json")


def model_facts(model: Served) -> dict[str, str | None]:
    """`name`, `sha256` and `version` of a model."""
    return {"name": model.name, "sha256": model.sha256, "version": model.version}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client closes the connection before. Raises Gone. The body must have been read."""
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    watcher = asyncio.create_task(_until_gone(receive))
    watcher.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise Gone from None
        raise
    finally:
        watcher.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Envelope:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, engine: Engine, metrics: Metrics, token: str | None, open_paths: Collection[str]) -> None:
        self._app, self._engine, self._metrics, self._open = app, engine, metrics, frozenset(open_paths)
        self._token = hashlib.sha256(token.encode()).digest() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(self._engine, headers, receive, send)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        try:
            if self._token and scope["path"] not in self._open and not self._is_allowed(headers.get("authorization", "")):
                raise Refused(401, "token", "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`")
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as error:
            self._metrics.refused(error.reason)
            await self._send_error(scope, exchange, error.status, str(error), {"WWW-Authenticate": "Bearer"})
        except Exception:
            _LOG.exception("request %s failed", exchange.request_id)
            self._metrics.refused("fault")
            if not exchange.status:
                await self._send_error(scope, exchange, 500, "the server has a fault; its log has the request id")
        self._metrics.responded(exchange.status)

    def _is_allowed(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip(" ").encode("latin-1")).digest()  # of equal length, so that the comparison takes equally long
        return scheme.lower() == "bearer" and hmac.compare_digest(digest, self._token or b"")

    async def _send_error(self, scope: Scope, exchange: "_Exchange", status: int, text: str, headers: dict[str, str] | None = None) -> None:
        facts = {"error": text, "request_id": exchange.request_id, "model": model_facts(self._engine.model)}
        await json_response(facts, status, headers)(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, engine: Engine, headers: Headers, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
        given = headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._engine, self._receive, self._send = engine, receive, send
        self._has_more = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

    async def receive(self) -> MutableMapping[str, Any]:
        """The next message of the request."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._has_more = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer. A connection with an unread body is closed after it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers.setdefault("X-Model-SHA256", self._engine.model.sha256)
            if self._engine.model.version:
                headers.setdefault("X-Model-Version", self._engine.model.version)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._has_more:
                headers["Connection"] = "close"
        elif self._has_more and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Drop what the client still sends, for a moment: closed at once, the connection would be reset before it reads the answer."""
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._has_more:
                    await self.receive()
        except TimeoutError:
            return
