"""What is wrong with the data: findings, what is left out because of them, and whether enough is left to train on."""

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

# kind: what it is called, and what becomes of its pictures
KINDS = {
    "misplaced": ("Not in the folder of a class", "left out"),
    "broken": ("Does not decode", "left out"),
    "label_conflict": ("One picture under several labels", "left out under each"),
    "leak": ("Leaking into a split that was given", "left out of the other"),
    "exact_duplicate": ("One picture several times", "kept in one split"),
    "near_label_conflict": ("Alike, under different labels", "kept in one split; look at them"),
    "near_duplicate": ("Alike", "kept in one split"),
    "ungrouped": ("Without a group, where split.group is set", "kept, each by itself"),
    "one_colour": ("One colour and nothing else", "kept; look at it"),
    "wrong_suffix": ("Named like another format", "kept"),
    "converted": ("Changed in decoding", "kept"),
}


_NAMED = 4  # pictures in a sentence, and in a reason, which the quarantine repeats for each of them
_RANKS = ("train", "val", "test")  # a leak is left out of the former


@dataclass(frozen=True)
class Finding:
    """Something about one picture or several; `left_out` are those of them that no split gets."""

    kind: str
    image_ids: tuple[str, ...]
    detail: str
    left_out: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The finding for people: the pictures, where the detail does not begin to name them, and the detail."""
        if repr(self.image_ids[0]) in self.detail:
            return self.detail
        return f"{_listed([name for name in self.image_ids if repr(name) not in self.detail])}: {self.detail}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)


def misplaced(names: Iterable[str]) -> Iterator[Finding]:
    """Files that lie in no class."""
    for name in sorted(names):
        yield Finding("misplaced", (name,), "not in the folder of a class", (name,))


def broken(inspected: Mapping[str, Inspection]) -> Iterator[Finding]:
    """Files that are no picture to the last byte."""
    for name in sorted(inspected):
        if fault := inspected[name].fault:
            yield Finding("broken", (name,), fault, (name,))


def oddities(looks: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """Pictures that decode, but not as their name or the common case has it, or that show nothing."""
    for name, look in sorted(looks.items()):
        if look.is_one_colour:
            yield Finding("one_colour", (name,), "shows one colour and nothing else")
        if wrong_suffix(name, look.traits.format):
            yield Finding("wrong_suffix", (name,), f"is {look.traits.format}, whatever its name says")
        for change in look.traits.changes:
            yield Finding("converted", (name,), change)


def label_conflicts(exact: Iterable[Sequence[str]], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Equal pictures whose labels differ: nobody can tell which is right."""
    for names in exact:
        if len(classes := sorted({labels[name] for name in names})) > 1:
            detail = f"one picture under the labels {', '.join(classes)}: {_listed(names)}"
            yield Finding("label_conflict", tuple(names), detail, tuple(names))


def duplicates(exact: Iterable[Sequence[str]], near: Iterable[Pair], labels: Mapping[str, str], unused: set[str]) -> Iterator[Finding]:
    """Equal pictures of one label, and pictures that look alike, of those that are used."""
    for names in exact:
        used = tuple(name for name in names if name not in unused)
        if len(used) > 1:
            yield Finding("exact_duplicate", used, f"one picture {len(used)} times")
    for pair in near:
        if unused.intersection(pair):
            continue
        first, second = (labels[name] for name in pair)
        if first == second:
            yield Finding("near_duplicate", pair, "the two look alike")
        else:
            yield Finding("near_label_conflict", pair, f"the two look alike, but are {first} and {second}")


def ungrouped(names: Iterable[str], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Pictures to which what names the groups of others gives none: perhaps a misspelt name."""
    for name in sorted(names):
        if groups and name not in groups:
            yield Finding("ungrouped", (name,), "has no group by split.group")


def leaks(given: Mapping[str, str], together: Groups, groups: Mapping[str, str], looks: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """Pictures of a split for which another one, that was given, holds the same, a like one, or one of the same group.

    `given`: `image_id: split`, train for what is still to be dealt out. `groups`: those that the user names.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(given):
        members[together.of(name)].append(name)
    for name, split in sorted(given.items()):
        partners = [other for other in members[together.of(name)] if _RANKS.index(given[other]) > _RANKS.index(split)]
        if partners:
            words = {other: _relation(name, other, groups, looks) for other in partners}
            partner = min(partners, key=lambda other: (_RELATIONS.index(words[other]), other))
            yield Finding("leak", (name, partner), f"{words[partner]} {partner!r} in {given[partner]}", (name,))


_RELATIONS = ("the same picture as", "of the same group as", "looks like")


def _relation(name: str, other: str, groups: Mapping[str, str], looks: Mapping[str, PictureInfo]) -> str:
    if looks[name].pixels_sha256 == looks[other].pixels_sha256:
        return _RELATIONS[0]
    return _RELATIONS[1] if name in groups and groups[name] == groups.get(other) else _RELATIONS[2]


SHOWN_FINDINGS = 8  # of each kind
_SHOWN_PICTURES = 4  # of each finding


def check_classes(entries: list[ClassFile], inspected: Mapping[str, Inspection], left_out: set[str]) -> None:
    """Raise PipelineError where there is too little to learn from. A folder without one picture's name is no class."""
    good = [entry for entry in entries if entry.name not in left_out]
    broken = [entry for entry in entries if inspected[entry.name].fault and entry.name.lower().endswith(PICTURE_SUFFIXES)]
    others = [entry for entry in entries if not inspected[entry.name].fault and entry.name in left_out]
    counts = Counter({entry.label: 0 for entry in (*good, *broken, *others)})
    counts.update(entry.label for entry in good)
    if not good and not others:
        raise PipelineError(f"data/raw.zip: not one picture decodes{_first_of(broken, inspected)}; look at the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw.zip: holds one class, {next(iter(counts))!r}; a classifier needs two: one folder each")
    for label, count in sorted(counts.items()):
        if count < 3:
            apart = f" and may stay ({sum(entry.label == label for entry in others)} may not, by their labels or splits)"
            raise PipelineError(
                f"data/raw.zip: class {label!r} has {count} picture{'s' * (count != 1)} that decode{'s' * (count == 1)}"
                f"{apart * any(entry.label == label for entry in others)}, fewer than 3; add pictures or take the class out"
                f"{_first_of([e for e in broken if e.label == label], inspected)}"
            )


def _first_of(broken: list[ClassFile], inspected: Mapping[str, Inspection]) -> str:
    if not broken:
        return ""
    word = "does" if len(broken) == 1 else "do"
    return f" ({len(broken)} {word} not decode, first {broken[0].name!r}: {inspected[broken[0].name].fault})"


def check_every_class_everywhere(pictures: list[Picture]) -> None:
    """Raise PipelineError where a class is absent from a split."""
    present = {(picture.label, picture.split) for picture in pictures}
    for label in sorted({label for label, _ in present}):
        for split in SPLITS:
            if (label, split) not in present:
                raise PipelineError(f"data/raw.zip: class {label!r} has no picture in {split}; add some, or take the class out")


def quarantine_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """What was left out and why, by image_id."""
    rows = [{"image_id": name, "reason": finding.detail} for finding in findings for name in finding.left_out]
    return sorted(rows, key=lambda row: row["image_id"])


def summarise_audit(pictures: list[Picture], findings: Sequence[Finding], thumbnails: Mapping[str, str]) -> dict[str, object]:
    """What `data/audit.json` holds: counts a class and split, sizes, how often each kind was found, and every finding."""
    counts = Counter((picture.label, picture.split) for picture in pictures)
    found = Counter(finding.kind for finding in findings)
    return {
        "pictures": len(pictures),
        "quarantined": sum(len(finding.left_out) for finding in findings),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "classes": {label: {split: counts[label, split] for split in SPLITS} for label in sorted({label for label, _ in counts})},
        "found": {kind: found[kind] for kind in KINDS},
        "findings": [{**asdict(finding), "sentence": finding.sentence} for finding in findings],
        "thumbnails": dict(thumbnails),
    }


def draw_thumbnails(archive: zipfile.ZipFile, findings: Sequence[Finding]) -> dict[str, str]:
    """`image_id: data URL` of small JPEGs, of the pictures in the first findings of each kind that can be drawn."""
    return {name: thumbnail_url(archive.read(name)) for name in sorted(set(_shown(findings)))}


def _shown(findings: Sequence[Finding]) -> Iterator[str]:
    for kind in KINDS.keys() - {"misplaced", "broken"}:
        for finding in [finding for finding in findings if finding.kind == kind][:SHOWN_FINDINGS]:
            yield from finding.image_ids[:_SHOWN_PICTURES]
