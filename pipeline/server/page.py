"""The page at `/`: its files, and `/explain`, the activation map of one picture. Neither torch nor matplotlib is imported."""

import base64
import io
import math
import time
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from PIL import Image
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from pipeline.core.errors import PipelineError
from pipeline.evaluation.galleries import class_activation
from pipeline.networks.artifact import read_facts
from pipeline.pictures.images import Array, Preprocessing, decode, to_square
from pipeline.server.app import Service
from pipeline.server.documents import Model
from pipeline.server.engine import Served
from pipeline.server.requests import json_response, model_facts, unless_gone
from pipeline.server.uploads import count_pixels, read_pictures

FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
OPEN_PATHS = frozenset({"/", *(f"/page/{name}" for name in FILES)})  # without a token: the page asks for it
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # blob: a picture of the user, data: its activation map
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by the browser, which asks each time whether it changed
}
NO_MAP = "This model has no activation map: its head is not linear on a feature map."
NO_HEAD = "The activation map cannot be drawn: the weights beside the model are missing, or are those of another model."
_SIDE = 224  # of a map, in pixels
# matplotlib's inferno at each sixteenth, as the report's maps have it; between two the colours are mixed. A server imports no matplotlib.
_INFERNO = bytes.fromhex(
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
)


class HasMaps(BaseModel):
    """Whether the model draws activation maps; `reason`: a sentence, if it does not."""

    activation_map: bool
    reason: str | None
    model: Model


class Map(BaseModel):
    """An activation map. `png`: a data URL; the rest is the part of the picture that it covers, in shares of the picture's sides."""

    png: str
    left: float
    top: float
    width: float
    height: float


class Explanation(BaseModel):
    """The answer to a picture, and where the model found evidence for it. `reason`: a sentence, if there is no map."""

    predicted: str
    probability: float
    unfamiliarity: float | None
    activation_map: Map | None
    reason: str | None
    model: Model
    request_id: str


_PICTURE = {"schema": {"type": "string", "format": "binary"}}
EXPLAIN_DOCUMENT: dict[str, Any] = {
    "response_model": Explanation,
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/octet-stream": _PICTURE, "image/*": _PICTURE}}},
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page: its bytes, its type and its ETag."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_file(name: str) -> PageFile:
    """Return a file of the page, read once. `name`: a key of `FILES`."""
    content = (Path(__file__).parent / "page" / name).read_bytes()
    return PageFile(content, FILES[name], f'"{sha256(content).hexdigest()[:32]}"')


def seen_part(size: tuple[int, int], preprocessing: Preprocessing) -> dict[str, float]:
    """Return the part of a picture that the network sees, left, top, width and height as shares of the picture's sides.

    `size`: width and height of the upright picture. With crop_mode border the part may exceed the picture: left or top is negative.
    """
    modes = {"squash": size, "center": (min(size),) * 2, "border": (max(size),) * 2}
    width, height = (preprocessing.crop * side / whole for side, whole in zip(modes[preprocessing.crop_mode], size, strict=True))
    return {"left": (1 - width) / 2, "top": (1 - height) / 2, "width": width, "height": height}


def draw_map(heat: Array) -> str:
    """Return an activation map, float (h, w) from 0 to 1, as the data URL of a PNG: 224 x 224 pixels, from black to yellow."""
    small = Image.fromarray(np.rint(255 * heat).astype(np.uint8))
    levels = small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    levels.putpalette(_palette())
    with io.BytesIO() as file:
        levels.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@cache
def _palette() -> bytes:
    """The 256 colours of a map, three bytes each."""
    anchors = np.frombuffer(_INFERNO, np.uint8).reshape(-1, 3)
    places = np.linspace(0, 255, len(anchors)).round()
    return np.stack([np.interp(np.arange(256), places, channel) for channel in anchors.T], axis=1).round().astype(np.uint8).tobytes()


def head_weight(folder: Path, model_sha256: str) -> Array | None:
    """Return the weight of a model's head, float (classes, channels); None if the folder has none, or has another model by now."""
    try:
        return _read_head_weight(folder, model_sha256)
    except (PipelineError, SafetensorError, OSError, KeyError):
        return None


@lru_cache(maxsize=2)  # the model that answers, and the one that takes its place. A fault is not kept: `dvc checkout` may be under way
def _read_head_weight(folder: Path, model_sha256: str) -> Array:
    if read_facts(folder)["model_sha256"] != model_sha256:
        raise KeyError(model_sha256)
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        return np.asarray(tensors.get_tensor("head.weight"))


def why_no_map(model: Served) -> str | None:
    """Return in a sentence why a model draws no activation map; None if it draws them."""
    if "feature_map" not in model.predictor.outputs:
        return NO_MAP
    return NO_HEAD if head_weight(model.folder, model.sha256) is None else None


def explain(content: bytes, model: Served, most_pixels: int) -> dict[str, Any]:
    """Return what a model answers to a picture, and where it found evidence for its class. Raises BrokenPicture.

    `predicted`, `probability`, `unfamiliarity` (None if the model has none), and `activation_map`: `png`, a data URL, and the part of
    the picture that it covers, see `seen_part`; None if the model draws none, and then `reason` is a sentence.
    """
    count_pixels(content, most_pixels)
    preprocessing, names = model.predictor.preprocessing, model.predictor.class_names
    image = decode(content, at_least=2 * math.ceil(preprocessing.image_size / preprocessing.crop))  # as `read_square`
    outputs = model.predictor.run(to_square(image, preprocessing)[None], "unfamiliarity", "feature_map")
    best, reason = int(outputs.probs[0].argmax()), why_no_map(model)
    drawn = None
    if outputs.feature_map is not None and (weight := head_weight(model.folder, model.sha256)) is not None:
        heat = class_activation(outputs.feature_map[0], weight, best)
        drawn = {"png": draw_map(heat), **seen_part(image.size, preprocessing)}
    return {
        "predicted": names[best],
        "probability": round(float(outputs.probs[0, best]), 6),
        "unfamiliarity": None if outputs.unfamiliarity is None else round(float(outputs.unfamiliarity[0]), 6),
        "activation_map": drawn,
        "reason": reason,
    }


def page_router() -> APIRouter:
    """Return the routes of the page, for `create_app`: `/`, `/page/…` and `/explain`."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _send(request, "index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return _send(request, name)

    @router.get("/explain", response_model=HasMaps)
    async def has_maps(request: Request) -> Response:
        """Whether the model draws activation maps, and if not, why."""
        model = request.app.state.service.engine.model
        reason = why_no_map(model)
        return json_response({"activation_map": reason is None, "reason": reason, "model": model_facts(model)})

    @router.post("/explain", **EXPLAIN_DOCUMENT)
    async def explain_one(request: Request) -> Response:
        """Explain one picture, its bytes or a multipart form: its class, and where the model found evidence for it."""
        service: Service = request.app.state.service
        model, bounds = service.engine.model, service.settings.bounds
        body = await service.bodies.read(request.headers, request.receive)
        try:
            (content,) = read_pictures(request.headers.get("content-type", ""), body, 1)
            started = time.perf_counter()
            explained = service.engine.in_time(service.decoder.slow.run(explain, content, model, bounds.pixels))
            answer = await unless_gone(request.receive, explained)
            service.metrics.explained(time.perf_counter() - started)
        finally:
            service.bodies.release(body)
        return json_response({**answer, "model": model_facts(model), "request_id": request.state.request_id})

    return router


def _send(request: Request, name: str) -> Response:
    """A file of the page, or 304 if the browser has it."""
    file = page_file(name)
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
