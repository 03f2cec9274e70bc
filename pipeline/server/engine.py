"""The engine: one loaded model, a bounded queue of pictures, and micro-batches that a few threads run.

Pictures that arrive while all threads are busy wait, and are run together. An idle thread waits for a fuller batch only while other
pictures are being decoded, and then a few milliseconds at most.
"""

import asyncio
import ctypes
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy as np

from pipeline.core.files import sha256_of_file
from pipeline.pictures.images import Array
from pipeline.serving.predictor import Outputs, Predictor, open_model

Result = TypeVar("Result")
_LOG = logging.getLogger("pipeline.server")
_BATCH_PIXELS = 8 * 128**2  # of a batch: the CPU gains nothing from more, and their layers take memory
_ARENA_MAX = -8  # of malloc.h
_MOST_CALLS, _MOST_HELD_BYTES = 256, 64 << 20  # that wait for listeners and observers, which must not fill the memory


@dataclass(frozen=True, eq=False)
class Served:
    """A model that is loaded and answers. `version`: in MLflow's registry, None if it is not known; `folder`: its model folder."""

    name: str
    sha256: str
    version: str | None
    folder: Path
    predictor: Predictor


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model answers to one picture.

    `probs`: float32 (classes,); `unfamiliarity`: above 1 is unfamiliar; `features`: float32 (D,); both None if the model does not have
    them; `model`: the one that answered; `queue_seconds`, `infer_seconds`: how long the picture waited, and how long its batch ran.
    """

    probs: Array
    unfamiliarity: float | None
    features: Array | None
    model: Served
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0


@dataclass(frozen=True)
class Limits:
    """How the engine works.

    `batch`: pictures that are run at once; `wait_seconds`: how long the first of them waits for others at most; `queue`: pictures that
    wait; `deadline_seconds`: from a picture's bytes to its answer; `runners`: batches that run at the same time, each in a thread.
    """

    batch: int = 8
    wait_seconds: float = 0.005
    queue: int = 128
    deadline_seconds: float = 10.0
    runners: int = 1


class Overloaded(Exception):  # noqa: N818 - a state, which passes
    """The queue is full. `retry_seconds`: when to try again."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class Late(Exception):  # noqa: N818 - a state, which passes
    """The deadline passed before the picture was answered."""


def load_served(name: str, folder: Path, threads: int, version: str | None = None) -> Served:
    """Load the model of a folder; each of its runs uses that many threads. Raises PipelineError."""
    return Served(name, sha256_of_file(folder / "model.onnx"), version, folder, open_model(folder, threads))


def trim_memory() -> None:
    """Hand back what glibc keeps: loading a model takes three times its size and needs once its size. Elsewhere nothing happens."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_ARENA_MAX, 2)  # by default each thread has an own heap, which is never handed back
        libc.malloc_trim(0)


@dataclass(eq=False)
class _Job:
    pixels: Array
    model: Served
    future: "asyncio.Future[Answer]"
    entered: float = field(default_factory=time.perf_counter)


class Background:
    """A thread that calls functions in turn. What it cannot take is dropped and counted; what fails is logged."""

    def __init__(self, name: str) -> None:
        self.dropped = 0
        self._held_bytes, self._lock = 0, Lock()
        self._calls: Queue[tuple[Callable[..., object], tuple[Any, ...], int] | None] = Queue(_MOST_CALLS)
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, size: int, function: Callable[..., object], *arguments: Any) -> None:
        """Let the thread call a function, whose arguments hold that many bytes. Returns at once."""
        with self._lock:
            if self._calls.full() or self._held_bytes + size > _MOST_HELD_BYTES:
                self.dropped += 1
                return
            self._held_bytes += size
            self._calls.put_nowait((function, arguments, size))

    def stop(self, seconds: float) -> None:
        """Let the thread end after what it was given, and wait for it at most that long."""
        with suppress(Full):
            self._calls.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments, size = call
            try:
                function(*arguments)
            except Exception:  # a listener never stops the others
                _LOG.exception("a listener failed")
            del call, function, arguments  # the thread may wait long for the next, and they refer to a model
            with self._lock:
                self._held_bytes -= size


class Engine:
    """Answers pictures with the model that is served at the moment. All methods but `swap` belong to one event loop."""

    def __init__(self, model: Served, limits: Limits | None = None) -> None:
        self.model = model
        self.limits = limits or Limits()
        self.listeners: list[Callable[[Sequence[Array], Sequence[Answer]], None]] = []
        self.background = Background("listeners")
        self.coming = 0  # pictures that are being decoded, see `Decoder`
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: deque[_Job] = deque()
        self._idle = self.limits.runners
        self._pool = ThreadPoolExecutor(self.limits.runners, "infer")
        self._seconds_per_picture = 0.01

    @property
    def depth(self) -> int:
        """The number of pictures that wait."""
        return len(self._jobs)

    def swap(self, model: Served) -> None:
        """Serve another model from now on. Pictures that were prepared for the one before are answered by it."""
        self.model = model

    async def answer(self, pixels: Array, model: Served | None = None) -> Answer:
        """Answer the prepared pixels of a picture, uint8 (S, S, 3). Raises Overloaded if the queue is full.

        `model`: the one for which they were prepared, by default the present one. If the caller is cancelled, they are not run.
        """
        if len(self._jobs) >= self.limits.queue:
            raise Overloaded(self.retry_seconds())
        loop = asyncio.get_running_loop()
        job = _Job(pixels, model or self.model, loop.create_future())
        self._jobs.append(job)
        self._dispatch()
        return await job.future

    async def in_time(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, which is cancelled at the deadline. Raises Late."""
        try:
            async with asyncio.timeout(self.limits.deadline_seconds):
                return await work
        except TimeoutError:
            raise Late("the answer takes longer than the deadline; try again later") from None

    def retry_seconds(self) -> int:
        """After how many seconds the pictures that wait now are answered."""
        return max(1, round(len(self._jobs) * self._seconds_per_picture / self.limits.runners))

    def close(self) -> None:
        """Let the threads end. What still waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.background.stop(5.0)

    def _dispatch(self) -> None:
        """Give batches to idle threads."""
        loop = asyncio.get_running_loop()
        while self._idle and self._jobs:
            if (wait := self._wait_seconds()) > 0:
                self._timer = self._timer or loop.call_later(wait, self._wake)
                return
            if batch := self._next_batch():
                self._idle -= 1
                started = time.perf_counter()
                running = loop.run_in_executor(self._pool, _run, batch[0].model, [job.pixels for job in batch])
                running.add_done_callback(partial(self._finish, batch, started))

    def _wake(self) -> None:
        self._timer = None
        self._dispatch()

    def _wait_seconds(self) -> float:
        """How much longer the first picture waits for others: not at all if the batch is full, or if none is being decoded."""
        if self.coming <= 0 or len(self._jobs) >= self.limits.batch:
            return 0.0
        return self._jobs[0].entered + self.limits.wait_seconds - time.perf_counter()

    def _next_batch(self) -> list[_Job]:
        """The next pictures for one model, without those of clients that have gone."""
        batch: list[_Job] = []
        side = self._jobs[0].pixels.shape[0]
        most = max(1, min(self.limits.batch, _BATCH_PIXELS // side**2))
        share = -(-len(self._jobs) // max(1, self._idle))  # idle threads share what waits
        while self._jobs and len(batch) < min(most, share):
            if self._jobs[0].future.done():
                self._jobs.popleft()
            elif batch and self._jobs[0].model is not batch[0].model:
                break
            else:
                batch.append(self._jobs.popleft())
        return batch

    def _finish(self, batch: Sequence[_Job], started: float, done: "asyncio.Future[Outputs]") -> None:
        self._idle += 1
        if (error := done.exception()) is not None:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        else:
            seconds = time.perf_counter() - started
            self._seconds_per_picture += 0.1 * (seconds / len(batch) - self._seconds_per_picture)
            answers = [_answer(done.result(), row, job, started, seconds) for row, job in enumerate(batch)]
            for job, answer in zip(batch, answers, strict=True):
                if not job.future.done():
                    job.future.set_result(answer)
            for listener in self.listeners:
                self.background.submit(sum(job.pixels.nbytes for job in batch), listener, [job.pixels for job in batch], answers)
        self._dispatch()


def _run(model: Served, pixels: Sequence[Array]) -> Outputs:
    return model.predictor.run(np.stack(pixels), "unfamiliarity", "features")


def _answer(outputs: Outputs, row: int, job: _Job, started: float, seconds: float) -> Answer:
    unfamiliarity = None if outputs.unfamiliarity is None else float(outputs.unfamiliarity[row])
    features = None if outputs.features is None else outputs.features[row]
    return Answer(outputs.probs[row], unfamiliarity, features, job.model, started - job.entered, seconds)
