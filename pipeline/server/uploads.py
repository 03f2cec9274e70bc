"""Pictures as they come in: the body of a request, read within bounds, its parts, and their decoding."""

import asyncio
import io
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.pictures.images import FORMATS, Array, BrokenPicture
from pipeline.server.engine import Engine, Overloaded, Served

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_NO_PICTURES = ("application/json", "text/")  # types of bodies that are something else; curl's default type is let through


class Refused(Exception):  # noqa: N818 - the client's fault, not the server's
    """A request that is not answered. `status`: of HTTP; `reason`: a word for the metrics; the text is one sentence for the client."""

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.reason = status, reason


class Gone(Exception):  # noqa: N818 - nobody is there to read it
    """The client has closed the connection."""


@dataclass(frozen=True)
class Bounds:
    """What a request may bring.

    `body_bytes`: of its body; `pictures`: in it; `pixels`: of a picture; `body_seconds`: to send the body; `held_bytes`: of all bodies
    that are in memory at one time.
    """

    body_bytes: int = 32 << 20
    pictures: int = 32
    pixels: int = 50_000_000
    body_seconds: float = 20.0
    held_bytes: int = 256 << 20


class Bodies:
    """Reads the bodies of requests, and counts the bytes that are in memory."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.held = bounds, 0

    async def read(self, headers: MutableMapping[str, str] | Any, receive: Receive) -> bytes:
        """The body of a request. It counts as held until `release`. Raises Refused, Overloaded, Gone."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "type", "a compressed body is not read; send it without Content-Encoding")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.bounds.body_bytes:
            raise self._too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    self.held += len(chunk)
                    if size > self.bounds.body_bytes:
                        raise self._too_large()
                    if self.held > self.bounds.held_bytes:
                        raise Overloaded(1)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            self.held -= size
            raise Refused(408, "slow", f"the body did not arrive within {self.bounds.body_seconds:g} s; send it faster") from None
        except BaseException:
            self.held -= size
            raise

    def release(self, body: bytes) -> None:
        """The body is no longer needed."""
        self.held -= len(body)

    def _too_large(self) -> Refused:
        return Refused(413, "bytes", f"the body has more than {self.bounds.body_bytes:,} bytes; send fewer or smaller pictures")


class Decoder:
    """The decoder of pictures, in a few threads, with a bound on the pictures that wait for them."""

    def __init__(self, engine: Engine, threads: int, pixels: int) -> None:
        self._engine, self._pixels = engine, pixels
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._most = threads + engine.limits.queue

    async def read(self, content: bytes, model: Served) -> Array:
        """The pixels of a picture, uint8 (S, S, 3), prepared for a model. Raises BrokenPicture, and Overloaded if too many wait."""
        if self._engine.coming >= self._most:
            raise Overloaded(self._engine.retry_seconds())
        self._engine.coming += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._read, content, model)
        future.add_done_callback(self._count)
        return await future

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, _: object) -> None:
        self._engine.coming -= 1

    def _read(self, content: bytes, model: Served) -> Array:
        check_pixels(content, self._pixels)
        return model.predictor.read(content)


def check_pixels(content: bytes, most: int) -> None:
    """Raise BrokenPicture if a picture has more pixels than that, by the head of its file: nothing is decoded."""
    if not content:
        raise BrokenPicture("an empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # the decoder says what is wrong
        return
    if width * height > most:
        raise BrokenPicture(f"{width} x {height} pixels are more than {most:,}")


def read_pictures(content_type: str, body: bytes, most: int) -> list[bytes]:
    """The pictures in a body: each part of a multipart form, whatever its name, or else the body itself. Raises Refused."""
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name.startswith(_NO_PICTURES):
        raise Refused(415, "type", "the body is not a picture; send a picture's bytes, or a multipart form, or use /invocations for JSON")
    pictures = _parts(body, options.get(b"boundary", b""), most) if name.startswith("multipart/") else [body]
    if not any(pictures):
        raise Refused(400, "form", "the request contains no picture")
    return pictures


def _parts(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    """The content of each part. Names and other headers of parts are not looked at."""
    parts: list[bytearray] = []

    def begin() -> None:
        if len(parts) == most:
            raise Refused(413, "pictures", f"the request contains more than {most} pictures; send several requests")
        parts.append(bytearray())

    def take(data: bytes, start: int, end: int) -> None:
        parts[-1] += data[start:end]

    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        if not boundary:
            raise FormParserError
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": take, "on_end": end})
        parser.write(body)
        parser.finalize()
    except FormParserError:
        ended = False
    if not ended:
        raise Refused(400, "form", "the multipart form is damaged: its boundary or a part is not as RFC 7578 says")
    return [bytes(part) for part in parts]
