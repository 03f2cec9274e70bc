"""Download a file into the store: resume, retry, mirrors, bounds on bytes and time, checksums."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial as bound
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock, Timeout
from requests.structures import CaseInsensitiveDict
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ReadTimeoutError

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import cache_dir, sha256_of
from pipeline.net import store
from pipeline.net.store import Partial, is_validator

_CONNECT_SECONDS, _STALL_SECONDS = 10, 30
_MOST_REDIRECTS = 10
_PACKET_BYTES = 1 << 16


class Refused(Exception):  # noqa: N818 - it says what the answer is
    """A fault that asking this address again would not mend, and what would, where that is known."""

    def __init__(self, fault: str, cure: str = "") -> None:
        super().__init__(fault)
        self.cure = cure


class Interrupted(Exception):  # noqa: N818 - it says what the transfer is
    """A fault that may pass, and the seconds for which the server asks to be left alone."""

    def __init__(self, fault: str, pause_seconds: float = 0) -> None:
        super().__init__(fault)
        self.pause_seconds = pause_seconds


class TooLarge(Refused):
    """More bytes than the bounds allow."""


class Session(requests.Session):
    """Cookies and connections of several requests. Redirects are left to `receive`: requests would read their bodies first."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, whatever the answer says."""


@dataclass(frozen=True)
class Bounds:
    """The most that a file may cost at one address: gigabytes (10⁹ bytes), and hours with all retries.

    `section`: that of params.yaml which sets them as `fetch_gigabytes` and `fetch_hours`, where one does.
    """

    gigabytes: float
    hours: float
    section: str = ""

    def check(self, size: int, deadline: float) -> float:
        """The seconds that are left. Raises Refused where there are none, TooLarge where there are more bytes than these."""
        if size > self.gigabytes * 10**9:
            cure = self.section and f"raise {self.section}.fetch_gigabytes if that is meant"
            raise TooLarge(f"holds more than {self.gigabytes:g} gigabytes", cure)
        left = deadline - time.monotonic()
        if left <= 0:
            cure = self.section and f"run again, or raise {self.section}.fetch_hours"
            raise Refused(f"was not whole after {self.hours:g} hours", cure)
        return left


def receive(session: Session, url: str, partial: Partial, bounds: Bounds, deadline: float) -> None:
    """Ask once for what the partial lacks and add it. On return the file is whole.

    `deadline` is on the clock `time.monotonic`. Raises Refused, Interrupted, and OSError where the disk is full.
    """
    if not partial.validator:
        partial.restart("")
    with _ask(session, url, partial, bounds.check(partial.size, deadline)) as answer:
        total = _whole_length(answer, partial)
        bounds.check(total or 0, deadline)
        try:
            with tqdm(desc="fetch", total=total, initial=partial.size, unit="B", unit_scale=True, disable=None) as bar:
                while packet := answer.raw.read1(_PACKET_BYTES, decode_content=True):
                    partial.append(packet)
                    bar.update(len(packet))
                    bounds.check(partial.size, deadline)
        except TooLarge:
            partial.restart("")
            raise
        except HTTPError as error:
            raise _broken_off(partial, total, error) from None
    if total not in (None, partial.size):
        raise _broken_off(partial, total)


def _broken_off(partial: Partial, total: int | None, error: HTTPError | None = None) -> Interrupted:
    if isinstance(error, ReadTimeoutError):
        return Interrupted("no answer in time")
    of = "an unknown number of" if total is None else f"{total:,}"
    return Interrupted(f"the body ended after {partial.size:,} of {of} bytes")


def _ask(session: Session, url: str, partial: Partial, seconds: float) -> requests.Response:
    """The answer of the server that the last redirect leads to; its body is still to come."""
    headers = {"Accept-Encoding": "identity"}
    if partial.size:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
    timeout = (min(_CONNECT_SECONDS, seconds), min(_STALL_SECONDS, seconds))
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            answer = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            raise _unanswered(error) from None
        if not answer.is_redirect:
            return answer
        with answer:
            url = _redirected(answer)
    raise Refused(f"redirects more than {_MOST_REDIRECTS} times")


def _unanswered(error: Exception) -> Refused | Interrupted:
    if isinstance(error, ValueError):  # as all that say so of an address or a header are
        return Refused("the address, or the answer, is malformed")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Refused("its TLS certificate is not trusted")
    return Interrupted("no answer in time" if isinstance(error, requests.Timeout) else "cannot be reached")


def _redirected(answer: requests.Response) -> str:
    """Where a redirect leads. A user and password stay with their host."""
    try:
        old = urlsplit(answer.url)
        new = urlsplit(urljoin(answer.url, answer.headers["Location"].encode("latin-1").decode()))
    except ValueError:
        raise Refused("redirects to a malformed address") from None
    allowed = ("https",) if old.scheme == "https" else ("http", "https")
    if new.scheme not in allowed:
        raise Refused(f"redirects to an address that is not {' or '.join(allowed)}")
    return (new._replace(netloc=old.netloc) if new.netloc == old.netloc.rpartition("@")[2] else new).geturl()


def _whole_length(answer: requests.Response, partial: Partial) -> int | None:
    """The length of the whole file, if known, with the partial made ready for the body of this answer."""
    _expect_content(answer, partial)
    encoded = answer.headers.get("Content-Encoding", "identity").lower() != "identity"
    validator = "" if encoded else _validator(answer.headers)
    if answer.status_code == 200:
        partial.restart(validator)
        length = answer.headers.get("Content-Length", "")
        return int(length) if re.fullmatch("[0-9]{1,4000}", length) and not encoded else None
    first, total = _content_range(answer.headers.get("Content-Range", ""))
    if encoded or first != partial.size or total <= first or validator not in ("", partial.validator):
        partial.restart("")
        raise Interrupted("answered with another part than was asked for")
    partial.resumed = True
    return total


def _expect_content(answer: requests.Response, partial: Partial) -> None:
    status = answer.status_code
    if status in (200, 206):
        return
    if status == 416 and partial.size:
        partial.restart("")
        raise Interrupted("HTTP 416")
    if status == 429 or status >= 500:
        raise Interrupted(f"HTTP {status}", _pause_seconds(answer.headers.get("Retry-After", "")))
    raise Refused(f"HTTP {status}")


def _validator(headers: CaseInsensitiveDict[str]) -> str:
    found = (headers.get("ETag", ""), headers.get("Last-Modified", ""))
    return next((text for text in found if is_validator(text)), "")


def _content_range(text: str) -> tuple[int, int]:
    """The first byte of a part, and the length of the whole: at least what this part reaches to. (-1, -1) if unreadable."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", text)
    if not found:
        return -1, -1
    return int(found[1]), int(found[2]) + 1 if found[3] == "*" else int(found[3])


def _pause_seconds(retry_after: str) -> float:
    """The seconds that a Retry-After asks for, whether it counts them or names a date; 0 if it cannot be read."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


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
            return receive(session, url, partial, bounds, deadline)
        except Interrupted as fault:
            before = furthest.get(partial.validator, 0)
            fruitless = 0 if partial.size > before else fruitless + 1
            furthest[partial.validator] = max(before, partial.size)
            pause = max(_PAUSE_SECONDS * 2**fruitless, fault.pause_seconds)
            if fruitless == _ATTEMPTS or pause > bounds.check(partial.size, deadline):
                raise Refused(str(fault)) from None
            tqdm.write(f"{without_password(url)}: {fault}; asking again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
