"""The HTTP server: its endpoints, and what every answer carries."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from PIL import Image

from pipeline.core.files import sha256_of
from pipeline.pictures.images import BrokenPicture, decode
from pipeline.server.engine import Answer, Engine
from pipeline.server.metrics import Metrics
from pipeline.server.uploads import Bounds, Decoder, Refused, read_pictures


@dataclass(frozen=True)
class Observed:
    """A picture that was answered, for observers. They are called in a thread of their own."""

    request_id: str
    content: bytes
    answer: Answer

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the picture's bytes."""
        return sha256_of(self.content)

    @cached_property
    def picture(self) -> Image.Image:
        """The picture in its full size, RGB, upright. It is decoded when it is asked for."""
        return decode(self.content)


@dataclass(frozen=True)
class Settings:
    """Limits of the server. `token`: what clients must send, if there is one; `decoders`: threads that decode."""

    bounds: Bounds = field(default_factory=Bounds)
    token: str | None = None
    decoders: int = 2


class Service:
    """What the endpoints share; a router finds it as `request.app.state.service`."""

    def __init__(self, engine: Engine, settings: Settings, observers: Sequence[Callable[[Observed], None]], metrics: Metrics) -> None:
        self.engine, self.settings, self.observers, self.metrics = engine, settings, observers, metrics
        self.decoder = Decoder(settings.decoders, engine.limits.queue, settings.bounds.pixels)
        self.is_ready = True

    async def predict(self, content: bytes, request_id: str) -> Answer:
        """Decode a picture and answer it. Raises BrokenPicture, Overloaded, Late."""
        model = self.engine.model
        pixels = await self.decoder.read(content, model)
        answer = await self.engine.answer(pixels, model)
        for observer in self.observers:
            self.engine.background.submit(observer, Observed(request_id, content, answer))
        return answer


def row_of(answer: Answer) -> dict[str, Any]:
    """An answer as JSON: `predicted`, `probability`, `probs` by class, and `unfamiliarity` and `unfamiliar` if the model has them."""
    names, probs = answer.model.predictor.class_names, [round(float(prob), 6) for prob in answer.probs]
    best = int(answer.probs.argmax())
    row: dict[str, Any] = {"predicted": names[best], "probability": probs[best], "probs": dict(zip(names, probs, strict=True))}
    if answer.unfamiliarity is not None:
        row |= {"unfamiliarity": round(answer.unfamiliarity, 6), "unfamiliar": answer.unfamiliarity > 1}
    return row


def create_app(
    engine: Engine,
    settings: Settings,
    routers: Sequence[APIRouter] = (),
    observers: Sequence[Callable[[Observed], None]] = (),
    on_start: Sequence[Callable[[], Awaitable[None]]] = (),
    on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
    metrics: Metrics | None = None,
) -> FastAPI:
    """The application: the endpoints of this file and those of `routers`.

    `observers`: called for each picture that was answered, in a thread of their own; `on_start`, `on_stop`: awaited in the event loop
    before the first request and after the last; `metrics`: what `/metrics` shows, and where others register theirs.
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
    app.state.service = service
    app.include_router(_router)
    for router in routers:
        app.include_router(router)
    return app


_router = APIRouter()


@_router.get("/live")
async def live() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "live"}


@_router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether the server takes requests: 503 while it ends."""
    is_ready = request.app.state.service.is_ready
    return Response(json.dumps({"status": "ready" if is_ready else "ending"}), 200 if is_ready else 503, media_type="application/json")


@_router.post("/predict")
async def predict(request: Request) -> Response:
    """Predict the classes of pictures."""
    service: Service = request.app.state.service
    body = await request.body()
    contents = read_pictures(request.headers.get("content-type", ""), body, service.settings.bounds)
    try:
        answers = await asyncio.gather(*(service.predict(content, "") for content in contents))
    except BrokenPicture as error:
        raise Refused(422, "broken", str(error)) from None
    return Response(json.dumps({"predictions": [row_of(answer) for answer in answers]}), media_type="application/json")
