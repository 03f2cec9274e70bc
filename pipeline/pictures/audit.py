"""The data audit: findings, the pictures that are left out because of them, and whether enough remain to train on."""

import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from pipeline.core.errors import PipelineError
from pipeline.pictures.images import PICTURE_SUFFIXES, thumbnail_url
from pipeline.pictures.inspection import Groups, Inspection, Pair, PictureInfo, wrong_suffix
from pipeline.pictures.manifest import SPLITS, Picture
from pipeline.sources.layout import ClassFile

# Kind of finding: its title, and what happens to its pictures. Readers of audit.json show the kinds in this order.
KINDS = {
    "misplaced": ("Files outside the class folders", "left out"),
    "broken": ("Broken pictures", "left out"),
    "label_conflict": ("Label conflicts", "left out under each label"),
    "leak": ("Leaks between splits", "left out of the earlier split"),
    "exact_duplicate": ("Duplicate pictures", "kept in one split"),
    "near_label_conflict": ("Near duplicates with different labels", "kept in one split; check their labels"),
    "near_duplicate": ("Near duplicates", "kept in one split"),
    "ungrouped": ("Pictures without a group", "kept, each as its own group"),
    "one_colour": ("Single-colour pictures", "kept; check them"),
    "wrong_suffix": ("Wrong file suffixes", "kept"),
    "converted": ("Pictures converted when decoded", "kept"),
}
_NAMED_PICTURES = 4  # in one sentence; the quarantine repeats it for each of them
_SAME, _SAME_GROUP, _ALIKE = "the same picture as", "in the same group as", "looks like"
_DRAWN_FINDINGS = 8  # of each kind; the report shows as many
_DRAWN_PICTURES = 4  # of each finding
_LEAST_PICTURES = 3  # per class: one for each split


@dataclass(frozen=True)
class Finding:
    """A fact about one picture or several. `left_out`: those of them that no split contains."""

    kind: str
    image_ids: tuple[str, ...]
    detail: str
    left_out: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The detail, after the names of the pictures that it does not mention itself."""
        if repr(self.image_ids[0]) in self.detail:
            return self.detail
        return f"{_listed([name for name in self.image_ids if repr(name) not in self.detail])}: {self.detail}"


def unusable(outside: Iterable[str], inspected: Mapping[str, Inspection]) -> Iterator[Finding]:
    """Files outside the class folders, and files that do not decode to their last byte."""
    for name in sorted(outside):
        yield Finding("misplaced", (name,), "not in a class folder", (name,))
    for name in sorted(inspected):
        if fault := inspected[name].fault:
            yield Finding("broken", (name,), fault, (name,))


def oddities(infos: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """Pictures of a single colour, with a wrong suffix, or changed by decoding."""
    for name, info in sorted(infos.items()):
        if info.is_one_colour:
            yield Finding("one_colour", (name,), "shows a single colour")
        if wrong_suffix(name, info.traits.format):
            yield Finding("wrong_suffix", (name,), f"is {info.traits.format}, despite its suffix")
        for change in info.traits.changes:
            yield Finding("converted", (name,), change)


def label_conflicts(exact: Iterable[Sequence[str]], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Equal pictures with different labels. All are left out, since no label is known to be right."""
    for names in exact:
        if len(classes := sorted({labels[name] for name in names})) > 1:
            detail = f"one picture with the labels {', '.join(classes)}: {_listed(names)}"
            yield Finding("label_conflict", tuple(names), detail, tuple(names))


def duplicates(exact: Iterable[Sequence[str]], near: Iterable[Pair], labels: Mapping[str, str], unused: set[str]) -> Iterator[Finding]:
    """Equal pictures of one label, and pictures that look alike, except `unused` ones."""
    for names in exact:
        used = tuple(name for name in names if name not in unused)
        if len(used) > 1:
            yield Finding("exact_duplicate", used, f"the same picture {len(used)} times")
    for pair in near:
        if unused.intersection(pair):
            continue
        first, second = (labels[name] for name in pair)
        if first == second:
            yield Finding("near_duplicate", pair, "look alike")
        else:
            yield Finding("near_label_conflict", pair, f"look alike, but have the labels {first} and {second}")


def ungrouped(names: Iterable[str], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Pictures without a group, if others have one: their names may be misspelt."""
    for name in sorted(names):
        if groups and name not in groups:
            yield Finding("ungrouped", (name,), "has no group according to split.group")


def leaks(given: Mapping[str, str], together: Groups, groups: Mapping[str, str], infos: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """Pictures that share a group in `together` with a picture of a later split (train < val < test).

    `given`: `image_id: split`, where pictures that are still to be dealt count as train. `groups`: the user's groups.
    """
    names = sorted(given)
    ties = {name: _ties(name, together, groups, infos) for name in names}
    first: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)  # tie: split: its first picture with the tie
    for name in names:
        for tie in ties[name]:
            first[tie].setdefault(given[name], name)
    for name in names:
        # The earlier split loses the picture, so that test keeps all that its publisher put there.
        later = SPLITS[SPLITS.index(given[name]) + 1 :]
        for tie in ties[name]:
            partners = [first[tie][split] for split in later if split in first[tie]]
            if partners:
                partner = min(partners)
                yield Finding("leak", (name, partner), f"{tie[0]} {partner!r} in {given[partner]}", (name,))
                break


def check_classes(entries: list[ClassFile], inspected: Mapping[str, Inspection], left_out: set[str]) -> None:
    """Raise PipelineError if fewer than two classes remain, or fewer than three pictures in one of them.

    A folder counts as a class if at least one file in it decodes or has the suffix of a picture.
    """
    good = [entry for entry in entries if entry.name not in left_out]
    broken = [entry for entry in entries if inspected[entry.name].fault and entry.name.lower().endswith(PICTURE_SUFFIXES)]
    excluded = [entry for entry in entries if not inspected[entry.name].fault and entry.name in left_out]
    counts = Counter({entry.label: 0 for entry in (*good, *broken, *excluded)})
    counts.update(entry.label for entry in good)
    if not good and not excluded:
        raise PipelineError(f"data/raw.zip: no picture decodes{_first_of(broken, inspected)}; check the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw.zip: contains one class, {next(iter(counts))!r}; a classifier needs two, one folder each")
    for label, count in sorted(counts.items()):
        if count < _LEAST_PICTURES:
            number = sum(entry.label == label for entry in excluded)
            because = f" ({number} more decode{'s' * (number == 1)}, but may not stay, because of labels or splits)" if number else ""
            raise PipelineError(
                f"data/raw.zip: class {label!r} has {count} usable picture{'s' * (count != 1)}{because}, fewer than {_LEAST_PICTURES}; "
                f"add pictures or remove the class{_first_of([entry for entry in broken if entry.label == label], inspected)}"
            )


def check_every_class_everywhere(pictures: list[Picture]) -> None:
    """Raise PipelineError if a split lacks a class."""
    present = {(picture.label, picture.split) for picture in pictures}
    for label in sorted({label for label, _ in present}):
        for split in SPLITS:
            if (label, split) not in present:
                raise PipelineError(f"data/raw.zip: class {label!r} has no picture in {split}; add some, or remove the class")


def quarantine_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The rows of quarantine.csv, sorted by image_id: each picture that was left out, and the reason."""
    rows = [{"image_id": name, "reason": finding.detail} for finding in findings for name in finding.left_out]
    return sorted(rows, key=lambda row: row["image_id"])


def summarise_audit(pictures: list[Picture], findings: Sequence[Finding], thumbnails: Mapping[str, str]) -> dict[str, object]:
    """The content of audit.json: counts per class and split, median sizes, each kind with its count, and every finding."""
    counts = Counter((picture.label, picture.split) for picture in pictures)
    per_kind = Counter(finding.kind for finding in findings)
    return {
        "pictures": len(pictures),
        "quarantined": sum(len(finding.left_out) for finding in findings),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "classes": {label: {split: counts[label, split] for split in SPLITS} for label in sorted({label for label, _ in counts})},
        "kinds": {kind: {"title": title, "fate": fate, "count": per_kind[kind]} for kind, (title, fate) in KINDS.items()},
        "findings": [{**asdict(finding), "sentence": finding.sentence} for finding in findings],
        "thumbnails": dict(thumbnails),
    }


def draw_thumbnails(archive: zipfile.ZipFile, findings: Sequence[Finding]) -> dict[str, str]:
    """`image_id: data URL` of a small JPEG, for the pictures in the first findings of each kind, except files that do not decode."""
    names = set[str]()
    for kind in KINDS.keys() - {"misplaced", "broken"}:
        for finding in [finding for finding in findings if finding.kind == kind][:_DRAWN_FINDINGS]:
            names.update(finding.image_ids[:_DRAWN_PICTURES])
    return {name: thumbnail_url(archive.read(name)) for name in sorted(names)}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_PICTURES
    return ", ".join(map(repr, names[:_NAMED_PICTURES])) + f" and {more} more" * (more > 0)


def _ties(name: str, together: Groups, groups: Mapping[str, str], infos: Mapping[str, PictureInfo]) -> list[tuple[str, ...]]:
    """What the picture shares with others of its group in `together`, the strongest first. A tie begins with its name."""
    group = together.of(name)
    ties = [(_SAME, group, infos[name].pixels_sha256), (_SAME_GROUP, group, groups.get(name, "")), (_ALIKE, group)]
    return ties if name in groups else [ties[0], ties[2]]


def _first_of(broken: list[ClassFile], inspected: Mapping[str, Inspection]) -> str:
    if not broken:
        return ""
    verb = "does" if len(broken) == 1 else "do"
    return f" ({len(broken)} {verb} not decode, first {broken[0].name!r}: {inspected[broken[0].name].fault})"
