"""The log of predictions: what a server answered, one JSON line per picture, in files that are rotated.

A log is a folder. Each file in it is written by one process, under a lock that the system releases when the process ends. The pictures
that a file names are in a folder of the same name below `pictures`, so that both are removed together.
"""

import base64
import errno
import fcntl
import json
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of
from pipeline.pictures.images import Array, decode_with_traits

LOG_FILES = "*.jsonl"
PICTURES = "pictures"
_PARTS = 10  # files that a log has when it is full
_PATIENCE_SECONDS = 1.0  # for which an answer may wait to be written: what a kill loses
_WAITING_BYTES = 64_000_000


@dataclass(frozen=True)
class Record:
    """One prediction.

    `time`: in UTC, as 2026-11-27T03:00:00.123Z; `request_id`: of the request that brought the picture; `sha256`: of the picture's bytes;
    `model_sha256`: of model.onnx; `probs`: float32 (classes,), in the order of its classes; `unfamiliarity`: above 1 is unfamiliar, None
    if the model does not say; `features`: float16 (D,), D is 0 if the model does not have them; `width`, `height`: in pixels;
    `brightness`, `sharpness`: see `inspection.PictureInfo`; `picture`: the path of the kept picture below the log's
    folder, None if it was not kept.
    """

    time: str
    request_id: str
    sha256: str
    model_sha256: str
    probs: Array
    unfamiliarity: float | None
    features: Array
    width: int
    height: int
    brightness: float
    sharpness: float
    picture: str | None = None


def log_line(record: Record) -> str:
    """A record as a line of JSON, with the features in base64."""
    facts = vars(record) | {
        "probs": [round(float(prob), 6) for prob in record.probs],
        "features": base64.b64encode(record.features.astype("<f2").tobytes()).decode("ascii"),
    }
    return json.dumps(facts, allow_nan=False) + "\n"


def read_log(folder: Path) -> Iterator[Record]:
    """The records of a log, in the order of its files and lines. A last line that a kill cut short is skipped. Raises PipelineError."""
    files = sorted(folder.glob(LOG_FILES))
    if not files:
        raise PipelineError(f"{folder}: contains no log of predictions; name the folder of `pipeline serve --log`")
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:  # a server that is running removed it, being the oldest
            continue
        for number, line in enumerate(lines[:-1], 1):  # behind the last line break is nothing, or a line that was cut short
            try:
                facts = json.loads(line)
                features = np.frombuffer(base64.b64decode(facts["features"]), "<f2")
                yield Record(**facts | {"probs": np.array(facts["probs"], np.float32), "features": features})
            except (ValueError, TypeError, KeyError):
                raise PipelineError(f"{path}: line {number}: is not a prediction; remove the line") from None


@dataclass(frozen=True)
class Logged:
    """An answer that is to be logged: the bytes of the picture and their sha256, and the model's outputs for it; see `Record`."""

    request_id: str
    content: bytes
    sha256: str
    model_sha256: str
    probs: Array
    unfamiliarity: float | None
    features: Array | None


@dataclass
class Counts:
    """Answers of the sample since the start: `written`; `dropped`, because the writer was busy; `failed`, because of the disk."""

    written: int = 0
    dropped: int = 0
    failed: int = 0


def is_sampled(request_id: str, sha256: str, share: float) -> bool:
    """Whether an answer is in the sample: its request's id and its picture's sha256 decide, by their common sha256.

    So no state is needed, two servers agree, and a client that always sends the same id does not decide for its other pictures.
    """
    return int(sha256_of(f"{request_id} {sha256}".encode())[:13], 16) < share * 16**13


class LogWriter:
    """Appends a sample of the answers to a log, in a thread of its own, so that no answer waits for the disk."""

    def __init__(self, folder: Path, share: float, keeps_pictures: bool, megabytes: float, say: Callable[[str], None]) -> None:
        """Open the log and start the thread. A line that a killed process cut short is removed.

        `share`: of the answers; `keeps_pictures`: whether the pictures themselves are kept; `megabytes`: of the folder, beyond which the
        oldest file is removed; `say`: takes a sentence about a fault. Raises PipelineError if the folder cannot be written.
        """
        self.counts = Counts()
        self._share, self._keeps_pictures, self._say = share, keeps_pictures, say
        self._said = set[tuple[str, int | None]]()
        try:
            self._parts = _Parts(folder, int(megabytes * 1e6))
        except OSError as error:
            raise PipelineError(f"{folder}: cannot be written ({error.strerror}); name another folder for the log") from None
        self._waiting, self._waiting_bytes, self._closing = deque[tuple[float, str, Logged]](), 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def offer(self, answer: Logged) -> bool:
        """Take an answer if it is in the sample, and return whether it was taken. Never waits: if the writer is behind, it is dropped."""
        if not is_sampled(answer.request_id, answer.sha256, self._share):
            return False
        now = time.monotonic()
        with self._changed:
            is_behind = bool(self._waiting) and now - self._waiting[0][0] > _PATIENCE_SECONDS
            if self._closing or is_behind or self._waiting_bytes + len(answer.content) > _WAITING_BYTES:
                self.counts.dropped += 1
                return False
            self._waiting.append((now, _stamp(), answer))
            self._waiting_bytes += len(answer.content)
            self._changed.notify()
        return True

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits, for at most so many seconds, and close the file. What is left then is counted as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self.counts.dropped += len(self._waiting)
            self._waiting.clear()

    def _run(self) -> None:
        synced = time.monotonic()
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(_PATIENCE_SECONDS)
                taken = self._waiting.popleft() if self._waiting else None
                self._waiting_bytes -= len(taken[2].content) if taken else 0
                is_last = self._closing and not taken
            with self._faults():
                if taken:
                    self._write(taken[1], taken[2])
                if is_last:
                    self._parts.close()
                elif time.monotonic() - synced > _PATIENCE_SECONDS:
                    self._parts.sync()
                    synced = time.monotonic()
            if is_last:
                return

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Count what fails, and say each fault once: a full disk must not fill the terminal, too."""
        try:
            yield
        except Exception as error:  # whatever it is, the server goes on answering
            self.counts.failed += 1
            kind = (type(error).__name__, getattr(error, "errno", None))  # the sentence may name the file of one picture
            if kind not in self._said:
                self._said.add(kind)
                self._say(f"the log of predictions: {error}; answers are not logged until that is mended")

    def _write(self, when: str, answer: Logged) -> None:
        from pipeline.pictures.inspection import brightness_and_sharpness, usual_suffix

        image, traits = decode_with_traits(answer.content)  # in full: the server may have decoded a JPEG at a part of its size
        features = np.zeros(0) if answer.features is None else answer.features
        record = Record(
            when,
            answer.request_id,
            answer.sha256,
            answer.model_sha256,
            answer.probs,
            answer.unfamiliarity,
            features.astype(np.float16),
            image.width,
            image.height,
            *brightness_and_sharpness(image),
        )
        self._parts.write(record, answer.content if self._keeps_pictures else None, usual_suffix(traits.format))
        self.counts.written += 1


def repair(folder: Path) -> list[Path]:
    """Remove the last line of each file of a log if a kill cut it short. Return those files. Files of running processes are left."""
    torn = []
    for path in sorted(folder.glob(LOG_FILES)):
        with suppress(FileNotFoundError), _locked(path) as descriptor:
            if descriptor is not None and (size := os.fstat(descriptor).st_size) and os.pread(descriptor, 1, size - 1) != b"\n":
                os.truncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
                torn.append(path)
    return torn


class _Parts:
    """The files of a log: the one that this process writes, and older ones, which are removed when there are too many bytes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most, self._most_of_part = folder, most_bytes, most_bytes // _PARTS
        self._path, self._descriptor, self._size, self._lines_size = Path(), -1, 0, 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of people are nobody else's business
        (folder / ".gitignore").write_text("*\n", encoding="ascii")  # git would keep them for ever
        repair(folder)

    def write(self, record: Record, content: bytes | None, suffix: str) -> None:
        """Append a record, and keep its picture, once per file of the log. A picture larger than a file may be is not kept."""
        content = None if content is None or len(content) > self._most_of_part // 2 else content
        if self._descriptor < 0 or self._size + len(content or b"") + len(log_line(record)) > self._most_of_part:
            self._start_part()
        if content is not None:
            record = replace(record, picture=f"{PICTURES}/{self._path.stem}/{record.sha256}{suffix}")
            self._keep(self._folder / str(record.picture), content)
        line = log_line(record).encode()
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, "the disk is full", str(self._path))
        except OSError:
            os.ftruncate(self._descriptor, self._lines_size)  # so that the next line does not continue this one
            raise
        self._size += len(line)
        self._lines_size += len(line)

    def sync(self) -> None:
        """Write to the disk what the system has in its memory."""
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file that is being written, which also unlocks it."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1

    def _start_part(self) -> None:
        self.close()
        self._remove_oldest()
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.jsonl"  # by name in the order of time, and nobody else's
        self._path, self._size, self._lines_size = self._folder / name, 0, 0
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _remove_oldest(self) -> None:
        """Make room for a whole new part. Parts that other processes write stay."""
        sizes = {path: _part_size(path) for path in sorted(self._folder.glob(LOG_FILES))}
        for path in list(sizes):
            if sum(sizes.values()) <= self._most - self._most_of_part:
                return
            with suppress(FileNotFoundError), _locked(path) as descriptor:
                if descriptor is not None:
                    path.unlink()
                    shutil.rmtree(_pictures_of(path), ignore_errors=True)
                    del sizes[path]

    def _keep(self, path: Path, content: bytes) -> None:
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)  # a part of a picture would keep a full disk full
            raise
        self._size += len(content)


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The descriptor of a locked file of a log; None if another process writes it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _pictures_of(path: Path) -> Path:
    return path.parent / PICTURES / path.stem


def _part_size(path: Path) -> int:
    """The bytes of a file of a log and of its pictures."""
    files = [path, *_pictures_of(path).glob("*")]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def _stamp() -> str:
    """The time, as `Record` has it."""
    return f"{datetime.now(UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
