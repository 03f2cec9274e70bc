"""Pictures as they come in: the body of a request read within bounds, its parts, and their decoding."""

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from pipeline.pictures.images import FORMATS, Array, BrokenPicture
from pipeline.server.engine import Overloaded, Served


class Refused(Exception):  # noqa: N818 - the client's fault, not the server's
    """A request that is not answered. `status`: of HTTP; `reason`: one word for the metrics; the text is one sentence for the client."""

    def __init__(self, status: int, reason: str, sentence: str, retry_seconds: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.reason, self.retry_seconds = status, reason, retry_seconds


@dataclass(frozen=True)
class Bounds:
    """What a request may bring: bytes of its body, pictures, pixels of each, seconds to send it."""

    body_bytes: int = 32 << 20
    pictures: int = 16
    pixels: int = 50_000_000
    body_seconds: float = 20.0


class Decoder:
    """The decoder of pictures in a few threads, with a bound on the pictures that wait for them."""

    def __init__(self, threads: int, waiting: int, pixels: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._most, self._pixels = threads + waiting, pixels
        self.depth = 0

    async def read(self, content: bytes, model: Served) -> Array:
        """The pixels of a picture, uint8 (S, S, 3), prepared for a model. Raises BrokenPicture, and Overloaded if too many wait."""
        if self.depth >= self._most:
            raise Overloaded(1)
        self.depth += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._read, content, model)
        future.add_done_callback(self._count)
        return await future

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, _: object) -> None:
        self.depth -= 1

    def _read(self, content: bytes, model: Served) -> Array:
        check_pixels(content, self._pixels)
        return model.predictor.read(content)


def check_pixels(content: bytes, most: int) -> None:
    """Raise BrokenPicture if a picture has more pixels than that, by the head of its file: nothing is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception:
        return
    if width * height > most:
        raise BrokenPicture(f"{width} x {height} pixels are more than {most:,}")


def read_pictures(content_type: str, body: bytes, bounds: Bounds) -> Sequence[bytes]:
    """The pictures in the body of a request."""
    return [body]
