"""Pictures that belong together (of one patient, one plant, one film), so that no split tears them apart."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import StringConstraints

from pipeline.errors import PipelineError
from pipeline.files import project_root, sha256_of
from pipeline.params import Section

_WHERE = "params.yaml: split.group"


class GroupTable(Section):
    """A CSV file with the columns image_id and group, pinned by its sha256, since DVC does not watch it."""

    csv: Annotated[str, StringConstraints(min_length=1)]  # a path from the project's root
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None


def read_groups(names: Iterable[str], group: str | GroupTable | None) -> dict[str, str]:
    """`image_id: group` of those pictures that have one.

    `group`: a regular expression with one pair of parentheses that is searched in the path, or a table. Raises PipelineError.
    """
    known = sorted(names)
    if group is None or not known:
        return {}
    return _matched(known, group) if isinstance(group, str) else _listed(known, group)


def _matched(names: list[str], expression: str) -> dict[str, str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise PipelineError(f"{_WHERE}: {expression!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise PipelineError(f"{_WHERE}: {expression!r} has {pattern.groups} pairs of parentheses; put one around what names the group")
    found = {name: match[1] for name in names if (match := pattern.search(name)) and match[1]}
    if not found:
        raise PipelineError(f"{_WHERE}: {expression!r} is found in no path, the first of which is {names[0]!r}; mend it, or say null")
    return found


def _listed(names: list[str], table: GroupTable) -> dict[str, str]:
    path = project_root() / table.csv
    if not path.is_file():
        raise PipelineError(f"{_WHERE}.csv: {table.csv!r} is not there; name a CSV file with the columns image_id and group")
    content = path.read_bytes()
    if (digest := sha256_of(content)) != table.digest:
        raise PipelineError(
            f"{_WHERE}.digest: the sha256 of {table.csv} is {digest}, not {table.digest}; if that is the table, write it there"
        )
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"{table.csv}: is no CSV file in UTF-8: {error}") from None
    if not rows or not {"image_id", "group"} <= set(rows[0]):
        raise PipelineError(f"{table.csv}: has no rows with the columns image_id and group; add them")
    groups: dict[str, str] = {}
    for row in rows:
        if groups.setdefault(row["image_id"], row["group"]) != row["group"]:
            raise PipelineError(
                f"{table.csv}: {row['image_id']!r} is in two groups, {groups[row['image_id']]!r} and {row['group']!r}; keep one"
            )
    found = {name: groups[name] for name in names if groups.get(name)}
    if not found:
        raise PipelineError(f"{table.csv}: names no picture; image_id is the path in the archive, such as {names[0]!r}")
    return found
