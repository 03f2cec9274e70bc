"""The source of the pictures: a named dataset, a folder, an archive, or a URL."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline.core.errors import PipelineError, without_password
from pipeline.core.files import project_root, sha256_of, sha256_of_file
from pipeline.net import store
from pipeline.net.fetch import Bounds, Pin, fetch
from pipeline.net.objects import is_object, list_objects, reading_objects
from pipeline.sources.archives import digest_of, open_archive, pack
from pipeline.sources.folders import file_member, folder_digest, folder_members
from pipeline.sources.formats import (
    PublishedFile,
    Reader,
    all_members,
    cifar10_members,
    cifar100_members,
    digits_members,
    flower_members,
    food_members,
    idx_members,
    open_published,
    pet_members,
)
from pipeline.sources.members import ArchiveEntry, Budget, Limits, Members, choose_members, is_archive, is_junk
from pipeline.sources.parquet import is_parquet
from pipeline.sources.tables import Table, label_pictures


@dataclass(frozen=True)
class NamedSource:
    """A dataset with a name: its licence, its published files (none: a package contains it), and the function that reads them.

    Of several files, each has a checksum. `digest`: of the content, if it is known.
    """

    licence: str
    files: tuple[PublishedFile, ...] = ()
    read: Reader = all_members
    digest: str | None = None


def _files(folder: str, *files: tuple[str, str]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(f"{folder}{name}", md5) for name, md5 in files)


def _mnist_files(folder: str, *md5s: str) -> tuple[PublishedFile, ...]:
    names = [f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return _files(folder, *zip(names, md5s, strict=True))


# Chapters 4 to 9 of the course «Learn PyTorch for Deep Learning» use this archive; the commit pins it.
_FOOD_COMMIT = "3b6c230bc4b373456f3a6ccd2734cac23cfac77f"
_EUROSAT_COMMIT = "c877bcd43f099cd0196738f714544e355477f3fd"
# The publisher writes «T-shirt/top», which is no name of a folder.
_FASHION = ("T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
NAMED = {
    "digits": NamedSource(
        "CC BY 4.0 (UCI Machine Learning Repository, optical recognition of handwritten digits)",
        read=digits_members,
        digest="37acf0748c15b78e0925dba295929831a53986dbc868cb45322833d51c5da306",
    ),
    "hymenoptera": NamedSource(
        "pictures from the web, for teaching; no licence stated",
        (PublishedFile("https://download.pytorch.org/tutorial/hymenoptera_data.zip"),),
        digest="5a108f97d3bce1380a9ce668f27cbad193fc4949eae3742814be6880564333ae",
    ),
    "pizza_steak_sushi": NamedSource(
        "a part of Food-101: pictures from the web, for research",
        (PublishedFile(f"https://raw.githubusercontent.com/mrdbourke/pytorch-deep-learning/{_FOOD_COMMIT}/data/pizza_steak_sushi.zip"),),
    ),
    "mnist": NamedSource(
        "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes, from NIST's databases)",
        _mnist_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        partial(idx_members, class_names="0123456789"),
    ),
    "fashion_mnist": NamedSource(
        "MIT (Zalando SE)",
        _mnist_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        partial(idx_members, class_names=_FASHION),
    ),
    "cifar10": NamedSource(
        "no licence stated (Alex Krizhevsky, Vinod Nair and Geoffrey Hinton)",
        _files("https://www.cs.toronto.edu/~kriz/", ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")),
        cifar10_members,
    ),
    "cifar100": NamedSource(
        "no licence stated (Alex Krizhevsky, Vinod Nair and Geoffrey Hinton)",
        _files("https://www.cs.toronto.edu/~kriz/", ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")),
        cifar100_members,
    ),
    "flowers102": NamedSource(
        "no licence stated (Visual Geometry Group, Oxford)",
        _files(
            f"{_VGG}flowers/102/",
            ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        flower_members,
    ),
    "oxford_iiit_pet": NamedSource(
        "CC BY-SA 4.0 (Visual Geometry Group, Oxford, and IIIT Hyderabad); the pictures belong to their owners",
        _files(
            f"{_VGG}pets/data/",
            ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        pet_members,
    ),
    "food101": NamedSource(
        "pictures from Foodspotting, not property of ETH Zurich; use beyond scientific fair use needs the consent of their owners",
        _files("http://data.vision.ee.ethz.ch/cvl/", ("food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87")),
        food_members,
    ),
    "eurosat": NamedSource(
        "MIT (Patrick Helber and others)",
        _files(
            f"https://huggingface.co/datasets/torchgeo/eurosat/resolve/{_EUROSAT_COMMIT}/",
            ("EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387"),
        ),
    ),
}  # fmt: skip
_CURE = f"give a path, a URL, or one of {', '.join(NAMED)}"


@dataclass(frozen=True)
class Source:
    """Where the pictures come from: a named dataset, a local path, or the URL of an archive, a Parquet file or a folder of objects.

    `title` names it in messages and outs, without a folder of this machine. `pinned_by_content`: its digest is over the
    files by path (`digest_of`), not over the bytes of one archive. `known_digest`: of a named dataset, if it is known.
    """

    title: str
    licence: str
    named: NamedSource | None = None
    url: str | None = None
    path: Path | None = None
    pinned_by_content: bool = False
    known_digest: str | None = None


def find_source(text: str) -> Source:
    """The source that `download.source` names. Relative paths start at the project's root. Raises PipelineError."""
    if text in NAMED:
        named = NAMED[text]
        return Source(text, named.licence, named, pinned_by_content=True, known_digest=named.digest)
    try:
        scheme = urlsplit(text).scheme
    except ValueError:
        raise PipelineError(f"params.yaml: download.source: {without_password(text)!r} is not a valid address; {_CURE}") from None
    if scheme in ("http", "https") or is_object(text):
        is_folder = is_object(text) and not _is_packed(urlsplit(text).path)
        return Source(without_password(text), "unknown", url=text, pinned_by_content=is_folder)
    path = project_root() / (unquote(urlsplit(text).path) if scheme == "file" else Path(text).expanduser())
    if path.is_dir():
        return Source(path.resolve().name, "unknown", path=path, pinned_by_content=True)
    if not path.exists():
        near = difflib.get_close_matches(text.lower(), NAMED, n=1)
        cure = f"did you mean {near[0]!r}?" if near else _CURE
        raise PipelineError(f"params.yaml: download.source: {without_password(text)!r} does not exist; {cure}")
    if not _is_packed(path.name):
        kinds = "a folder, .zip, .tar, .tar.gz, .tar.bz2, .tar.xz or .parquet"
        raise PipelineError(f"params.yaml: download.source: {text!r} is not {kinds}; {_CURE}")
    return Source(path.name, "unknown", path=path)


@contextmanager
def open_source(
    source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits, encoding: str | None = None
) -> Iterator[Members]:
    """The files of a source. `digest`: the one that params.yaml pins; what it finds in the store is not downloaded again.

    `encoding`: of names in a zip that does not state it; None: guessed.

    A mirror of a URL is another address of the same archive. A mirror of a named dataset is a folder with files of the
    published names. A file with another digest or published checksum is refused unread. Raises PipelineError.
    """
    try:
        if source.named is not None:
            with open_published(source.title, _fetch_files(source.named, mirrors, digest, limits), limits) as published:
                yield source.named.read(published)
        elif source.path is not None and source.path.is_dir():
            yield {**folder_members(source.path, limits)}
        else:
            with _open_file(_find_file(source, mirrors, digest, limits), source, limits, encoding) as members:
                yield members
    except PipelineError:
        if digest is not None:
            store.forget(digest)  # the stored file may be damaged; the next run downloads it anew
        raise


def measure_digest(
    source: Source,
    mirrors: tuple[str, ...],
    limits: Limits,
    encoding: str | None = None,
    reads_all: bool = False,
    table: Table | None = None,
) -> str:
    """Download the source as it is now and return its digest. Raises PipelineError, also if it is no set of labelled pictures.

    A file with a published checksum is taken from the store if it is there, since no other file would be accepted. Of a folder, only
    files that changed since the last look are read, see `folder_digest`; `reads_all`: all of them.
    """
    if source.named is not None:
        return _measure_named(source.title, source.named, mirrors, limits)
    if source.path is not None and source.path.is_dir():
        files = folder_members(source.path, limits)
        with label_pictures({**files}, table or Table(), source.title, limits):
            return folder_digest(source.path, files, reads_all)
    path = _find_file(source, mirrors, None, limits)
    with _open_file(path, source, limits, encoding) as members, label_pictures(members, table or Table(), source.title, limits):
        return digest_of(members) if source.pinned_by_content else sha256_of_file(path)


def _measure_named(title: str, named: NamedSource, mirrors: tuple[str, ...], limits: Limits) -> str:
    paths = _fetch_files(named, mirrors, None, limits)
    with open_published(title, paths, limits) as published:
        digest = digest_of(named.read(published))
    for file in named.files:
        if file.md5 is None:
            store.alias(digest, paths[file.name])  # so that the stage does not download it again
    return digest


def store_keys(text: str, mirrors: Iterable[str], digest: str | None) -> set[str]:
    """The keys in the store of what `download.source` and `download.digest` name, and the sha256 of its URLs."""
    files = NAMED[text].files if text in NAMED else ()
    urls = [file.url for file in files] or [text]
    urls += [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors for file in files] if files else mirrors
    return {key for key in (digest, *(file.md5 for file in files), *(sha256_of(url.encode()) for url in urls)) if key}


def expect_digest(source: Source, found: str, pinned: str) -> None:
    """Raise PipelineError if the source is not what params.yaml pins, and forget what was downloaded for it."""
    if found != pinned:
        store.forget(pinned)
        refusal = _pin(pinned).refusal(found)
        raise PipelineError(f"{source.title}: {refusal}; {refusal.cure}")


def _pin(digest: str) -> Pin:
    fault = "its digest is {found}, params.yaml pins download.digest {digits}"
    return Pin(digest, fault, "if the change is intended, run `pipeline data refresh`")


@contextmanager
def _open_file(path: Path, source: Source, limits: Limits, encoding: str | None) -> Iterator[Members]:
    """The files of an archive, or a Parquet file as the only one, named as in the source's address."""
    if not is_parquet(path):
        with open_archive(path, source.title, limits, encoding) as members:
            yield members
        return
    stem = PurePosixPath(urlsplit(source.url).path if source.url else path.name).stem
    yield {f"{stem}.parquet": file_member(path, f"{stem}.parquet", limits)}


def _is_packed(name: str) -> bool:
    """Whether the source is one file, by the end of its name."""
    return is_archive(name) or name.lower().endswith(".parquet")


def _fetch_folder(source: Source, digest: str | None, limits: Limits) -> Path:
    """The objects of a folder in a cloud as one zip in the store, whose alias is the digest of their content.

    `digest`: the one that params.yaml pins; what it finds in the store is not downloaded again.
    """
    url, bounds = source.url or "", _bounds(limits)
    if digest is not None and (kept := store.stored(digest)):
        return kept
    sizes, budget = dict(sorted(list_objects(url).items())), Budget(source.title, limits)
    for name, size in sizes.items():
        budget.add_file()
        budget.reach(name, size)
    wanted = {name: size for name, size in sizes.items() if not is_junk(name)}
    with reading_objects(url, wanted, bounds) as read, store.temporary_path() as packed:
        entries = (ArchiveEntry(name, False, partial(map, read, [name])) for name in wanted)
        found = pack(choose_members(entries, budget), packed)
        path = store.keep(packed, sha256_of_file(packed))
    store.alias(found, path)
    return path


def _find_file(source: Source, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> Path:
    """The source's archive or Parquet file, local or downloaded. `digest`: what it must have, if it is pinned."""
    if source.pinned_by_content:
        return _fetch_folder(source, digest, limits)
    if source.path is None:
        return fetch(source.url or "", _bounds(limits), digest, None if digest is None else _pin(digest), mirrors)
    if digest is not None:
        expect_digest(source, sha256_of_file(source.path), digest)
    return source.path


def _fetch_files(named: NamedSource, mirrors: tuple[str, ...], digest: str | None, limits: Limits) -> dict[str, Path]:
    """The files of a named dataset by name, from the store or the network.

    Their key in the store is the published checksum, or the digest of the content if there is none.
    """
    paths = {}
    for file in named.files:
        elsewhere = tuple(f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors)
        paths[file.name] = fetch(file.url, _bounds(limits), file.md5 or digest, file.pin, elsewhere)
    return paths


def _bounds(limits: Limits) -> Bounds:
    return Bounds(limits.fetch_gigabytes, limits.fetch_hours, "download.limits")
