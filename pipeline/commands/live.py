"""What `pipeline serve` does beside answering: it follows the champion, lets a challenger answer in the shadow, and logs predictions."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.server.app import Observed
    from pipeline.server.engine import Engine, Served
    from pipeline.server.following import Follower
    from pipeline.server.metrics import Metrics
    from pipeline.server.shadow import Shadow
    from pipeline.serving.log import LogWriter

Step = Callable[[], Awaitable[None]]


@dataclass
class Live:
    """What `create_app` takes of it. `status`: a name and a function that returns its facts for `/metadata`, as JSON."""

    observers: list[Callable[["Observed"], object]] = field(default_factory=list)
    on_start: list[Step] = field(default_factory=list)
    on_stop: list[Step] = field(default_factory=list)
    status: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about following, shadow and log."""
    live = parser.add_argument_group("champion, shadow and log", "docs/serving-live.md")
    live.add_argument(
        "--look-every",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="between two looks for another champion (default: %(default)s)",
    )
    live.add_argument("--shadow", metavar="NAME|FOLDER|challenger", help="a model that answers the same pictures silently, and is compared")
    live.add_argument("--log", metavar="FOLDER", help="log a sample of the predictions into a folder (default: nothing is logged)")
    live.add_argument("--log-share", type=_share, default=0.1, metavar="SHARE", help="of the answers that is logged (default: %(default)s)")
    live.add_argument("--log-pictures", action="store_true", help="keep the logged pictures themselves, too")
    live.add_argument(
        "--log-megabytes", type=positive, default=500.0, metavar="MB", help="of the log, then the oldest goes (default: %(default)s)"
    )


def attach(parsed: argparse.Namespace, engine: "Engine", metrics: "Metrics", threads: int) -> Live:
    """Start what the arguments ask for, register its figures, and return what the app needs of it. Raises PipelineError.

    Only the champion is followed: a model that was named stays. Call it in the main thread, because SIGHUP wakes the follower.
    """
    from pipeline.promotion.champions import CHAMPION
    from pipeline.server.following import golden_note

    live = Live()
    if note := golden_note(engine.model.folder):
        _say(note)
    if parsed.shadow:
        _attach_shadow(live, _open_shadow(parsed.shadow, parsed.here, engine), metrics)
    if parsed.log:
        _attach_log(live, _open_log(parsed), engine, metrics)
    if parsed.model in (None, CHAMPION):
        _attach_follower(live, _make_follower(engine, threads, parsed.look_every), metrics)
    return live


def _make_follower(engine: "Engine", threads: int, seconds: float) -> "Follower":
    from pipeline.promotion.champions import CHAMPION, find_kept
    from pipeline.server.following import Follower, load_checked

    def load(sha256: str, version: str | None) -> "Served":
        return load_checked(CHAMPION, find_kept(sha256), threads, engine.limits, sha256, version)

    return Follower(engine, load, seconds)


def _attach_follower(live: Live, follower: "Follower", metrics: "Metrics") -> None:
    from pipeline.server.following import wake_on_hangup

    async def start() -> None:
        follower.start()

    async def stop() -> None:
        await asyncio.to_thread(follower.stop)

    wake_on_hangup(follower)
    metrics.registry.register(follower)
    live.status["following"] = lambda: follower.status
    live.on_start.append(start)
    live.on_stop.append(stop)


def _open_shadow(named: str, here: Path, engine: "Engine") -> "Shadow":
    from pipeline.networks.artifact import find_model
    from pipeline.promotion.champions import MODELS
    from pipeline.promotion.judging import choose_challenger
    from pipeline.promotion.retraining import read_gate
    from pipeline.server.following import load_checked
    from pipeline.server.shadow import Shadow

    folder = find_model(choose_challenger(read_gate()) if named == "challenger" else named, MODELS, here)
    challenger = load_checked(folder.name, folder, 1, engine.limits)
    if challenger.sha256 == engine.model.sha256:
        raise PipelineError(f"--shadow {named}: {folder} is the model that answers; name another, or leave --shadow out")
    return Shadow(challenger)


def _attach_shadow(live: Live, shadow: "Shadow", metrics: "Metrics") -> None:
    async def stop() -> None:
        await asyncio.to_thread(shadow.close)

    metrics.registry.register(shadow)
    live.status["shadow"] = lambda: shadow.status
    live.observers.append(lambda observed: shadow.offer(observed.content, observed.answer))
    live.on_stop.append(stop)


def _open_log(parsed: argparse.Namespace) -> "LogWriter":
    from pipeline.serving.log import LogWriter

    return LogWriter(parsed.here / parsed.log, parsed.log_share, parsed.log_pictures, parsed.log_megabytes, _say)


def _attach_log(live: Live, log: "LogWriter", engine: "Engine", metrics: "Metrics") -> None:
    from pipeline.serving.log import Logged

    def observe(observed: "Observed") -> None:
        answer, content = observed.answer, observed.content
        logged = Logged(
            observed.request_id, content, observed.sha256, answer.model.sha256, answer.probs, answer.unfamiliarity, answer.features
        )
        log.offer(logged)

    async def stop() -> None:
        await asyncio.to_thread(engine.background.stop, 5.0)  # it hands over the last answers
        await asyncio.to_thread(log.close)

    metrics.registry.register(_LogFigures(log))
    live.status["log"] = lambda: vars(log.counts).copy()
    live.observers.append(observe)
    live.on_stop.append(stop)


class _LogFigures:
    """The figures of a log for Prometheus."""

    def __init__(self, log: "LogWriter") -> None:
        self._log = log

    def collect(self) -> Sequence[Any]:
        """One figure per count."""
        from prometheus_client.core import CounterMetricFamily

        texts = {"written": "were written", "dropped": "the writer was too busy for", "failed": "the disk did not take"}
        counts = vars(self._log.counts)
        return [CounterMetricFamily(f"pipeline_log_{name}", f"Predictions that {text}", value=counts[name]) for name, text in texts.items()]


def _say(sentence: str) -> None:
    import logging

    logging.getLogger("pipeline.server").warning("%s", sentence)


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    return _number(text, lambda number: 0 < number < float("inf"), "a number above 0")


def _share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    return _number(text, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def _number(text: str, fits: Callable[[float], bool], expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not fits(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return number
