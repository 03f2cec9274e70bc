"""Deal pictures out to train, val and test (seeded, stratified, grouped), and write the ImageFolder trees."""

import csv
import io
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import StringConstraints
from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, project_root, sha256_of
from pipeline.core.params import Section
from pipeline.pictures.images import IMAGEFOLDER_SUFFIXES, decode
from pipeline.pictures.inspection import Groups, Inspection, PictureInfo
from pipeline.pictures.manifest import Picture
from pipeline.sources.layout import ClassFile

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


_Needs = dict[str, Counter[str]]  # split: class: how many pictures are still to come


def deal(labels: Mapping[str, str], groups: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal `image_id: label` out to `split: fraction`: `image_id: split`. `groups`: `image_id: group` of each of them.

    The fractions sum to 1. Pictures of a group stay together. Large groups go first, each to where the most is missing.
    Where groups hold one class each, every split has pictures of every class, and exceeds its share of a class by less than
    the largest group of that class (by less than one picture, where nothing is grouped).
    Raises PipelineError where a class has fewer groups than there are splits.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels):
        members[groups[image_id]].append(image_id)
    counts = {group: Counter(labels[image_id] for image_id in image_ids) for group, image_ids in members.items()}
    needs = _needs(counts, fractions)
    dealt: dict[str, str] = {}
    for group, split in _deal_large([group for group in members if len(members[group]) > 1], counts, needs, seed).items():
        dealt.update(dict.fromkeys(members[group], split))
    singles: dict[str, list[str]] = defaultdict(list)
    for image_ids in members.values():
        if len(image_ids) == 1:
            singles[labels[image_ids[0]]].extend(image_ids)
    present = {(labels[image_id], split) for image_id, split in dealt.items()}
    return dealt | _deal_singles(singles, sorted(set(labels.values())), needs, present, seed)


def _needs(counts: Mapping[str, Counter[str]], fractions: Mapping[str, float]) -> _Needs:
    """Each split's share of every class in whole pictures."""
    needs: _Needs = {split: Counter() for split in fractions}
    for label in sorted({label for count in counts.values() for label in count}):
        in_groups = [count[label] for count in counts.values() if count[label]]
        for split, share in zip(fractions, _shares(label, sum(in_groups), len(in_groups), fractions), strict=True):
            needs[split][label] = share
    return needs


def _shares(label: str, count: int, group_count: int, fractions: Mapping[str, float]) -> list[int]:
    """Whole numbers that sum to `count`, nearest to the fractions (largest remainder), none of them 0."""
    if group_count < len(fractions):
        in_groups = "" if group_count == count else f" in {group_count} group{'s' * (group_count != 1)}"
        raise PipelineError(
            f"class {label!r} has {count} picture{'s' * (count != 1)}{in_groups}, too few for {', '.join(fractions)}; "
            f"add pictures or take it out{', or look at split.group and split.similarity' * bool(in_groups)}"
        )
    exact = np.array([fraction * count for fraction in fractions.values()])
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    while shares.min() == 0:
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    return [int(share) for share in shares]


def _deal_large(large: list[str], counts: Mapping[str, Counter[str]], needs: _Needs, seed: int) -> dict[str, str]:
    """The split of each group of several pictures, the largest first; takes what they bring off `needs`."""
    shuffled = np.random.default_rng([seed, len(counts)]).permutation(np.array(large, dtype=object)).tolist()
    waiting: Counter[str] = Counter(label for count in counts.values() for label in count)  # groups with that class
    empty = {label: set(needs) for label in waiting}  # splits without that class
    dealt: dict[str, str] = {}
    for group in sorted(shuffled, key=lambda group: -counts[group].total()):
        count = counts[group]
        pressing = [split for split in needs if any(split in empty[label] and waiting[label] <= len(empty[label]) for label in count)]
        split = min(pressing or needs, key=lambda split: _misfit(count, needs[split]))
        needs[split].subtract(count)
        waiting.subtract(list(count))
        for label in count:
            empty[label].discard(split)
        dealt[group] = split
    return dealt


def _misfit(count: Counter[str], need: Counter[str]) -> tuple[int, int]:
    """How badly a group fits a split: the pictures too many there, then how little is missing there."""
    return sum(max(0, number - need[label]) for label, number in count.items()), -sum(need[label] for label in count)


def _deal_singles(
    singles: Mapping[str, Sequence[str]], labels: Sequence[str], needs: _Needs, present: set[tuple[str, str]], seed: int
) -> dict[str, str]:
    dealt: dict[str, str] = {}
    for number, label in enumerate(labels):
        generator = np.random.default_rng([seed, number])
        shuffled = generator.permutation(np.array(singles.get(label, []), dtype=object))
        shares = _without_debts([need[label] for need in needs.values()], [(label, split) not in present for split in needs])
        dealt.update(zip(shuffled.tolist(), np.repeat(list(needs), shares).tolist(), strict=True))
    return dealt


def _without_debts(shares: list[int], is_empty: list[bool]) -> list[int]:
    """The same sum with no negative number: what a large group brought too much is missing where the most is to come.

    A split that is still empty keeps one, as long as others have any.
    """
    while min(shares) < 0:
        giver = max(range(len(shares)), key=lambda split: (shares[split] - is_empty[split], shares[split]))
        shares[giver] -= 1
        shares[shares.index(min(shares))] += 1
    return shares


_MOST_BYTES = 255  # of a file's name


def place(
    entries: list[ClassFile],
    inspected: Mapping[str, Inspection],
    looks: Mapping[str, PictureInfo],
    splits: Mapping[str, str],
    together: Groups,
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


def is_kept(name: str, look: PictureInfo) -> bool:
    """Whether any reader of ImageFolder trees understands the picture's file as it is."""
    return name.lower().endswith(IMAGEFOLDER_SUFFIXES) and look.traits.plain


def write_trees(archive: zipfile.ZipFile, pictures: list[Picture], looks: Mapping[str, PictureInfo], splits: Path) -> None:
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
