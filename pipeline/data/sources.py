"""What `download.source` may name: data sets with a name, folders, archives, URLs."""

import difflib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.addresses import without_password
from pipeline.data import store
from pipeline.data.archive import Members, digest_of, folder_members, is_archive, open_archive
from pipeline.data.fetch import Pin, fetch
from pipeline.data.limits import Limits
from pipeline.data.transfer import Bounds
from pipeline.errors import PipelineError
from pipeline.files import project_root, sha256_of_file

# Chapters 4 to 9 of the course «Learn PyTorch for Deep Learning» use this archive; the commit keeps it from changing.
_FOOD_COMMIT = "3b6c230bc4b373456f3a6ccd2734cac23cfac77f"


@dataclass(frozen=True)
class NamedSource:
    """A data set with a name: where it is published (None: a package carries it), under what terms, its known digest."""

    url: str | None
    licence: str
    digest: str | None = None


NAMED = {
    "digits": NamedSource(
        None,
        "CC BY 4.0 (UCI Machine Learning Repository, optical recognition of handwritten digits)",
        "37acf0748c15b78e0925dba295929831a53986dbc868cb45322833d51c5da306",
    ),
    "hymenoptera": NamedSource(
        "https://download.pytorch.org/tutorial/hymenoptera_data.zip",
        "pictures of the web, for teaching; no licence stated",
        "5a108f97d3bce1380a9ce668f27cbad193fc4949eae3742814be6880564333ae",
    ),
    "pizza_steak_sushi": NamedSource(
        f"https://raw.githubusercontent.com/mrdbourke/pytorch-deep-learning/{_FOOD_COMMIT}/data/pizza_steak_sushi.zip",
        "a part of Food-101: pictures of the web, for research",
    ),
}

_CURE = f"give a path, a URL, or one of {', '.join(NAMED)}"


@dataclass(frozen=True)
class Source:
    """Where pictures come from: a URL, a local path, or neither (a package carries them).

    `title` names it in messages and outs, without a folder of this machine. `pinned_by_content`: its digest is that
    of the files by their paths, not that of one archive's bytes. `known_digest`: what it was when it got its name here.
    """

    title: str
    licence: str
    url: str | None = None
    path: Path | None = None
    pinned_by_content: bool = False
    known_digest: str | None = None


def find_source(text: str) -> Source:
    """Understand `download.source`. Relative paths start at the project's root. Raises PipelineError."""
    if text in NAMED:
        named = NAMED[text]
        return Source(text, named.licence, url=named.url, pinned_by_content=True, known_digest=named.digest)
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
        near = difflib.get_close_matches(text, NAMED, n=1)
        cure = f"did you mean {near[0]!r}?" if near else _CURE
        raise PipelineError(f"params.yaml: download.source: {without_password(text)!r} is not there; {cure}")
    if not is_archive(path.name):
        raise PipelineError(f"params.yaml: download.source: {text!r} is no folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")
    return Source(path.name, "unknown", path=path)


@contextmanager
def open_source(source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> Iterator[Members]:
    """The files of a source. With the digest that params.yaml pins, what was fetched before is not fetched again.

    An archive whose own digest differs is refused before it is read. Raises PipelineError.
    """
    if source.path is not None and source.path.is_dir():
        yield folder_members(source.path, limits)
    elif source.url is None and source.path is None:
        yield _digits_members()
    else:
        archive = source.path or _fetched(source, mirrors, digest, limits)
        if digest is not None and source.path is not None:
            expect_digest(source, sha256_of_file(archive), digest)
        try:
            with open_archive(archive, source.title, limits) as members:
                yield members
        except PipelineError:
            if digest is not None:
                store.forget(digest)
            raise


def measure_digest(source: Source, mirrors: tuple[str, ...], limits: Limits) -> str:
    """Look at the source as it is now, fetching it anew, and return its digest. Raises PipelineError."""
    archive = _fetched(source, mirrors, None, limits) if source.url else source.path
    if archive and not source.pinned_by_content:
        return sha256_of_file(archive)
    with open_source(replace(source, path=archive), (), None, limits) as members:
        digest = digest_of(members)
    if archive and source.url:
        store.alias(digest, archive)  # what is pinned now need not be fetched once more
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


def _fetched(source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> Path:
    """The source's archive from the store, or from the network. A content digest leads to its archive by an alias."""
    bounds = Bounds(limits.fetch_gigabytes, limits.fetch_hours, "download.limits")
    pin = None if digest is None or source.pinned_by_content else _pin(digest)
    return fetch(source.url or "", bounds, digest, pin, mirrors)


def _digits_members() -> Members:
    """The 1,797 handwritten digits that scikit-learn carries, 8 x 8 grey pixels each, as `<digit>/<number>.png`."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    members: Members = {}
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        with io.BytesIO() as file:
            Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(file, "PNG", compress_level=0)
            members[f"{label}/{number:04d}.png"] = _reader(file.getvalue())
    return members


def _reader(content: bytes) -> Callable[[], bytes]:
    return lambda: content
