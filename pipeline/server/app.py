"""The application: its endpoints, and what they share."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from PIL import Image

from pipeline.core.files import sha256_of
from pipeline.pictures.images import BrokenPicture, decode
from pipeline.server.documents import INVOCATIONS_DOCUMENT, PREDICT_DOCUMENT, Metadata, Status, invocation_row, row_of
from pipeline.server.engine import Answer, Engine
from pipeline.server.metrics import Metrics
from pipeline.server.requests import EXPECTED, Envelope, json_response, model_facts, sentence_response, unless_gone
from pipeline.server.uploads import Bodies, Bounds, Decoder, read_cells, read_pictures

_Async = Callable[[], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class Observed:
    """A picture that was answered, for observers."""

    request_id: str
    content: bytes
    answer: Answer

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the picture's bytes."""
        return sha256_of(self.content)

    @cached_property
    def picture(self) -> Image.Image:
        """The picture in its full size, RGB, upright. It is decoded when it is first asked for."""
        return decode(self.content)


@dataclass(frozen=True)
class Settings:
    """How the application works.

    `token`: what clients must send, if there is one, except to `open_paths`; `decoders`: threads that decode; `host_names`: that requests
    may name as their host, besides addresses and localhost, None if any: see `requests.check_sender`.
    """

    bounds: Bounds = field(default_factory=Bounds)
    token: str | None = None
    open_paths: frozenset[str] = frozenset({"/live", "/ready"})
    decoders: int = 2
    host_names: frozenset[str] | None = None


class Service:
    """What the endpoints share; a router finds it as `request.app.state.service`."""

    def __init__(self, engine: Engine, settings: Settings, observers: Sequence[Callable[[Observed], object]], metrics: Metrics) -> None:
        self.engine, self.settings, self.observers, self.metrics = engine, settings, observers, metrics
        self.bodies = Bodies(settings.bounds)
        self.decoder = Decoder(engine, settings.decoders, settings.bounds.pixels)
        self.is_ready = True

    async def answer_all(self, request: Request, read: Callable[[str, bytes, int], Sequence[bytes]]) -> list[Answer | str]:
        """The answer to each picture of a request, or the fault of one that cannot be read.

        `read`: from content type, body and the most pictures to their bytes. Raises Refused, Overloaded, Late, Gone.
        """
        body = await self.bodies.read(request.headers, request.receive)
        try:
            contents = read(request.headers.get("content-type", ""), body, self.settings.bounds.pictures)
            return await unless_gone(request.receive, self._answer_each(contents, request.state.request_id))
        finally:
            self.bodies.release(body)

    async def predict(self, content: bytes, request_id: str) -> Answer:
        """Decode a picture and answer it, before the deadline. Raises BrokenPicture, Overloaded, Late."""
        answer, decode_seconds = await self.engine.in_time(self._decode_and_answer(content))
        self.metrics.answered(answer, decode_seconds)
        for observer in self.observers:
            self.engine.background.submit(len(content), observer, Observed(request_id, content, answer))
        return answer

    async def _decode_and_answer(self, content: bytes) -> tuple[Answer, float]:
        model, started = self.engine.model, time.perf_counter()
        pixels = await self.decoder.read(content, model)
        decode_seconds = time.perf_counter() - started
        return await self.engine.answer(pixels, model), decode_seconds

    async def _answer_each(self, contents: Sequence[bytes], request_id: str) -> list[Answer | str]:
        if len(contents) == 1:  # without tasks, which take longer than a small network
            return [await self._answer_or_fault(contents[0], request_id)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer_or_fault(content, request_id)) for content in contents]
        except ExceptionGroup as errors:  # the first cancels the others
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer_or_fault(self, content: bytes, request_id: str) -> Answer | str:
        try:
            return await self.predict(content, request_id)
        except BrokenPicture as error:
            self.metrics.refused("picture")
            return str(error)


def create_app(
    engine: Engine,
    settings: Settings,
    routers: Sequence[APIRouter] = (),
    observers: Sequence[Callable[[Observed], object]] = (),
    on_start: Sequence[_Async] = (),
    on_stop: Sequence[_Async] = (),
    metrics: Metrics | None = None,
    status: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
) -> FastAPI:
    """The application: the endpoints of this file and those of `routers`.

    `observers`: called for each picture that was answered, in the engine's background thread; `on_start`, `on_stop`: awaited in the event
    loop before the first request and after the last; `metrics`: what `/metrics` shows, in whose registry others may register theirs;
    `status`: more keys of `/metadata`, each with a function that returns its facts.
    """
    service = Service(engine, settings, observers, metrics or Metrics(engine))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for start in on_start:
            await start()
        yield
        for stop in on_stop:
            await stop()
        service.decoder.close()
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="pipeline serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.status = service, status or {}
    for router in (_router, *routers):
        app.include_router(router)
    for error in EXPECTED:
        app.add_exception_handler(error, sentence_response)
    app.add_middleware(Envelope, service=service)
    return app


_router = APIRouter()


@_router.get("/live", response_model=Status)
async def live() -> Response:
    """Whether the process answers."""
    return json_response({"status": "live"})


@_router.get("/ready", response_model=Status, responses={503: {"model": Status}})
async def ready(request: Request) -> Response:
    """Whether the server takes requests: 503 from SIGTERM on."""
    is_ready = request.app.state.service.is_ready
    return json_response({"status": "ready" if is_ready else "ending"}, 200 if is_ready else 503)


@_router.get("/metadata", response_model=Metadata)
async def metadata(request: Request) -> Response:
    """The served model: classes, preprocessing, sha256, version, the params of its training; and the limits of the server."""
    service: Service = request.app.state.service
    facts, bounds = service.engine.model.predictor.facts, service.settings.bounds
    limits = {"body_bytes": bounds.body_bytes, "pictures": bounds.pictures, "pixels": bounds.pixels}
    return json_response(
        {
            "model": model_facts(service.engine.model),
            "class_names": facts["class_names"],
            "preprocessing": asdict(service.engine.model.predictor.preprocessing),
            "unfamiliar": facts.get("unfamiliar"),
            "params": facts.get("params", {}),
            "limits": limits,
            "request_id": request.state.request_id,
            **{name: read() for name, read in request.app.state.status.items()},
        }
    )


@_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@_router.post("/predict", **PREDICT_DOCUMENT)
async def predict(request: Request) -> Response:
    """Predict the classes of pictures: the bytes of one, or a multipart form of which each part is one. A row per picture, in order.

    A picture that cannot be read has the row `{"fault": reason}`; the status is 422 if that is true of all.
    """
    service: Service = request.app.state.service
    answers = await service.answer_all(request, read_pictures)
    faults = [answer for answer in answers if isinstance(answer, str)]
    if len(faults) == len(answers):
        raise BrokenPicture(f"the picture cannot be read: {faults[0]}" if len(faults) == 1 else f"no picture can be read: {faults[0]}")
    return _rows(request, answers, row_of)


@_router.post("/invocations", **INVOCATIONS_DOCUMENT)
async def invocations(request: Request) -> Response:
    """Predict as MLflow's scoring server does for this model: JSON with the column `picture` in base64, a row per picture."""
    return _rows(request, await request.app.state.service.answer_all(request, read_cells), invocation_row)


def _rows(request: Request, answers: Sequence[Answer | str], row: Callable[[Answer | str], dict[str, Any]]) -> Response:
    """The rows, and the model that computed them."""
    model = next((answer.model for answer in answers if not isinstance(answer, str)), request.app.state.service.engine.model)
    facts = {"predictions": [row(answer) for answer in answers], "model": model_facts(model), "request_id": request.state.request_id}
    headers = {"X-Model-SHA256": model.sha256} | ({"X-Model-Version": model.version} if model.version else {})
    return json_response(facts, headers=headers)
