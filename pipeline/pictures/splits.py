"""Deal pictures to train, val and test (seeded, stratified, grouped), and write the ImageFolder trees."""

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from os.path import relpath
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import StringConstraints

from pipeline.core.errors import PipelineError
from pipeline.core.files import Slice, atomic_dir, project_root, sha256_of
from pipeline.core.hardware import usable_cpus
from pipeline.core.sections import Section
from pipeline.pictures.images import IMAGEFOLDER_SUFFIXES, decode, read_ahead
from pipeline.pictures.inspection import Groups, Inspection, PictureInfo
from pipeline.pictures.manifest import SPLITS, Picture
from pipeline.sources.layout import ClassFile

_GROUP_KEY = "params.yaml: split.group"
_NAME_BYTES = 255  # of a file's name, on every usual file system
_BATCH = 256  # pictures that are read ahead


class GroupTable(Section):
    """A CSV file with the columns image_id and group. Its sha256 is pinned, since DVC does not watch the file."""

    csv: Annotated[str, StringConstraints(min_length=1)]  # a path from the project's root
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None


def read_groups(names: Iterable[str], group: str | GroupTable | None) -> dict[str, str]:
    """`image_id: group` of the pictures that have a group.

    `group`: a table, or a regular expression that is searched in the path; its one pair of parentheses encloses the group.
    Raises PipelineError.
    """
    ordered = sorted(names)
    if group is None or not ordered:
        return {}
    return _groups_by_expression(ordered, group) if isinstance(group, str) else _groups_by_table(ordered, group)


def deal(
    labels: Mapping[str, str], groups: Mapping[str, str], fractions: Mapping[str, float], seed: int, names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Deal `image_id: label` to `split: fraction` and return `image_id: split`. `groups`: `image_id: group` of each picture.

    A hash of the seed and of a picture's name, by default its image_id, puts the groups of each class in an order, in which the splits
    follow each other, the last of `fractions` first. More pictures therefore move few others, and only to the next split. A group is in
    the place of its first picture. The pictures of a group stay together, in the order of its most frequent class. Each split gets its
    share of a class to within one picture, or to within its largest group, and every split gets pictures of every class. Raises
    PipelineError if a class has fewer groups than there are splits.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels):
        members[groups[image_id]].append(image_id)
    counts = {group: Counter(labels[image_id] for image_id in image_ids) for group, image_ids in members.items()}
    check_group_counts(counts, fractions)
    salt = f"{seed}/{'/'.join(fractions)}"
    places = {
        group: min(sha256_of(f"{salt}/{(names or {}).get(image_id, image_id)}".encode(errors="surrogatepass")) for image_id in image_ids)
        for group, image_ids in members.items()
    }
    ordered = sorted(members, key=lambda group: (places[group], group))
    of_class = defaultdict[str, list[str]](list)
    for group in ordered:
        of_class[counts[group].most_common(1)[0][0]].append(group)
    dealt: dict[str, str] = {}
    for label in sorted(of_class):
        dealt |= _deal_class(of_class[label], counts, label, fractions)
    _fill_empty_splits(ordered, counts, dealt, list(fractions)[::-1])
    return {image_id: dealt[group] for group, image_ids in members.items() for image_id in image_ids}


def place(
    entries: list[ClassFile],
    inspected: Mapping[str, Inspection],
    infos: Mapping[str, PictureInfo],
    splits: Mapping[str, str],
    together: Groups,
) -> list[Picture]:
    """The rows of the manifest. A path keeps its folders; a file that ImageFolder would not read gets the suffix .png.

    Paths that some file system takes for equal are told apart by `~2`, `~3`, ….
    """
    taken = {
        (splits[entry.name], folded(str(folder))) for entry in entries for folder in PurePosixPath(entry.label, entry.inner_path).parents
    }
    pictures = []
    for entry in entries:
        split, info = splits[entry.name], infos[entry.name]
        suffix = "" if is_kept(entry.name, info) else ".png"
        number, path = 1, fitting(f"{entry.label}/{entry.inner_path}", "", suffix)
        while (split, folded(path)) in taken:
            number += 1
            path = fitting(f"{entry.label}/{entry.inner_path}", f"~{number}", suffix)
        taken.add((split, folded(path)))
        sha256, group = inspected[entry.name].sha256, together.of(entry.name)
        picture = Picture(entry.name, path, sha256, entry.label, split, group, info.width, info.height)
        pictures.append(replace(picture, brightness=info.brightness, sharpness=info.sharpness))
    return pictures


def folded(path: str) -> str:
    """A path as file systems see it that ignore case (Windows, macOS) and Unicode forms (macOS)."""
    return unicodedata.normalize("NFC", path).casefold()


def fitting(path: str, mark: str, suffix: str) -> str:
    """A path with a mark after its stem and a further suffix. The stem is cut if the file's name would exceed 255 bytes."""
    wanted = PurePosixPath(path + suffix)
    stem, ending = wanted.stem.encode(), f"{mark}{wanted.suffix}".encode()
    return str(wanted.with_name(stem[: _NAME_BYTES - len(ending)].decode(errors="ignore") + ending.decode()))


def is_kept(name: str, info: PictureInfo) -> bool:
    """Whether every reader of ImageFolder trees reads the file correctly as it is: a known suffix, and 8 bits."""
    return name.lower().endswith(IMAGEFOLDER_SUFFIXES) and info.traits.plain


def write_trees(
    pictures: Sequence[Picture], files: Mapping[str, Slice], infos: Mapping[str, PictureInfo], splits: Path, most: int
) -> list[Picture]:
    """Write `<split>/<class>/…`: a picture's own bytes, or its decoded pixels as PNG. Returns the rows of the manifest with their places.

    `files`: where each picture is in the shards. Of more than `most` pictures, those with their own bytes stay there.
    """

    def write(picture: Picture) -> Picture:
        file, is_own = files[picture.image_id], is_kept(picture.image_id, infos[picture.image_id])
        if is_own and len(pictures) > most:
            shard = PurePath(relpath(file.path, splits / picture.split)).as_posix()
            return replace(picture, shard=shard, offset=file.offset, size=file.size)
        target = partial / picture.split / picture.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_own:
            target.write_bytes(file.read_bytes())
        else:
            decode(file).save(target, "PNG")
        return picture

    with atomic_dir(splits) as partial:
        for split in SPLITS:
            (partial / split).mkdir()
        return [*chain.from_iterable(read_ahead(pictures, write, _BATCH, usable_cpus(), "write"))]


def _groups_by_expression(names: list[str], expression: str) -> dict[str, str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise PipelineError(f"{_GROUP_KEY}: {expression!r} is not a regular expression: {error}") from None
    if pattern.groups != 1:
        raise PipelineError(f"{_GROUP_KEY}: {expression!r} has {pattern.groups} pairs of parentheses; put one around the group's name")
    groups = {name: match[1] for name in names if (match := pattern.search(name)) and match[1]}
    if not groups:
        raise PipelineError(f"{_GROUP_KEY}: {expression!r} matches no path, such as {names[0]!r}; correct it, or set null")
    return groups


def _groups_by_table(names: list[str], table: GroupTable) -> dict[str, str]:
    path = project_root() / table.csv
    if not path.is_file():
        raise PipelineError(f"{_GROUP_KEY}.csv: {table.csv!r} does not exist; name a CSV file with the columns image_id and group")
    content = path.read_bytes()
    if (digest := sha256_of(content)) != table.digest:
        raise PipelineError(
            f"{_GROUP_KEY}.digest: the sha256 of {table.csv} is {digest}, not {table.digest}; if the table is right, set this digest"
        )
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"{table.csv}: is not a CSV file in UTF-8: {error}") from None
    if not rows or not {"image_id", "group"} <= set(rows[0]):
        raise PipelineError(f"{table.csv}: has no rows with the columns image_id and group; add them")
    listed: dict[str, str] = {}
    for row in rows:
        if listed.setdefault(row["image_id"], row["group"]) != row["group"]:
            raise PipelineError(
                f"{table.csv}: {row['image_id']!r} is in two groups, {listed[row['image_id']]!r} and {row['group']!r}; keep one"
            )
    groups = {name: listed[name] for name in names if listed.get(name)}
    if not groups:
        raise PipelineError(f"{table.csv}: contains no picture; image_id is the path in the archive, such as {names[0]!r}")
    return groups


def check_group_counts(counts: Mapping[str, Counter[str]], fractions: Mapping[str, float]) -> None:
    """Raise PipelineError if a class has fewer groups than there are splits. `counts`: the pictures per class of each group."""
    totals, group_counts = Counter[str](), Counter[str]()
    for in_group in counts.values():
        totals.update(in_group)
        group_counts.update(in_group.keys())
    for label, count in sorted(totals.items()):
        group_count = group_counts[label]
        if group_count < len(fractions):
            in_groups = "" if group_count == count else f" in {group_count} group{'s' * (group_count != 1)}"
            raise PipelineError(
                f"class {label!r} has {count} picture{'s' * (count != 1)}{in_groups}, too few for {', '.join(fractions)}; "
                f"add pictures or remove the class{', or change split.group or split.similarity' * bool(in_groups)}"
            )


def _deal_class(groups: list[str], counts: Mapping[str, Counter[str]], label: str, fractions: Mapping[str, float]) -> dict[str, str]:
    """The split of each of a class's groups, which are in their order: that in whose share the middle of the group is.

    A group of more than twice a smaller share is in the largest split: it would be the whole of another.
    """
    total = sum(counts[group][label] for group in groups)
    splits, largest = list(fractions)[::-1], max(fractions, key=fractions.__getitem__)
    ends = np.cumsum([fractions[split] for split in splits]) * total - 1e-9  # 1e-9: 0.15 * 20 is above 3
    most = 2 * sorted(fractions.values())[-2] * total if len(fractions) > 1 else total
    dealt, before = {}, 0.0
    for group in groups:
        size = counts[group][label]
        if size > max(most, 1):
            dealt[group] = largest
            continue
        dealt[group] = splits[min(int(np.searchsorted(ends, before + size / 2, side="right")), len(splits) - 1)]
        before += size
    return dealt


def _fill_empty_splits(ordered: list[str], counts: Mapping[str, Counter[str]], dealt: dict[str, str], splits: list[str]) -> None:
    """Move a group into each split that has no picture of a class, as near as possible in the order, and empty no other split by it."""
    place = {group: number for number, group in enumerate(ordered)}
    having, per_split = defaultdict[str, list[str]](list), Counter[tuple[str, str]]()
    for group in ordered:
        for label in counts[group]:
            having[label].append(group)
            per_split[label, dealt[group]] += 1
    for label in sorted(having):
        for split in splits:
            if per_split[label, split]:
                continue
            spare = [group for group in having[label] if all(per_split[each, dealt[group]] > 1 for each in counts[group])]
            if spare:
                earlier = [place[group] for group in ordered if splits.index(dealt[group]) < splits.index(split)]
                border = max(earlier, default=-1)
                moved = min(spare, key=lambda group: (counts[group].total(), abs(place[group] - border)))
                per_split.subtract((each, dealt[moved]) for each in counts[moved])
                per_split.update((each, split) for each in counts[moved])
                dealt[moved] = split
