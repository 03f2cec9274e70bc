"""The manifest: the table of all pictures, with their classes and splits."""

import base64
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from os.path import normpath
from pathlib import Path
from typing import Any

from pipeline.core.files import Slice, sha256_of, write_table

SPLITS = ("train", "val", "test")
_RECORDED = 5  # bytes of a sha256
_SHARED = ("label", "split", "shard")
_NUMBERS = {**dict.fromkeys(("width", "height", "offset", "size"), int), **dict.fromkeys(("brightness", "sharpness"), float)}


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of the manifest.

    `image_id`: path in the archive; `path`: path below `data/splits/<split>/`; `sha256`: of its bytes in the archive;
    `label`: name of its class; `group`: pictures of one group are in one split; `width`, `height`: pixels, upright.
    `shard`: the tar file with its bytes, `size` of them from `offset` on, by the path from `data/splits/<split>/`; empty: it has the file
    `path`. `brightness`, `sharpness`: see `inspection.PictureInfo`.
    """

    image_id: str
    path: str
    sha256: str
    label: str
    split: str
    group: str
    width: int
    height: int
    shard: str = ""
    offset: int = 0
    size: int = 0
    brightness: float = 0.0
    sharpness: float = 0.0

    def source(self, tree: Path) -> Path | Slice:
        """Where its bytes are. `tree`: the folder `data/splits/<split>`."""
        return Slice(_shard_path(tree, self.shard), self.offset, self.size) if self.shard else tree / self.path


@dataclass(frozen=True)
class Manifest:
    """All pictures, sorted by image_id. A stage reads it once and passes it on."""

    pictures: Sequence[Picture]

    def split(self, name: str) -> list[Picture]:
        """The pictures of one split."""
        return [picture for picture in self.pictures if picture.split == name]

    @cached_property
    def train(self) -> list[Picture]:
        """The training pictures."""
        return self.split("train")

    @cached_property
    def val(self) -> list[Picture]:
        """The val pictures."""
        return self.split("val")

    @cached_property
    def class_names(self) -> list[str]:
        """The classes of the training pictures, sorted: label i of a model is `class_names[i]`."""
        return sorted({picture.label for picture in self.train})

    def labels(self, pictures: Iterable[Picture]) -> list[int]:
        """The class numbers of some pictures: positions in `class_names`."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return [numbers[picture.label] for picture in pictures]


def write_manifest(path: Path, pictures: Iterable[Picture]) -> None:
    """Write manifest.csv, sorted by image_id."""
    rows = [asdict(picture) for picture in sorted(pictures, key=lambda picture: picture.image_id)]
    write_table(path, [field.name for field in fields(Picture)], rows)


def read_manifest(path: Path) -> Manifest:
    """Read manifest.csv. Of a million rows, each takes some hundred bytes: what many have in common is kept once."""
    with path.open(newline="", encoding="utf-8") as file:
        return Manifest([_picture(row) for row in csv.DictReader(file)])


def record_of(pictures: Iterable[Picture], earlier: str = "") -> str:
    """A compact record of these pictures, and of those of an earlier record: the first five bytes of each sha256, sorted, in base64.

    Two of a million million pictures are taken for each other.
    """
    return _packed({bytes.fromhex(picture.sha256)[:_RECORDED] for picture in pictures} | _unpacked(earlier))


def recorded(pictures: Iterable[Picture], record: str) -> list[Picture]:
    """Those of the pictures that are in a record."""
    known = _unpacked(record)
    return [picture for picture in pictures if bytes.fromhex(picture.sha256)[:_RECORDED] in known]


def sha256_of_pictures(pictures: Iterable[Picture]) -> str:
    """The sha256 of a set of pictures: of their sums, sorted."""
    return sha256_of("\n".join(sorted(picture.sha256 for picture in pictures)).encode())


@cache
def _shard_path(tree: Path, shard: str) -> Path:
    return Path(normpath(tree / shard))


def _picture(row: Mapping[str, str]) -> Picture:
    shared, numbers = {name: sys.intern(row[name]) for name in _SHARED}, {name: read(row[name]) for name, read in _NUMBERS.items()}
    values: dict[str, Any] = {**row, **shared, **numbers}
    return Picture(**values)


def _packed(sums: set[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(sums))).decode()


def _unpacked(record: str) -> set[bytes]:
    content = base64.b64decode(record)
    return {content[start : start + _RECORDED] for start in range(0, len(content), _RECORDED)}
