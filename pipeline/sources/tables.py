"""Tables of labels: CSV or Parquet files of a source that give each picture its label, in place of class folders.

What they contain is packed as `.labels.csv`, which the stage `split` reads: a row per picture and per fault, sorted by image_id.
No source has a file of that name, since hidden files are ignored.
"""

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from posixpath import basename, splitext
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import StringConstraints

from pipeline.core.errors import PipelineError
from pipeline.core.files import csv_line
from pipeline.core.sections import Section
from pipeline.net import store
from pipeline.sources.layout import LABELS, expect_folders, listed, may_be_picture, split_named
from pipeline.sources.members import Budget, Limits, Members, is_junk, name_fault, shown
from pipeline.sources.parquet import name_of_picture, open_parquet, parquet_rows

_COLUMNS = ["image_id", "label", "split", "group", "finding", "detail"]
_SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = (",", ";", "\t")
# Findings: what is wrong with a row or a picture. A repeated one is used once, the others are left out.
FINDINGS = ("missing", "unlabelled", "contradicted", "repeated")
_Name = Annotated[str, StringConstraints(min_length=1)]


class Table(Section, extra="ignore"):  # a part of the section `download` of params.yaml
    """Which file of the source has the labels, and the names of its columns."""

    table: _Name | None = None  # its path in the source or the end of it, or a pattern, as *.csv; null: class folders, or Parquet files
    image: _Name = "image"  # the path of a picture, or the end of it; the suffix may be missing. In Parquet also the picture itself
    label: _Name = "label"
    split: _Name | None = None  # null: of several tables, the name of each
    group: _Name | None = None  # pictures of one group stay together


class Row(NamedTuple):
    """What a table says of a picture. Empty: nothing."""

    image: str
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class Pictures:
    """What is packed of a source: its files, or its pictures and `.labels.csv`.

    `counts`: rows, pictures with a label, and each kind of finding; empty without a table.
    """

    members: Members
    counts: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def label_pictures(files: Members, table: Table, title: str, limits: Limits) -> Iterator[Pictures]:
    """The pictures among a source's files with the labels of its table; without a table, all files, which must be in class folders.

    `title` names the source in messages. Pictures in Parquet files are copied into a temporary file beside the store. Raises PipelineError.
    """
    names = _find_tables(files, table.table, title)
    if not names:
        expect_folders(files, title)
        yield Pictures(files)
        return
    where, of_all = f"{title}: {', '.join(names)}", ", ".join(names)
    with store.temporary_file() as spool:
        pictures = {name: read for name, read in files.items() if name not in names and may_be_picture(name)}
        rows = _read_tables({name: files[name] for name in names}, table, title, limits, pictures, spool)
        judged = _judge(_match(_with_folders(rows, where), pictures, where), pictures, of_all)
        counts = Counter(row["finding"] for row in judged)
        labelled = len(judged) - sum(counts[kind] for kind in ("missing", "unlabelled", "contradicted"))
        content = "".join(csv_line(_COLUMNS, row) for row in (dict(zip(_COLUMNS, _COLUMNS, strict=True)), *judged)).encode()
        facts = {"rows": len(rows), "labelled": labelled, **{kind: counts[kind] for kind in FINDINGS}}
        yield Pictures({**pictures, LABELS: lambda: content}, facts)


def _find_tables(files: Iterable[str], wanted: str | None, title: str) -> list[str]:
    """The files that `download.table` names: by a whole path, by the end of one, or by a pattern.

    Without a name, the Parquet files of a source without folders of pictures.
    """
    names = sorted(files)
    tables = [name for name in names if name.lower().endswith(_SUFFIXES)]
    if wanted is None:
        packed = [name for name in tables if name.lower().endswith(".parquet")]
        return [] if any("/" in name and may_be_picture(name) for name in set(names) - set(packed)) else packed
    if wanted in names:
        return [wanted]
    ends = [name for name in names if name.endswith(f"/{wanted}")]
    found = ends or [name for name in names if fnmatchcase(name, wanted) or fnmatchcase(basename(name), wanted)]
    if len(ends) > 1:
        raise PipelineError(f"params.yaml: download.table: {wanted!r} names several files of {title}: {listed(ends)}; write a whole path")
    if not found:
        raise PipelineError(f"params.yaml: download.table: {wanted!r} is no file of {title}; its tables are {listed(tables) or 'none'}")
    return found


def _read_tables(tables: Members, table: Table, title: str, limits: Limits, pictures: Members, spool: BinaryIO) -> list[Row]:
    """The rows of all tables. Pictures that they contain are copied to `spool` and added to `pictures`.

    Without a split column, the name of each of several tables may name the split of its rows.
    """
    rows, budget = list[Row](), Budget(title, limits)
    for name, read in tables.items():
        split = None if table.split or len(tables) == 1 else split_named(name)
        for number, (row, content) in enumerate(_rows_of(read, name, table, title, limits), 1):
            budget.add_file()
            image = row.image
            if content is not None:
                image = name_of_picture(image, content, number, splitext(name)[0], pictures)
                budget.reach(image, len(content))
                pictures[image] = partial(_read_part, spool, spool.tell(), len(content))
                spool.write(content)
            if not image:
                raise PipelineError(f"{title}: {name}: row {number} has no picture; correct it")
            rows.append(row._replace(image=image, split=row.split if split is None else split))
    return rows


def _read_part(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _rows_of(read: Callable[[], bytes], name: str, table: Table, title: str, limits: Limits) -> Iterator[tuple[Row, bytes | None]]:
    """The rows of one table, and the picture of each if the table contains it."""
    where = f"{title}: {name}"
    if not name.lower().endswith(".parquet"):
        yield from ((row, None) for row in _read_csv(read(), table, where))
        return
    with open_parquet(read, where, limits) as file:
        _expect_columns(file.schema_arrow.names, table, where)
        others = [column for column in (table.label, table.split, table.group) if column]
        for path, content, cells in parquet_rows(file, table.image, list(dict.fromkeys(others)), where):
            of_column = dict(zip(dict.fromkeys(others), cells, strict=True))
            yield Row(path, *(of_column[column] if column else "" for column in (table.label, table.split, table.group))), content


def _read_csv(content: bytes, table: Table, where: str) -> Iterator[Row]:
    """The rows of a CSV file in UTF-8 that is separated by commas, semicolons or tabs. Raises PipelineError."""
    try:
        text = content.decode("utf-8-sig")
        delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(lines, [])]
        _expect_columns(names, table, where)
        places = [None if column is None else names.index(column) for column in (table.image, table.label, table.split, table.group)]
        for line in filter(None, lines):
            if len(line) != len(names):
                raise PipelineError(f"{where}: line {lines.line_num} has {len(line)} cells, the first line {len(names)}; correct it")
            yield Row(*("" if place is None else line[place].strip() for place in places))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"{where}: is not a CSV file in UTF-8: {error}; save it as one") from None


def _expect_columns(names: list[str], table: Table, where: str) -> None:
    """Raise PipelineError if a column that the params name is missing or there twice."""
    for key in ("image", "label", "split", "group"):
        column = getattr(table, key)
        if column is not None and names.count(column) != 1:
            fault = f"has {names.count(column)} columns {column!r}" if column in names else f"has no column {column!r}"
            raise PipelineError(f"{where}: {fault}; its columns are {listed(names) or 'none'}; set download.{key} in params.yaml")


def _with_folders(rows: list[Row], where: str) -> list[Row]:
    """The rows with labels that can be names of folders: slashes become `_`. Raises PipelineError if that is not enough."""
    written: dict[str, str] = {}
    for label in sorted({row.label for row in rows if row.label}):
        folder = unicodedata.normalize("NFC", re.sub(r"[/\\]", "_", label))
        if name_fault(folder) or is_junk(folder) or not folder.isprintable():
            raise PipelineError(f"{where}: the label {shown(label)} cannot be the name of a folder; rename it")
        if folder != label:
            print(f"{where}: the class {label!r} is called {folder!r}, since it becomes a folder")
        written[label] = folder
    spelt: dict[str, str] = {}
    for label, folder in written.items():
        if (other := spelt.setdefault(folder.casefold(), label)) != label:
            raise PipelineError(f"{where}: the labels {other!r} and {label!r} would be one folder on some systems; rename one")
    return [row._replace(label=written.get(row.label, "")) for row in rows]


def _match(rows: list[Row], pictures: Iterable[str], where: str) -> dict[str, list[Row]]:
    """`image_id: rows`, where the key of rows without a picture is what the table has in its place.

    A row names a picture by its path or the end of it, with or without the suffix. Raises PipelineError if that fits several.
    """
    names, by_end = set(pictures), defaultdict[str, list[str]](list)
    for name in names:
        for end in {basename(name), splitext(basename(name))[0]}:
            by_end[end].append(name)
    matched = defaultdict[str, list[Row]](list)
    for row in rows:
        wanted = unicodedata.normalize("NFC", row.image.replace("\\", "/").removeprefix("./").lstrip("/"))
        found = [wanted] if wanted in names else _ends(wanted, by_end.get(basename(wanted), []))
        if len(found) > 1:
            raise PipelineError(f"{where}: {shown(row.image)} is the end of several paths: {listed(sorted(found))}; write whole paths")
        matched[found[0] if found else row.image].append(row)
    if matched.keys().isdisjoint(names):
        first = f", but {shown(rows[0].image)}" if rows else ""
        raise PipelineError(f"{where}: names none of the {len(names)} pictures{first}; set download.image to the column with their paths")
    return matched


def _ends(wanted: str, candidates: list[str]) -> list[str]:
    """The candidates that end in a path; if there is none, those that do without their suffix."""
    whole = [name for name in candidates if f"/{name}".endswith(f"/{wanted}")]
    return whole or [name for name in candidates if f"/{splitext(name)[0]}".endswith(f"/{wanted}")]


def _judge(matched: Mapping[str, list[Row]], pictures: Members, tables: str) -> list[dict[str, str]]:
    """The rows of `.labels.csv`."""
    judged = []
    for image_id in sorted({*pictures, *matched}):
        rows = matched.get(image_id, [])
        finding, detail = _finding(rows, image_id in pictures, tables)
        row = rows[0] if rows else Row(image_id, "", "", "")
        judged.append(dict(zip(_COLUMNS, (image_id, row.label, row.split, row.group, finding, detail), strict=True)))
    return judged


def _finding(rows: list[Row], is_there: bool, tables: str) -> tuple[str, str]:
    """What is wrong with a picture and its rows: the kind and a sentence, both empty if nothing is."""
    if not is_there:
        return "missing", f"in {tables}, but not among the files"
    if not rows or not any(row.label for row in rows):
        return "unlabelled", f"not in {tables}" if not rows else f"without a label in {tables}"
    said = {row[1:] for row in rows}
    if len(said) > 1:
        differing = next(values for values in ({row[key] for row in rows} for key in (1, 2, 3)) if len(values) > 1)
        return "contradicted", f"listed {len(rows)} times in {tables}, as {' and '.join(map(repr, sorted(differing)))}"
    return ("repeated", f"listed {len(rows)} times in {tables}, always the same") if len(rows) > 1 else ("", "")
