"""The table of the pictures: which there are, what they show, in which split they lie."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.files import read_table, write_table

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Picture:
    """A row: `image_id` is the path inside the archive, `path` the one below `data/splits/<split>/`.

    `sha256` is that of the picture's bytes in the archive, `label` its class; pictures of one `group` are in one split;
    `width` and `height` in pixels, upright.
    """

    image_id: str
    path: str
    sha256: str
    label: str
    split: str
    group: str
    width: int
    height: int


def write_manifest(path: Path, pictures: Iterable[Picture]) -> None:
    """Write the table, sorted by image_id."""
    rows = [asdict(picture) for picture in sorted(pictures, key=lambda picture: picture.image_id)]
    write_table(path, [field.name for field in fields(Picture)], rows)


def read_manifest(path: Path, split: str | None = None) -> list[Picture]:
    """The pictures of one split or of all, in the order of their image_id."""
    rows = (_picture(row) for row in read_table(path))
    return [picture for picture in rows if split in (None, picture.split)]


def class_names(pictures: Iterable[Picture]) -> list[str]:
    """The classes in their order: label i of a model is `class_names[i]`."""
    return sorted({picture.label for picture in pictures})


def _picture(row: dict[str, str]) -> Picture:
    texts = {name: row[name] for name in ("image_id", "path", "sha256", "label", "split", "group")}
    return Picture(**texts, width=int(row["width"]), height=int(row["height"]))
