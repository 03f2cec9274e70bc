"""Parquet files with a row per picture: its path, or the picture itself as Hugging Face publishes it, and its label."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from posixpath import splitext
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.sources.folders import FolderFile
from pipeline.sources.members import Budget, Limits, is_junk, name_fault

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
_BATCH_ROWS = 32  # in memory at once, with their pictures
_SUFFIXES = {rb"\xff\xd8\xff": ".jpg", rb"\x89PNG": ".png", rb"GIF8": ".gif", rb"RIFF....WEBP": ".webp", rb"BM": ".bmp"}


def is_parquet(path: Path) -> bool:
    """Whether a file begins like Parquet, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def open_parquet(read: Callable[[], bytes], where: str, limits: Limits) -> "Iterator[ParquetFile]":
    """Open a file of a source. A file of a folder stays on disk; one of an archive is read into memory, at most 1 GiB.

    Raises PipelineError if it is damaged or claims to unpack beyond the limits, also in the block.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pa.OSFile(str(read.path)) if isinstance(read, FolderFile) else pa.BufferReader(read())
        with content, pq.ParquetFile(content) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            claimed = sum(group.column(index).total_uncompressed_size for group in groups for index in range(group.num_columns))
            Budget(where, limits, content.size()).add_bytes(claimed)
            yield file
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, as a full disk
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise PipelineError(f"{where}: is damaged or not a Parquet file: {reason}; download it again") from None


def parquet_rows(file: "ParquetFile", image: str, others: Sequence[str], where: str) -> Iterator[tuple[str, bytes | None, list[str]]]:
    """The rows: the path of the picture or "", its content or None, and the text of the other columns.

    Numbers of a column of classes are their names, as in Hugging Face's sets. Raises PipelineError on other types.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    for name in others:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise PipelineError(f"{where}: the column {name!r} is of the type {kind}; name one of texts or numbers")
    class_names = {name: _class_names(schema, name) for name in others}
    # Group by group, since Arrow keeps what it has read of all groups that are asked for together.
    batches = (file.iter_batches(_BATCH_ROWS, [group], [image, *others]) for group in range(file.num_row_groups))
    for batch in chain.from_iterable(batches):
        for row in batch.to_pylist():
            yield *_picture(row[image], image, where), [_text(row[name], class_names[name], f"{where}: {name}") for name in others]


def name_of_picture(path: str, content: bytes, number: int, folder: str, taken: Container[str]) -> str:
    """The name of a picture from row `number` of a table: its own path if that is a safe one, else the number and a suffix of its format.

    It starts with `folder`. A name in `taken` gets the number after its stem.
    """
    name = unicodedata.normalize("NFC", path)
    if not name or name_fault(name) or is_junk(name) or not name.isprintable():
        suffix = next((suffix for pattern, suffix in _SUFFIXES.items() if re.match(pattern, content, re.DOTALL)), "")
        name = f"{number:06d}{suffix}"
    while (whole := f"{folder}/{name}") in taken:
        stem, suffix = splitext(name)
        name = f"{stem}~{number}{suffix}"
    return whole


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of the classes of a column of Hugging Face's type ClassLabel; None if it is another, or its description is damaged."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _picture(cell: object, column: str, where: str) -> tuple[str, bytes | None]:
    """The path and the content in a cell: a text, bytes, or both as Hugging Face stores them."""
    if isinstance(cell, dict):
        path, content = cell.get("path"), cell.get("bytes")
    else:
        path, content = (None, cell) if isinstance(cell, bytes) else (cell, None)
    if not isinstance(path, str | None) or not isinstance(content, bytes | None):
        raise PipelineError(f"{where}: the column {column!r} has neither paths nor pictures; set download.image in params.yaml")
    return path or "", content


def _text(cell: object, class_names: list[str] | None, where: str) -> str:
    """A cell as text. Empty: null, NaN, and the class -1, by which Hugging Face marks pictures without a label."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # as pandas writes whole numbers of which some are missing
        cell = int(cell)
    if class_names is None or not isinstance(cell, int):
        return str(cell).strip()
    if not -1 <= cell < len(class_names):
        raise PipelineError(f"{where}: contains the class {cell}, but there are {len(class_names)} names; correct the table")
    return class_names[cell].strip() if cell >= 0 else ""
