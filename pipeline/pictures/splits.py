"""Deal pictures to train, val and test (seeded, stratified, grouped), and write the ImageFolder trees."""

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

_GROUP_KEY = "params.yaml: split.group"
_NAME_BYTES = 255  # of a file's name, on every usual file system
_Needs = dict[str, Counter[str]]  # split: class: how many pictures it still needs


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


def deal(labels: Mapping[str, str], groups: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal `image_id: label` to `split: fraction` and return `image_id: split`. `groups`: `image_id: group` of each picture.

    The fractions sum to 1. The pictures of a group stay together. If each group contains one class, every split gets
    pictures of every class, and exceeds its share of a class by less than the largest group of that class (by less than
    one picture without groups). Raises PipelineError if a class has fewer groups than there are splits.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels):
        members[groups[image_id]].append(image_id)
    counts = {group: Counter(labels[image_id] for image_id in image_ids) for group, image_ids in members.items()}
    needs = _needs(counts, fractions)
    dealt: dict[str, str] = {}
    # Large groups first: afterwards, single pictures even out what the groups left uneven.
    for group, split in _deal_groups([group for group in members if len(members[group]) > 1], counts, needs, seed).items():
        dealt.update(dict.fromkeys(members[group], split))
    singles: dict[str, list[str]] = defaultdict(list)
    for image_ids in members.values():
        if len(image_ids) == 1:
            singles[labels[image_ids[0]]].extend(image_ids)
    present = {(labels[image_id], split) for image_id, split in dealt.items()}
    return dealt | _deal_singles(singles, sorted(set(labels.values())), needs, present, seed)


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
        pictures.append(Picture(entry.name, path, sha256, entry.label, split, group, info.width, info.height))
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


def write_trees(archive: zipfile.ZipFile, pictures: list[Picture], infos: Mapping[str, PictureInfo], splits: Path) -> None:
    """Write `<split>/<class>/…`: a picture's own bytes, or its decoded pixels as PNG."""
    with atomic_dir(splits) as partial:
        for picture in tqdm(pictures, "write", disable=None):
            target = partial / picture.split / picture.path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.read(picture.image_id)
            if is_kept(picture.image_id, infos[picture.image_id]):
                target.write_bytes(content)
            else:
                decode(content).save(target, "PNG")


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


def _needs(counts: Mapping[str, Counter[str]], fractions: Mapping[str, float]) -> _Needs:
    """Each split's share of every class, in whole pictures."""
    needs: _Needs = {split: Counter() for split in fractions}
    for label in sorted({label for count in counts.values() for label in count}):
        per_group = [count[label] for count in counts.values() if count[label]]
        for split, share in zip(fractions, _shares(label, sum(per_group), len(per_group), fractions), strict=True):
            needs[split][label] = share
    return needs


def _shares(label: str, count: int, group_count: int, fractions: Mapping[str, float]) -> list[int]:
    """Whole numbers that sum to `count`, nearest to the fractions (largest remainder method), none of them 0."""
    if group_count < len(fractions):
        in_groups = "" if group_count == count else f" in {group_count} group{'s' * (group_count != 1)}"
        raise PipelineError(
            f"class {label!r} has {count} picture{'s' * (count != 1)}{in_groups}, too few for {', '.join(fractions)}; "
            f"add pictures or remove the class{', or change split.group or split.similarity' * bool(in_groups)}"
        )
    exact = np.array([fraction * count for fraction in fractions.values()])
    shares = np.floor(exact).astype(int)
    # Rounding down leaves fewer pictures over than there are splits: one each for the largest remainders, ties to the first split.
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    while shares.min() == 0:
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    return [int(share) for share in shares]


def _deal_groups(large: list[str], counts: Mapping[str, Counter[str]], needs: _Needs, seed: int) -> dict[str, str]:
    """The split of each group of several pictures. Subtracts their pictures from `needs`."""
    shuffled = np.random.default_rng([seed, len(counts)]).permutation(np.array(large, dtype=object)).tolist()
    waiting: Counter[str] = Counter(label for count in counts.values() for label in count)  # groups left that contain the class
    empty = {label: set(needs) for label in waiting}  # splits without the class
    dealt: dict[str, str] = {}
    # The largest first, as long as every split has room. A group goes where it fits best, unless a class has only as many
    # groups left as splits that lack it: then those splits take them all.
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
    """How badly a group fits a split: first its pictures beyond the need, then how little the split needs."""
    return sum(max(0, number - need[label]) for label, number in count.items()), -sum(need[label] for label in count)


def _deal_singles(
    singles: Mapping[str, Sequence[str]], labels: Sequence[str], needs: _Needs, present: set[tuple[str, str]], seed: int
) -> dict[str, str]:
    """Fill the needs that are left, class by class, with pictures that are in no group of several."""
    dealt: dict[str, str] = {}
    for number, label in enumerate(labels):
        # A generator per class: more pictures in one class leave the order of the others as it was.
        generator = np.random.default_rng([seed, number])
        shuffled = generator.permutation(np.array(singles.get(label, []), dtype=object))
        shares = _without_debts([need[label] for need in needs.values()], [(label, split) not in present for split in needs])
        dealt.update(zip(shuffled.tolist(), np.repeat(list(needs), shares).tolist(), strict=True))
    return dealt


def _without_debts(shares: list[int], is_empty: list[bool]) -> list[int]:
    """The same sum without negative numbers: the splits that need most give up what a large group exceeded.

    An empty split keeps one picture, as long as another split has any.
    """
    while min(shares) < 0:
        giver = max(range(len(shares)), key=lambda split: (shares[split] - is_empty[split], shares[split]))
        shares[giver] -= 1
        shares[shares.index(min(shares))] += 1
    return shares
