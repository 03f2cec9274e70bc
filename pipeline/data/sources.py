"""What `download.source` may name: data sets with a name, folders, archives, URLs."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.addresses import without_password
from pipeline.data import store
from pipeline.data.archive import Members, digest_of, folder_members, is_archive, open_archive
from pipeline.data.fetch import Pin, fetch
from pipeline.data.limits import Limits
from pipeline.data.named.catalogue import NAMED, NamedSource
from pipeline.data.named.published import open_published
from pipeline.data.transfer import Bounds
from pipeline.errors import PipelineError
from pipeline.files import project_root, sha256_of_file

_CURE = f"give a path, a URL, or one of {', '.join(NAMED)}"


@dataclass(frozen=True)
class Source:
    """Where pictures come from: a name, the URL of an archive, or a local path.

    `title` names it in messages and outs, without a folder of this machine. `pinned_by_content`: its digest is that
    of the files by their paths, not that of one archive's bytes. `known_digest`: what it was when it got its name here.
    """

    title: str
    licence: str
    named: NamedSource | None = None
    url: str | None = None
    path: Path | None = None
    pinned_by_content: bool = False
    known_digest: str | None = None


def find_source(text: str) -> Source:
    """Understand `download.source`. Relative paths start at the project's root. Raises PipelineError."""
    if text in NAMED:
        named = NAMED[text]
        return Source(text, named.licence, named, pinned_by_content=True, known_digest=named.digest)
    try:
        scheme = urlsplit(text).scheme
    except ValueError:
        raise PipelineError(f"params.yaml: download.source: {without_password(text)!r} is no address; {_CURE}") from None
    if scheme in ("http", "https"):
        return Source(without_password(text), "unknown", url=text)
    path = project_root() / (unquote(urlsplit(text).path) if scheme == "file" else Path(text).expanduser())
    if path.is_dir():
        return Source(path.resolve().name, "unknown", path=path, pinned_by_content=True)
    if not path.exists():
        near = difflib.get_close_matches(text.lower(), NAMED, n=1)
        cure = f"did you mean {near[0]!r}?" if near else _CURE
        raise PipelineError(f"params.yaml: download.source: {without_password(text)!r} is not there; {cure}")
    if not is_archive(path.name):
        raise PipelineError(f"params.yaml: download.source: {text!r} is no folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")
    return Source(path.name, "unknown", path=path)


@contextmanager
def open_source(source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> Iterator[Members]:
    """The files of a source. With the digest that params.yaml pins, what was fetched before is not fetched again.

    A mirror of a URL is another address of that archive; one of a source with a name is a folder, to which the names of
    its files are added. A file whose own digest or published checksum differs is refused before it is read. Raises PipelineError.
    """
    try:
        if source.named is not None:
            with open_published(source.title, _fetch_files(source.named, mirrors, digest, limits), limits) as published:
                yield source.named.read(published)
        elif source.path is not None and source.path.is_dir():
            yield folder_members(source.path, limits)
        else:
            with open_archive(_find_archive(source, mirrors, digest, limits), source.title, limits) as members:
                yield members
    except PipelineError:
        if digest is not None:
            store.forget(digest)
        raise


def measure_digest(source: Source, mirrors: tuple[str, ...], limits: Limits) -> str:
    """Look at the source as it is now, fetching it anew, and return its digest. Raises PipelineError.

    A file with a published checksum is fetched only where the store lacks it: there is no other that would be taken.
    """
    if not source.pinned_by_content:
        return sha256_of_file(_find_archive(source, mirrors, None, limits))
    if source.named is None:
        with open_source(source, mirrors, None, limits) as members:
            return digest_of(members)
    paths = _fetch_files(source.named, mirrors, None, limits)
    with open_published(source.title, paths, limits) as published:
        digest = digest_of(source.named.read(published))
    for file in source.named.files:
        if file.md5 is None:
            store.alias(digest, paths[file.name])  # what is pinned now need not be fetched once more
    return digest


def expect_digest(source: Source, found: str, pinned: str) -> None:
    """Raise PipelineError where the source is not what params.yaml pins, and forget what was fetched."""
    if found != pinned:
        store.forget(pinned)
        refusal = _pin(pinned).refusal(found)
        raise PipelineError(f"{source.title}: {refusal}; {refusal.cure}")


def _pin(digest: str) -> Pin:
    fault = "its digest is {found}, params.yaml pins download.digest {digits}"
    return Pin(digest, fault, "if the change is meant, run `pipeline data refresh`")


def _find_archive(source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> Path:
    """The source's archive, where it lies or from the network; with a digest, the one that has it."""
    if source.path is None:
        return fetch(source.url or "", _bounds(limits), digest, None if digest is None else _pin(digest), mirrors)
    if digest is not None:
        expect_digest(source, sha256_of_file(source.path), digest)
    return source.path


def _fetch_files(named: NamedSource, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> dict[str, Path]:
    """The files of a source with a name, by their names, from the store or the network.

    A published checksum is what one is found by in the store; where there is none, the digest of the content.
    """
    paths = {}
    for file in named.files:
        elsewhere = tuple(f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors)
        paths[file.name] = fetch(file.url, _bounds(limits), file.md5 or digest, file.pin, elsewhere)
    return paths


def _bounds(limits: Limits) -> Bounds:
    return Bounds(limits.fetch_gigabytes, limits.fetch_hours, "download.limits")
