"""Files from the network, kept by their sha256 in the project's store."""

import tempfile
import time
from pathlib import Path

import requests
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.files import atomic_file, cache_dir, sha256_of_file

_CONNECT_SECONDS, _STALL_SECONDS = 10, 30
_ATTEMPTS = 3
_RETRIED_STATUS = (429, 500, 502, 503, 504)


def stored(digest: str) -> Path | None:
    """The file in the store with that sha256 or that alias, its sum checked, or None. A damaged one is removed."""
    alias = _store() / f"{digest}.alias"
    digest = alias.read_text().strip() if alias.is_file() else digest
    path = _store() / digest
    if not path.is_file():
        return None
    if sha256_of_file(path) == digest:
        return path
    path.unlink()
    return None


def keep(path: Path) -> Path:
    """Move a file into the store under its sha256 and return its new path."""
    target = _store() / sha256_of_file(path)
    with atomic_file(target) as partial:
        path.replace(partial)
    return target


def alias(digest: str, path: Path) -> None:
    """Let `stored(digest)` find a file of the store that has another sha256."""
    with atomic_file(_store() / f"{digest}.alias") as partial:
        partial.write_text(path.name)


def forget(digest: str) -> None:
    """Take an alias back."""
    (_store() / f"{digest}.alias").unlink(missing_ok=True)


def fetch(url: str, mirrors: tuple[str, ...] = ()) -> Path:
    """Fetch a URL, or the first of its mirrors that answers, into the store. Raises PipelineError."""
    faults = []
    for address in (url, *mirrors):
        with tempfile.TemporaryDirectory(dir=_store()) as folder:
            partial = Path(folder) / "partial"
            try:
                _download(address, partial)
                return keep(partial)
            except requests.RequestException as error:
                faults.append(f"{address}: {_reason(error)}")
    raise PipelineError(f"{'; '.join(faults)}; check the address and the network, or name a local file")


def _store() -> Path:
    store = cache_dir("store")
    store.mkdir(parents=True, exist_ok=True)
    return store


def _download(url: str, target: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _download_once(url, target)
            return
        except requests.RequestException as error:
            answered = error.response is not None and error.response.status_code not in _RETRIED_STATUS
            if (
                answered
                or attempt == _ATTEMPTS - 1
                or isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema))
            ):
                raise
            time.sleep(2.0**attempt / 2)


def _download_once(url: str, target: Path) -> None:
    with requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _STALL_SECONDS)) as answer:
        answer.raise_for_status()
        announced = int(answer.headers.get("Content-Length", 0)) or None
        with target.open("wb") as file, tqdm(desc="fetch", total=announced, unit="B", unit_scale=True, disable=None) as bar:
            try:
                for block in answer.iter_content(1 << 20):
                    file.write(block)
                    bar.update(len(block))
            except requests.exceptions.ChunkedEncodingError:
                of = f"{announced:,}" if announced else "an unknown number of"
                raise requests.ConnectionError(f"the body ended after {answer.raw.tell():,} of {of} bytes") from None
        if announced and "Content-Encoding" not in answer.headers and target.stat().st_size != announced:
            raise requests.ConnectionError(f"the body ended after {target.stat().st_size:,} of {announced:,} bytes")


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    text = str(error)
    return text if text.startswith("the body ended") else "cannot be reached" if isinstance(error, requests.ConnectionError) else text
