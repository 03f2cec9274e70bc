"""Files from the network into the store: one process at a time, mirrors in order, patience with a server in trouble, sums checked."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from pipeline.addresses import without_password
from pipeline.data import store, transfer
from pipeline.data.store import Partial
from pipeline.data.transfer import Bounds, Interrupted, Refused, Session
from pipeline.errors import PipelineError
from pipeline.files import cache_dir, sha256_of

_ATTEMPTS = 5  # in a row, without one new byte
_PAUSE_SECONDS = 0.5  # after an attempt that brought some; doubled for each one in a row that did not
_CURE = "check the address and the network, or name a local file"


@dataclass(frozen=True)
class Pin:
    """What the checksum of a file begins with, the fault where it does not ({found} and {digits} stand in it), and its cure."""

    digits: str
    fault: str
    cure: str
    algorithm: str = "sha256"  # or md5, where no other is published

    def refusal(self, found: str) -> Refused:
        """What to say of a file with another checksum."""
        return Refused(self.fault.format(found=found, digits=self.digits), self.cure)


def fetch(url: str, bounds: Bounds, key: str | None = None, pin: Pin | None = None, mirrors: tuple[str, ...] = ()) -> Path:
    """Fetch a URL, or the first of its mirrors that gives what is pinned, into the store, and return the path there.

    `key`: the sha256 or the alias by which it is looked for first and found from now on; None: it is fetched anew.
    What was cut short is resumed, also by a later process. Raises PipelineError, and OSError where the disk is full.
    """
    faults = []
    for address in (url, *mirrors):
        with _alone(address):
            if key is not None and (kept := store.stored(key)) and _fits(pin, bound(store.checksum, kept)):
                return kept
            try:
                path = _fetch_from(address, bounds, pin)
            except Refused as fault:
                faults.append((address, fault))
                continue
            if key not in (None, path.name):
                store.alias(key, path)
            return path
    cure = next((fault.cure for _, fault in faults if fault.cure), _CURE)
    raise PipelineError(f"{'; '.join(f'{without_password(address)}: {fault}' for address, fault in faults)}; {cure}")


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Let no other process fetch this URL meanwhile; where one does, say so and wait until it ends."""
    path = cache_dir("locks") / f"{sha256_of(url.encode())}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{without_password(url)}: another process is fetching it; waiting until it ends", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_from(url: str, bounds: Bounds, pin: Pin | None) -> Path:
    if not re.match("https?:", url, re.IGNORECASE):
        raise Refused("is no http or https address")
    deadline = time.monotonic() + bounds.hours * 3600
    with Session() as session, Partial(url) as partial:
        _persist(session, url, partial, bounds, deadline)
        if partial.resumed and not _fits(pin, partial.checksum):
            partial.restart("")  # what lay there may have been wrong
            _persist(session, url, partial, bounds, deadline)
        if pin and not _fits(pin, partial.checksum):
            refusal = pin.refusal(partial.checksum(pin.algorithm))
            partial.discard()
            raise refusal
        return partial.keep()


def _fits(pin: Pin | None, checksum: Callable[[str], str]) -> bool:
    """Whether a file is what is pinned. `checksum`: its sum by an algorithm."""
    return pin is None or checksum(pin.algorithm).startswith(pin.digits)


def _persist(session: Session, url: str, partial: Partial, bounds: Bounds, deadline: float) -> None:
    """Ask until the file is whole. Only attempts in a row without a new byte count: a server that advances wins."""
    furthest, fruitless = {partial.validator: partial.size}, 0  # a file that changed on the server counts its bytes anew
    while True:
        try:
            return transfer.receive(session, url, partial, bounds, deadline)
        except Interrupted as fault:
            before = furthest.get(partial.validator, 0)
            fruitless = 0 if partial.size > before else fruitless + 1
            furthest[partial.validator] = max(before, partial.size)
            pause = max(_PAUSE_SECONDS * 2**fruitless, fault.pause_seconds)
            if fruitless == _ATTEMPTS or pause > bounds.check(partial.size, deadline):
                raise Refused(str(fault)) from None
            tqdm.write(f"{without_password(url)}: {fault}; asking again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
