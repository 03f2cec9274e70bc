"""Download a file into the store: resume, retries, mirrors, bounds on bytes and time, checksums."""

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
_ATTEMPTS = 5  # in a row without a new byte
_PAUSE_SECONDS = 0.5  # after an attempt that brought bytes; doubled for each one in a row that did not
_CURE = "check the address and the network, or name a local file"


class Refused(Exception):  # noqa: N818 - an answer, not an error of the program
    """A fault that another request to this address would not fix. `cure`: what would, if it is known."""

    def __init__(self, fault: str, cure: str = "") -> None:
        super().__init__(fault)
        self.cure = cure


class Interrupted(Exception):  # noqa: N818 - a state of the transfer
    """A fault that may pass. `pause_seconds`: the delay that the server requests."""

    def __init__(self, fault: str, pause_seconds: float = 0) -> None:
        super().__init__(fault)
        self.pause_seconds = pause_seconds


class TooLarge(Refused):
    """More bytes than the bounds allow."""


class Session(requests.Session):
    """Cookies and connections of several requests. It follows no redirect: requests would read their bodies first."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Returns None for every response."""


@dataclass(frozen=True)
class Bounds:
    """The most that a file may cost at one address: gigabytes (10⁹ bytes), and hours with all retries.

    `section`: the section of params.yaml that sets them as `fetch_gigabytes` and `fetch_hours`, if there is one.
    """

    gigabytes: float
    hours: float
    section: str = ""

    def check(self, size: int, deadline: float) -> float:
        """The seconds that remain. Raises Refused after the deadline, and TooLarge if `size`, in bytes, is beyond the bounds."""
        if size > self.gigabytes * 10**9:
            cure = self.section and f"raise {self.section}.fetch_gigabytes if this is intended"
            raise TooLarge(f"is larger than {self.gigabytes:g} gigabytes", cure)
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0:
            cure = self.section and f"run again, or raise {self.section}.fetch_hours"
            raise Refused(f"was not complete after {self.hours:g} hours", cure)
        return seconds_left


@dataclass(frozen=True)
class Pin:
    """The digits with which a file's checksum must begin. `fault`, `cure`: the message if it does not.

    `fault` may contain {found} and {digits}.
    """

    digits: str
    fault: str
    cure: str
    algorithm: str = "sha256"  # or md5, if the publisher states no other

    def refusal(self, found: str) -> Refused:
        """The fault of a file with another checksum."""
        return Refused(self.fault.format(found=found, digits=self.digits), self.cure)


class Unchanged(Exception):  # noqa: N818 - no error: what is stored is what the server has
    """The server has the file that was seen before."""


def fetch(url: str, bounds: Bounds, key: str | None = None, pin: Pin | None = None, mirrors: tuple[str, ...] = ()) -> Path:
    """Download a URL, or the first of its mirrors that provides what is pinned, into the store. Returns the path there.

    An address is one of http, https, or that of an object in a cloud.
    `key`: a sha256 or an alias. A stored file with this key is returned without a download; a downloaded file gets it as
    its alias. None: ask the server, and download anew what has changed there. An interrupted download is resumed, also by a
    later process. Raises PipelineError, and OSError if the disk is full.
    """
    faults = []
    for address in (url, *mirrors):
        with _alone(address):
            if key is not None and (kept := store.stored(key)) and _fits(pin, bound(store.checksum, kept)):
                return kept
            try:
                path = _fetch_from(address, bounds, pin, asks=key is None)
            except Refused as fault:
                faults.append((address, fault))
                continue
            if key not in (None, path.name):
                store.alias(key, path)
            return path
    cure = next((fault.cure for _, fault in faults if fault.cure), _CURE)
    raise PipelineError(f"{'; '.join(f'{without_password(address)}: {fault}' for address, fault in faults)}; {cure}")


def receive(session: Session, url: str, partial: Partial, bounds: Bounds, deadline: float) -> None:
    """Request once what the partial lacks and append it. On return the file is complete.

    `deadline`: on the clock `time.monotonic`. Raises Refused, Interrupted, and OSError if the disk is full.
    """
    if not partial.validator:
        partial.restart("")
    with _request(session, url, partial, bounds.check(partial.size, deadline)) as response:
        total = _prepare(response, partial)
        bounds.check(total or 0, deadline)
        try:
            with tqdm(desc="fetch", total=total, initial=partial.size, unit="B", unit_scale=True, disable=None) as bar:
                while packet := response.raw.read1(_PACKET_BYTES, decode_content=True):
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


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Lock a URL against other processes. If another process has it, print so and wait."""
    path = cache_dir("locks") / f"{sha256_of(url.encode())}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{without_password(url)}: another process is downloading it; waiting until it ends", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_from(url: str, bounds: Bounds, pin: Pin | None, asks: bool) -> Path:
    """Download a URL into the store. `asks`: whether to ask the server first if its file is still the one that was seen before."""
    from pipeline.net.objects import is_object, receive_object  # which imports from here

    if not is_object(url) and not re.match("https?:", url, re.IGNORECASE):
        raise Refused("is not an http or https address")
    deadline, seen = time.monotonic() + bounds.hours * 3600, store.seen(url) if asks else None
    with Session() as session, Partial(url) as partial:
        if seen and _fits(pin, bound(store.checksum, seen[1])):
            partial.known = seen[0]
        attempt = bound(receive_object if is_object(url) else bound(receive, session), url, partial, bounds, deadline)
        try:
            _persist(attempt, url, partial, bounds, deadline)
        except Unchanged:
            return seen[1]  # type: ignore[index] # only what was seen can be unchanged
        if partial.resumed and not _fits(pin, partial.checksum):
            partial.restart("")  # the bytes of the earlier process may be wrong
            _persist(attempt, url, partial, bounds, deadline)
        if pin and not _fits(pin, partial.checksum):
            refusal = pin.refusal(partial.checksum(pin.algorithm))
            partial.discard()
            raise refusal
        validator, path = partial.validator, partial.keep()
        if asks and validator:
            store.remember(url, validator, path)
        return path


def _fits(pin: Pin | None, checksum: Callable[[str], str]) -> bool:
    """Whether a file is what is pinned. `checksum`: returns its checksum by an algorithm."""
    return pin is None or checksum(pin.algorithm).startswith(pin.digits)


def _persist(attempt: Callable[[], None], url: str, partial: Partial, bounds: Bounds, deadline: float) -> None:
    """Call `attempt` until the file is complete. Only attempts in a row without a new byte count as failures."""
    # The most bytes so far per version of the file: bytes that came before are no progress, those of a new version are.
    furthest, fruitless = {partial.validator: partial.size}, 0
    while True:
        try:
            return attempt()
        except Interrupted as fault:
            before = furthest.get(partial.validator, 0)
            fruitless = 0 if partial.size > before else fruitless + 1
            furthest[partial.validator] = max(before, partial.size)
            pause = max(_PAUSE_SECONDS * 2**fruitless, fault.pause_seconds)
            if fruitless == _ATTEMPTS or pause > bounds.check(partial.size, deadline):
                raise Refused(str(fault)) from None
            tqdm.write(f"{without_password(url)}: {fault}; trying again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


def _broken_off(partial: Partial, total: int | None, error: HTTPError | None = None) -> Interrupted:
    if isinstance(error, ReadTimeoutError):
        return Interrupted("no response in time")
    of = "an unknown number of" if total is None else f"{total:,}"
    return Interrupted(f"the response ended after {partial.size:,} of {of} bytes")


def _request(session: Session, url: str, partial: Partial, seconds: float) -> requests.Response:
    """The response to which the last redirect leads, with its body unread."""
    headers = {"Accept-Encoding": "identity"}
    if partial.size:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
    elif partial.known:
        headers["If-None-Match" if partial.known.startswith('"') else "If-Modified-Since"] = partial.known
    timeout = (min(_CONNECT_SECONDS, seconds), min(_STALL_SECONDS, seconds))
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            response = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            raise _unanswered(error) from None
        if not response.is_redirect:
            return response
        with response:
            url = _redirected(response)
    raise Refused(f"redirects more than {_MOST_REDIRECTS} times")


def _unanswered(error: Exception) -> Refused | Interrupted:
    if isinstance(error, ValueError):  # what the libraries raise for a malformed address or header
        return Refused("the address or the response is malformed")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Refused("its TLS certificate is not trusted")
    return Interrupted("no response in time" if isinstance(error, requests.Timeout) else "cannot be reached")


def _redirected(response: requests.Response) -> str:
    """The target of a redirect. https never leads to http. A user and password are sent on only to their own host."""
    try:
        old = urlsplit(response.url)
        new = urlsplit(urljoin(response.url, response.headers["Location"].encode("latin-1").decode()))
    except ValueError:
        raise Refused("redirects to a malformed address") from None
    allowed = ("https",) if old.scheme == "https" else ("http", "https")
    if new.scheme not in allowed:
        raise Refused(f"redirects to an address that is not {' or '.join(allowed)}")
    return (new._replace(netloc=old.netloc) if new.netloc == old.netloc.rpartition("@")[2] else new).geturl()


def _prepare(response: requests.Response, partial: Partial) -> int | None:
    """Make the partial ready for the body of this response. Returns the length of the complete file, if it is known."""
    status = response.status_code
    if status == 304 and partial.known and not partial.size:
        raise Unchanged
    if status == 416 and partial.size:
        partial.restart("")
        raise Interrupted("HTTP 416")
    if status == 429 or status >= 500:
        raise Interrupted(f"HTTP {status}", _pause_seconds(response.headers.get("Retry-After", "")))
    if status not in (200, 206):
        raise Refused(f"HTTP {status}")
    # A server may compress in spite of the request. Such a body has no usable length and cannot be resumed.
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    validator = "" if encoded else _validator(response.headers)
    if status == 200:
        partial.restart(validator)
        length = response.headers.get("Content-Length", "")
        return int(length) if re.fullmatch("[0-9]{1,4000}", length) and not encoded else None
    first, total = _content_range(response.headers.get("Content-Range", ""))
    if encoded or first != partial.size or total <= first or validator not in ("", partial.validator):
        partial.restart("")
        raise Interrupted("the response is not the part that was requested")
    partial.resumed = True
    return total


def _validator(headers: CaseInsensitiveDict[str]) -> str:
    candidates = (headers.get("ETag", ""), headers.get("Last-Modified", ""))
    return next((text for text in candidates if is_validator(text)), "")


def _content_range(text: str) -> tuple[int, int]:
    """The first byte of a part, and the length of the complete file, or at least of all up to this part's end.

    (-1, -1) if the header is unreadable.
    """
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", text)
    if not match:
        return -1, -1
    return int(match[1]), int(match[2]) + 1 if match[3] == "*" else int(match[3])


def _pause_seconds(retry_after: str) -> float:
    """The delay of a Retry-After header, given in seconds or as a date; 0 if it is unreadable or past."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
