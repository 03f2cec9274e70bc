"""What holds for every request: its id, the token, headers of the answer, errors as one sentence of JSON, and clients that have gone."""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Scope, Send

from pipeline.pictures.images import BrokenPicture
from pipeline.server.engine import Late, Overloaded, Served
from pipeline.server.uploads import Gone, Receive, Refused

if TYPE_CHECKING:
    from pipeline.server.app import Service

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


def check_sender(scope: Scope, headers: Headers, host_names: Collection[str] | None) -> None:
    """Raise Refused if a request is one that a foreign web page makes the browser of a user send.

    A browser sends `Sec-Fetch-Site`, or else `Origin`, with a request that changes something; other clients send neither. A page may also
    let its own name point at this machine after it was loaded (DNS rebinding). The browser then takes the server for that of the page, but
    the request still names the page's host. `host_names`: names that are ours, besides addresses and localhost; None: any.
    """
    hosts = headers.getlist("host")
    if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
        raise Refused(400, "http", "the request does not have one Host header")
    host = hosts[0] if hosts else "localhost"
    if host_names is not None and not _is_ours(host, host_names):
        raise Refused(421, "host", "the request has the host name of another server; use its address, or start it with --host-name")
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_foreign = site not in ("same-origin", "none") if site else bool(origin) and str(origin).partition("://")[2].lower() != host.lower()
    if is_foreign and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        raise Refused(403, "origin", "a page of another server sent the request; only the page of this one may")


def _is_ours(host: str, names: Collection[str]) -> bool:
    name = (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower().rstrip(".")
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name == "localhost" or name in names


class Envelope:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, service: "Service") -> None:
        self._app, self._service, self._engine, self._metrics = app, service, service.engine, service.metrics
        token = service.settings.token
        self._token = hashlib.sha256(token.encode()).digest() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(self._service, headers, receive, send)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn, which has the first one, leaves out the body
        try:
            settings = self._service.settings
            check_sender(scope, headers, settings.host_names)
            if self._token and scope["path"] not in settings.open_paths and not self._is_allowed(headers.get("authorization", "")):
                raise Refused(401, "token", "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`")
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as error:
            self._metrics.refused(error.reason)
            await self._send_error(scope, exchange, *_status_of(error)[::2], str(error))
        except Exception:
            _LOG.exception("request %s failed", exchange.request_id)
            self._metrics.refused("fault")
            if not exchange.status:
                await self._send_error(scope, exchange, 500, {}, "the server has a fault; its log has the request id")
        self._metrics.responded(exchange.status)

    def _is_allowed(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip(" ").encode("latin-1")).digest()  # of equal length, so that the comparison takes equally long
        return scheme.lower() == "bearer" and hmac.compare_digest(digest, self._token or b"")

    async def _send_error(self, scope: Scope, exchange: "_Exchange", status: int, headers: dict[str, str], text: str) -> None:
        facts = {"error": text, "request_id": exchange.request_id, "model": model_facts(self._engine.model)}
        await json_response(facts, status, headers)(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, service: "Service", headers: Headers, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
        given = headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._service, self._receive, self._send = service, receive, send
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
            model = self._service.engine.model
            headers.setdefault("X-Model-SHA256", model.sha256)
            if model.version:
                headers.setdefault("X-Model-Version", model.version)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._has_more or not self._service.is_ready:  # near its end, so that no client sends into a connection that is closing
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
