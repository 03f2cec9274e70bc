"""Shadow: a second model answers the same pictures silently, and what it agrees on with the model that answers is counted and kept.

It runs in one thread with the lowest priority, after the answer was made. Whatever it cannot take at once is dropped and counted, so that
no answer waits for it or fails with it. It decodes the bytes of a picture itself, in its own size, as its own preprocessing says.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.files import write_json
from pipeline.pictures.images import Array
from pipeline.promotion.journal import SHORT, now, stamp
from pipeline.promotion.judging import read_shadow, shadow_path
from pipeline.server.engine import Answer, Served

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_LOG = logging.getLogger("pipeline.server")
_WAITING, _WAITING_BYTES = 64, 64_000_000
_FLUSH_SECONDS = 10.0
_LOWEST_PRIORITY = 19
_LOCK_SECONDS = 5.0


@dataclass
class Tally:
    """What two models answered to the same pictures. `agreed`: predicted the same class; `difference`: the sum, over pictures, of the mean
    absolute difference of the probabilities; `classes`: `(class that the served model predicts, the challenger's)` and how often.
    """

    since: str
    pictures: int = 0
    agreed: int = 0
    difference: float = 0.0
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, first: str, second: str, difference: float) -> None:
        """Count a picture."""
        self.pictures += 1
        self.agreed += first == second
        self.difference += difference
        self.classes[first, second] += 1


def mean_difference(first: Array, second: Array, names: Sequence[str], others: Sequence[str]) -> float:
    """The mean absolute difference of two models' probabilities, float (classes,) each, over the classes of either.

    A class that a model does not know has the probability 0.
    """
    one, two = dict(zip(names, first.tolist(), strict=True)), dict(zip(others, second.tolist(), strict=True))
    union = {**one, **two}
    return float(sum(abs(one.get(name, 0.0) - two.get(name, 0.0)) for name in union) / len(union))


@dataclass(frozen=True)
class _Waiting:
    """A picture and the answer to it. It does not refer to the served model, which is freed as soon as another one takes its place."""

    content: bytes
    sha256: str
    class_names: Sequence[str]
    probs: Array


class Shadow:
    """A challenger that answers what a server answered. `challenger`: a loaded model, which this thread alone runs."""

    def __init__(self, challenger: Served, flush_seconds: float = _FLUSH_SECONDS) -> None:
        self.challenger = challenger
        self.dropped = self.failed = 0
        self.fault = ""
        self._flush_seconds = flush_seconds
        self._total: dict[str, Tally] = {}  # by the sha256 of the served model, since the start
        self._unsaved: dict[str, Tally] = {}  # the part of it that is not in the file yet
        self._waiting, self._bytes, self._ending = deque[_Waiting](), 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, content: bytes, answer: Answer) -> bool:
        """Take a picture's bytes and the answer to it; return whether they were taken. Never waits.

        What the challenger itself answered is not compared: it was promoted meanwhile.
        """
        if answer.model.sha256 == self.challenger.sha256:
            return False
        with self._changed:
            if self._ending or len(self._waiting) >= _WAITING or self._bytes + len(content) > _WAITING_BYTES:
                self.dropped += 1
                return False
            self._waiting.append(_Waiting(content, answer.model.sha256, answer.model.predictor.class_names, answer.probs))
            self._bytes += len(content)
            self._changed.notify()
        return True

    def close(self, seconds: float = 5.0) -> None:
        """Forget what waits, and write the file. A picture that is being answered is waited for, for at most so many seconds."""
        with self._changed:
            self._ending = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(seconds)

    @property
    def status(self) -> dict[str, Any]:
        """The challenger, and how often it agreed with each model that answered, for JSON."""
        against = {sha256: {"pictures": tally.pictures, "agreed": tally.agreed} for sha256, tally in list(self._total.items())}
        counts = {"dropped": self.dropped, "failed": self.failed, "fault": self.fault}
        return {"name": self.challenger.name, "sha256": self.challenger.sha256, "against": against, **counts}

    def collect(self) -> "Iterator[Metric]":
        """The figures for Prometheus: register the shadow itself. Those of pictures are about the model that answered last."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield CounterMetricFamily("pipeline_shadow_dropped", "Pictures that the challenger was too busy to answer", value=self.dropped)
        yield CounterMetricFamily("pipeline_shadow_failed", "Pictures to which the challenger has no answer", value=self.failed)
        pair = ["champion", "challenger"]
        labels = [*pair, "predicted", "agrees"]
        pictures = CounterMetricFamily("pipeline_shadow_pictures", "Pictures by what the served model predicts", labels=labels)
        difference = GaugeMetricFamily("pipeline_shadow_difference", "Mean absolute difference of the probabilities", labels=pair)
        for sha256, tally in list(self._total.items())[-1:]:
            names = [sha256[:SHORT], self.challenger.sha256[:SHORT]]
            difference.add_metric(names, tally.difference / max(1, tally.pictures))
            by_class = Counter[tuple[str, bool]]()
            for (first, second), count in list(tally.classes.items()):
                by_class[first, first == second] += count
            for (name, agrees), count in by_class.items():
                pictures.add_metric([*names, name, "yes" if agrees else "no"], count)
        yield pictures
        yield difference

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # a thread has a priority of its own on Linux alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        flushed = time.monotonic()
        while True:
            with self._changed:
                if not self._waiting and not self._ending:
                    self._changed.wait(self._flush_seconds)
                taken = self._waiting.popleft() if self._waiting else None
                self._bytes -= len(taken.content) if taken else 0
                is_last = self._ending and not taken
            if taken:
                self._answer(taken)
            if is_last or time.monotonic() - flushed >= self._flush_seconds:
                self._flush()
                flushed = time.monotonic()
            if is_last:
                return

    def _answer(self, taken: _Waiting) -> None:
        try:
            probs = self.challenger.predictor.predict([taken.content])[0]
            names, others = taken.class_names, self.challenger.predictor.class_names
            difference = mean_difference(taken.probs, probs, names, others)
            first, second = names[int(taken.probs.argmax())], others[int(probs.argmax())]
        except Exception as error:  # whatever it is, the server goes on answering
            self.failed += 1
            self._say(f"the shadow {self.challenger.name} cannot answer a picture: {error}")
            return
        total = self._total.pop(taken.sha256, None) or Tally(stamp(now()))
        self._total[taken.sha256] = total  # the model that answered last is the last one
        for tally in (total, self._unsaved.setdefault(taken.sha256, Tally(stamp(now())))):
            tally.count(first, second, difference)

    def _flush(self) -> None:
        """Add what is not saved to the file of each pair. Other servers add to it, too, so that it is read and written under a lock."""
        from filelock import FileLock, Timeout

        for sha256, tally in list(self._unsaved.items()):
            path = shadow_path(sha256, self.challenger.sha256)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
                    write_json(path, _add(read_shadow(sha256, self.challenger.sha256), tally, sha256, self.challenger.sha256))
                del self._unsaved[sha256]
            except (OSError, Timeout) as error:
                self._say(f"{path}: cannot be written ({error}); the agreement of the shadow is in /metrics alone")

    def _say(self, fault: str) -> None:
        if fault != self.fault:
            _LOG.error("%s", fault)
        self.fault = fault


def _add(before: Mapping[str, Any] | None, tally: Tally, champion: str, challenger: str) -> dict[str, Any]:
    """The content of the file after a tally was added to what it had before."""
    old = before or {"since": tally.since, "pictures": 0, "agreed": 0, "mean_difference": 0.0, "answers": []}
    answers = Counter({(row["champion"], row["challenger"]): int(row["pictures"]) for row in old["answers"]}) + tally.classes
    pictures = old["pictures"] + tally.pictures
    return {
        "champion": champion,
        "challenger": challenger,
        "since": old["since"],
        "until": stamp(now()),
        "pictures": pictures,
        "agreed": old["agreed"] + tally.agreed,
        "mean_difference": round((old["mean_difference"] * old["pictures"] + tally.difference) / pictures, 9),
        "answers": [{"champion": pair[0], "challenger": pair[1], "pictures": count} for pair, count in sorted(answers.items())],
    }
