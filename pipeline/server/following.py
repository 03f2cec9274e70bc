"""Following the champion: who it is, whether its model may answer, and the exchange of the model that answers, while requests come in."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_value, sha256_of_file
from pipeline.networks.artifact import GOLDEN, golden_fault
from pipeline.promotion.champions import CHAMPION
from pipeline.promotion.journal import JOURNAL, SHORT, champion, read_journal
from pipeline.server.engine import Engine, Limits, Served, load_served, trim_memory

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_LOG = logging.getLogger("pipeline.server")
_TRIMS = 3  # looks after which memory goes back to the system, from a swap on: the model before may still answer at the first
_LONGEST_PAUSE = 600.0  # seconds until a model that failed is tried again: a restore may ask a DVC remote


@dataclass(frozen=True)
class Champion:
    """Who is the champion. `sha256`: of its model.onnx, None if there is none yet; `version`: in MLflow's registry, None if not known.

    `note`: a sentence if MLflow is away, or names another model; else empty.
    """

    sha256: str | None
    version: str | None = None
    note: str = ""


def find_champion() -> Champion:
    """Read who the champion is from the journal, and ask MLflow's server for its alias `champion`, if MLFLOW_TRACKING_URI names one.

    Where the two differ, the journal decides. It is in git, with the commit of the model and its folder in DVC, while an alias follows it:
    any machine whose clone is behind sets it back, and a person may set it by hand (docs/teams.md). A server also finds a champion by its
    sha256 in DVC, for which it needs the same `git pull` that brings the journal. The alias decides where the journal has no champion, as
    in an image that contains models alone. Raises PipelineError if the journal is damaged, or if there is none and MLflow does not answer.
    """
    from pipeline.tracking.registry import ask_alias  # the image of a server with a model of its own does not have what this needs

    entry = champion(read_journal())
    try:
        alias = ask_alias(CHAMPION)
    except PipelineError as error:
        if entry is None:
            raise
        return Champion(entry.sha256, note=f"{error}; until then {JOURNAL} alone says who is the champion")
    if entry is None:
        return Champion(*alias) if alias else Champion(None)
    if alias is None or alias[0] == entry.sha256:
        return Champion(entry.sha256, alias[1] if alias else None)
    names = f"{JOURNAL} names {entry.sha256[:SHORT]} and MLflow's alias {alias[0][:SHORT]}"
    return Champion(entry.sha256, note=f"{names}: the journal decides; run `git pull`, or `pipeline retrain`, which sets the alias")


def load_checked(name: str, folder: Path, threads: int, limits: Limits, sha256: str | None = None, version: str | None = None) -> Served:
    """Load the model of a folder, let it answer batches of all sizes, so that its first request is no slower, and compare golden answers.

    `sha256`: that model.onnx must have, None if any will do. Raises PipelineError if a file is another than stated, if the model cannot be
    loaded, or if it answers the golden pictures otherwise than when it was stored. A model without golden answers is loaded.
    """
    for path, key in ((folder / "model.onnx", "model_sha256"), (folder / "model.onnx.data", "data_sha256")):
        stated = read_value(folder / "model.json", key)
        if stated and (not path.is_file() or sha256_of_file(path) != stated):
            raise PipelineError(f"{path}: is not the file that model.json states; run `dvc checkout`")
    served = load_served(name, folder, threads, version)
    if sha256 not in (None, served.sha256):
        raise PipelineError(f"{folder}: its model.onnx is {served.sha256[:SHORT]}, not {str(sha256)[:SHORT]}; run `dvc checkout`")
    size = served.predictor.preprocessing.image_size
    for pictures in range(1, limits.batch + 1):
        served.predictor.run(np.zeros((pictures, size, size, 3), np.uint8), "unfamiliarity", "features")
    try:
        fault = golden_fault(folder, served.predictor.predict_pixels)
    except (ValueError, KeyError, TypeError):
        fault = f"{folder / GOLDEN}: is damaged, or is of another model"
    if fault:
        raise PipelineError(f"{fault}; run `dvc checkout`, or train the model again")
    trim_memory()
    return served


def golden_note(folder: Path) -> str:
    """The sentence about a model that was stored without golden answers; empty if it has them."""
    return (
        "" if (folder / GOLDEN).is_file() else f"{folder}: has no {GOLDEN}, so its answers are not compared with those when it was stored"
    )


@dataclass
class Status:
    """What a follower reports. `champion`: the sha256 of the champion, None if there is none, or if it was not looked for yet.

    `fault`: why the champion does not answer, empty if it does; `note`: of `Champion`; `golden`: of `golden_note`; `swaps`, `failures`:
    since the start; `looked`: the time of the last look, in seconds since 1970.
    """

    champion: str | None = None
    fault: str = ""
    note: str = ""
    golden: str = ""
    swaps: int = 0
    failures: int = 0
    looked: float = 0.0


class Follower:
    """A thread that looks every few seconds who the champion is, and lets its model answer as soon as it is loaded and checked.

    The model before answers until then, and whatever was prepared for it; nothing here refers to it afterwards. If the champion cannot be
    loaded, the model before stays, `status.fault` says why, the log says so once, and the pause to the next try doubles up to ten minutes.
    """

    def __init__(
        self,
        engine: Engine,
        load: Callable[[str, str | None], Served],
        seconds: float = 10.0,
        find: Callable[[], Champion] = find_champion,
    ) -> None:
        """`load`: from a sha256 and a version to a checked model, see `load_checked`; `find`: says who the champion is."""
        self._engine, self._load, self._seconds, self._find = engine, load, seconds, find
        self._status = Status(golden=golden_note(engine.model.folder))
        self._failed, self._pause, self._next_try, self._trims = "", 0.0, 0.0, 0
        self._woken, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def status(self) -> dict[str, Any]:
        """The keys of `Status`, and `serving`, the sha256 of the model that answers, for JSON."""
        return {"serving": self._engine.model.sha256, **asdict(self._status)}

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once, and try again what failed. Does not wait; may be called in a signal handler."""
        self._next_try = 0.0
        self._woken.set()

    def stop(self, seconds: float = 5.0) -> None:
        """Look no more. A load that is under way is waited for, for at most so many seconds."""
        self._ending = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def look(self) -> None:
        """Look once, and let the champion answer if it is another model. Never raises."""
        found: Champion | None = None
        try:
            found = self._find()
            self._note(found)
            if found.sha256 in (None, self._engine.model.sha256):
                self._name_version(found)
                self._clear()
            elif found.sha256 != self._failed or time.monotonic() >= self._next_try:
                self._follow(found)
        except Exception as error:  # whatever it is, the model before goes on answering
            self._fail(found, str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}")
        self._status.looked = time.time()
        if self._trims:
            self._trims -= 1
            trim_memory()

    def collect(self) -> "Iterator[Metric]":
        """The figures for Prometheus: register the follower itself."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status
        is_served = float(not status.fault and status.champion in (None, self._engine.model.sha256))
        yield GaugeMetricFamily("pipeline_champion_served", "1 if the champion answers, 0 if it cannot be loaded", value=is_served)
        yield GaugeMetricFamily(
            "pipeline_champion_looked_seconds", "When the champion was last looked for, since 1970", value=status.looked
        )
        yield GaugeMetricFamily(
            "pipeline_champion_differs", "1 if MLflow is away or names another champion", value=float(bool(status.note))
        )
        yield CounterMetricFamily("pipeline_champion_swaps", "Models that took the place of the one before", value=status.swaps)
        yield CounterMetricFamily("pipeline_champion_failures", "Tries to find or load the champion that failed", value=status.failures)

    def _run(self) -> None:
        while not self._ending:
            self.look()
            self._woken.wait(self._seconds)
            self._woken.clear()

    def _follow(self, found: Champion) -> None:
        sha256 = str(found.sha256)
        loaded = self._load(sha256, found.version)
        if loaded.sha256 != sha256:
            raise PipelineError(f"{loaded.folder}: is the model {loaded.sha256[:SHORT]}, not {sha256[:SHORT]}; run `dvc checkout`")
        before = self._engine.model.sha256
        self._engine.swap(loaded)
        self._status.golden, self._trims = golden_note(loaded.folder), _TRIMS
        self._status.swaps += 1
        self._clear()
        _LOG.warning("the champion %s answers, in place of %s", sha256[:SHORT], before[:SHORT])
        if self._status.golden:
            _LOG.warning("%s", self._status.golden)

    def _name_version(self, found: Champion) -> None:
        """Answers name the version from then on that MLflow says."""
        if found.sha256 and found.version and self._engine.model.version != found.version:
            self._engine.swap(replace(self._engine.model, version=found.version))

    def _note(self, found: Champion) -> None:
        self._status.champion = found.sha256
        if found.note and found.note != self._status.note:
            _LOG.warning("%s", found.note)
        self._status.note = found.note

    def _clear(self) -> None:
        self._status.fault, self._failed, self._pause = "", "", 0.0

    def _fail(self, found: Champion | None, fault: str) -> None:
        failed = (found and found.sha256) or ""
        self._pause = min(2 * self._pause or self._seconds, _LONGEST_PAUSE) if failed == self._failed else self._seconds
        self._failed, self._next_try = failed, time.monotonic() + self._pause
        self._status.failures += 1
        if fault != self._status.fault:
            _LOG.error("%s; the model %s goes on answering", fault, self._engine.model.sha256[:SHORT])
        self._status.fault = fault


def wake_on_hangup(follower: Follower) -> None:
    """Let SIGHUP make the follower look at once. Call it in the main thread."""
    signal.signal(signal.SIGHUP, lambda *_: follower.wake())
