"""The ImageFolder trees: where each picture lies in them, and what is written there."""

import io
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.data.duplicates import Groups
from pipeline.data.images import IMAGEFOLDER_SUFFIXES, decode
from pipeline.data.inspection import Inspected, Look
from pipeline.data.layout import Entry
from pipeline.data.manifest import Picture
from pipeline.files import atomic_dir

_MOST_BYTES = 255  # of a file's name


def place(
    entries: list[Entry], inspected: Mapping[str, Inspected], looks: Mapping[str, Look], splits: Mapping[str, str], together: Groups
) -> list[Picture]:
    """The rows of the manifest. Paths keep their folders; equal ones are told apart, what ImageFolder drops is a .png."""
    taken = {
        (splits[entry.name], alike(str(folder))) for entry in entries for folder in PurePosixPath(entry.label, entry.inner_path).parents
    }
    pictures = []
    for entry in entries:
        split, look = splits[entry.name], looks[entry.name]
        suffix = "" if is_kept(entry.name, look) else ".png"
        number, path = 1, fitting(f"{entry.label}/{entry.inner_path}", "", suffix)
        while (split, alike(path)) in taken:
            number += 1
            path = fitting(f"{entry.label}/{entry.inner_path}", f"~{number}", suffix)
        taken.add((split, alike(path)))
        sha256, group = inspected[entry.name].sha256, together.of(entry.name)
        pictures.append(Picture(entry.name, path, sha256, entry.label, split, group, look.width, look.height))
    return pictures


def alike(path: str) -> str:
    """A path as systems see it that tell neither capitals nor the ways to write an accent apart."""
    return unicodedata.normalize("NFC", path).casefold()


def fitting(path: str, mark: str, suffix: str) -> str:
    """A path with a mark behind the stem and a further suffix, its stem cut where the name would be too long for a file."""
    wanted = PurePosixPath(path + suffix)
    stem, ends = wanted.stem.encode(), f"{mark}{wanted.suffix}".encode()
    return str(wanted.with_name(stem[: _MOST_BYTES - len(ends)].decode(errors="ignore") + ends.decode()))


def is_kept(name: str, look: Look) -> bool:
    """Whether any reader of ImageFolder trees understands the picture's file as it is."""
    return name.lower().endswith(IMAGEFOLDER_SUFFIXES) and look.traits.plain


def write_trees(archive: zipfile.ZipFile, pictures: list[Picture], looks: Mapping[str, Look], splits: Path) -> None:
    """Write `<split>/<class>/…`: a picture's own bytes, or its decoded pixels as PNG."""
    with atomic_dir(splits) as partial:
        for picture in tqdm(pictures, "write", disable=None):
            target = partial / picture.split / picture.path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.read(picture.image_id)
            target.write_bytes(content if is_kept(picture.image_id, looks[picture.image_id]) else as_png(content))


def as_png(content: bytes) -> bytes:
    """A picture's decoded pixels as a PNG file."""
    with io.BytesIO() as file:
        decode(content).save(file, "PNG")
        return file.getvalue()
