"""Pictures as they come in: the body of a request, read within bounds, the pictures in it, and their decoding."""

import asyncio
import base64
import binascii
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.pictures.images import FORMATS, Array, BrokenPicture
from pipeline.server.engine import Engine, Overloaded, Served

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")
_LARGE = 12_500_000  # pixels: more than a phone's usual photo. 16 bits a pixel take 27 bytes of memory, 1.3 GB at the bound
_MOST_SLOW = 8  # large pictures, and pictures to explain, that wait
COLUMN = "picture"
_MOST_SIGNS = 50_000  # that begin a value: small values take many times their bytes in memory
_FORMATS = ("dataframe_split", "dataframe_records")
_EXPECTED = f"a JSON object with {' or '.join(_FORMATS)}, and in it the column `{COLUMN}` with pictures in base64"
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


class Lane:
    """A few threads that work on pictures, and a bound on what waits for them.

    A caller that is cancelled frees its place in the queue, with the bytes that it holds; a place in a thread is free when the thread is.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self.depth = 0  # of callers, and of threads that work for nobody
        self._pool = ThreadPoolExecutor(threads, name)
        self._most = threads + waiting
        self._places = asyncio.Semaphore(2 * threads)  # twice, so that a thread need not wait for the event loop

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function returns, which is called in one of the threads. Raises Overloaded if too many wait."""
        if self.depth >= self._most:
            raise Overloaded(1)
        self.depth += 1
        try:
            await self._places.acquire()
        except BaseException:
            self.depth -= 1
            raise
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        future.add_done_callback(self._end)
        await asyncio.wait([future])  # unlike `await future`, this does not cancel it
        return future.result()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _end(self, future: "asyncio.Future[Any]") -> None:
        self.depth -= 1
        self._places.release()
        if not future.cancelled():
            future.exception()  # the caller may have gone


class Decoder:
    """The decoder of pictures. Large ones, which take seconds and gigabytes, are decoded one at a time, and the others pass them."""

    def __init__(self, engine: Engine, threads: int, pixels: int) -> None:
        self.slow = Lane("slow", 1, _MOST_SLOW)
        self._engine, self._pixels = engine, pixels
        self._lane = Lane("decode", threads, engine.limits.queue)

    @property
    def busy(self) -> int:
        """Pictures that are decoded or explained, or wait for it, also for clients that have gone."""
        return self._lane.depth + self.slow.depth

    async def read(self, content: bytes, model: Served) -> Array:
        """The pixels of a picture, uint8 (S, S, 3), prepared for a model. Raises BrokenPicture, and Overloaded if too many wait."""
        self._engine.coming += 1
        try:
            pixels = await self._lane.run(self._read_unless_large, content, model)
        finally:
            self._engine.coming -= 1
        return await self.slow.run(model.predictor.read, content) if pixels is None else pixels

    def close(self) -> None:
        """Let the threads end."""
        self._lane.close()
        self.slow.close()

    def _read_unless_large(self, content: bytes, model: Served) -> Array | None:
        return None if count_pixels(content, self._pixels) > _LARGE else model.predictor.read(content)


def count_pixels(content: bytes, most: int) -> int:
    """The pixels of a picture, by the head of its file: nothing is decoded. 0 if it cannot be read.

    Raises BrokenPicture if there are more than `most`.
    """
    if not content:
        raise BrokenPicture("an empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # the decoder says what is wrong
        return 0
    if width * height > most:
        raise BrokenPicture(f"{width} x {height} pixels are more than {most:,}")
    return int(width * height)


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


def read_cells(content_type: str, body: bytes, most: int) -> list[bytes]:
    """The pictures that a client of MLflow's scoring server sends for this model, in the order of its rows. Raises Refused.

    As in MLflow, characters that are not base64 are skipped, other columns are ignored, and `params` are not used. Its forms `instances`
    and `inputs` are refused: it never decodes base64 in them.
    """
    kind, _, options = content_type.partition(";")
    if kind.strip().lower() != "application/json" or options.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise Refused(415, "type", "the content type is not application/json in UTF-8")
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_SIGNS:
        raise Refused(413, "json", f"the JSON has more than {_MOST_SIGNS:,} values; send several requests")
    try:
        request = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "json", "the body is not JSON") from None
    formats = [name for name in (*_FORMATS, "instances", "inputs") if isinstance(request, dict) and name in request]
    if len(formats) != 1 or formats[0] not in _FORMATS:
        raise Refused(400, "json", f"the body is not {_EXPECTED}")
    cells = _column(formats[0], request[formats[0]])
    if len(cells) > most:
        raise Refused(413, "pictures", f"the request contains more than {most} pictures; send several requests")
    return [_bytes_of(cell) for cell in cells]


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _column(form: str, content: Any) -> Sequence[Any]:
    """The cells of the column of pictures. Raises Refused if there is none."""
    try:
        if form == "dataframe_split":
            place = list(content["columns"]).index(COLUMN)
            return [row[place] for row in _listed(content["data"])]
        return [row[COLUMN] for row in _listed(content) or [{}]]  # without a row there is no column
    except (LookupError, TypeError, ValueError):
        raise Refused(400, "json", f"`{form}` has no column `{COLUMN}`, or another form than pandas gives it") from None


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _bytes_of(cell: Any) -> bytes:
    try:
        return base64.decodebytes(cell.encode("utf-8"))
    except (AttributeError, binascii.Error, UnicodeEncodeError):
        raise Refused(400, "json", f"a cell of the column `{COLUMN}` is not a picture in base64") from None
