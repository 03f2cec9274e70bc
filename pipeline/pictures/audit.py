"""The data audit: findings, the pictures that are left out because of them, and whether enough remain to train on."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from posixpath import splitext
from statistics import median
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import Slice
from pipeline.pictures.images import PICTURE_SUFFIXES, thumbnail_url
from pipeline.pictures.inspection import Groups, Inspection, Pair, PictureInfo, wrong_suffix
from pipeline.pictures.manifest import SPLITS, Picture
from pipeline.sources.layout import ClassFile

_OUTLIER, _LISTED_OUTLIERS = 5, 20  # robust z-score from which a picture is unusual; findings per trait
_LEAST_SAMPLE = 20  # pictures; fewer do not show what is usual
_UNUSUAL = f"kept; check them (at most {_LISTED_OUTLIERS} are listed)"
Array = np.ndarray[Any, np.dtype[Any]]
# Kind of finding: its title, and what happens to its pictures. Readers of audit.json show the kinds in this order.
KINDS = {
    "missing": ("Labels without a picture", "left out"),
    "unlabelled": ("Pictures without a label in the table", "left out"),
    "contradicted": ("Pictures that the table lists in several ways", "left out"),
    "repeated": ("Pictures that the table lists several times", "used once"),
    "misplaced": ("Files outside the class folders", "left out"),
    "spare": ("Files in split folders that are not used", "left out"),
    "broken": ("Broken pictures", "left out"),
    "label_conflict": ("Label conflicts", "left out under each label"),
    "leak": ("Leaks between splits", "left out of the earlier split"),
    "exact_duplicate": ("Duplicate pictures", "kept in one split"),
    "near_label_conflict": ("Near duplicates with different labels", "kept in one split; check their labels"),
    "near_duplicate": ("Near duplicates", "kept in one split"),
    "ungrouped": ("Pictures without a group", "kept, each as its own group"),
    "mirror": ("Folders that mirror the files beside them", "kept; check them"),
    "one_colour": ("Single-colour pictures", "kept; check them"),
    "unusual_brightness": ("Unusually dark or bright pictures", _UNUSUAL),
    "unusual_sharpness": ("Unusually blurred or sharp pictures", _UNUSUAL),
    "unusual_aspect": ("Pictures of an unusual shape", _UNUSUAL),
    "unusual_size": ("Pictures of an unusual size", _UNUSUAL),
    "wrong_suffix": ("Wrong file suffixes", "kept"),
    "converted": ("Pictures converted when decoded", "kept"),
}
_NAMED_PICTURES = 4  # in one sentence; the quarantine repeats it for each of them
_SAME, _SAME_GROUP, _ALIKE = "the same picture as", "in the same group as", "looks like"
_UNDRAWN = {"missing", "unlabelled", "contradicted", "repeated", "misplaced", "spare", "broken"}  # kinds whose files may not decode
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


def of_table(faults: Iterable[tuple[str, str, str]]) -> list[Finding]:
    """What a table of labels got wrong, by (kind, image_id, detail). A repeated picture is used all the same."""
    return [Finding(kind, (name,), detail, () if kind == "repeated" else (name,)) for kind, name, detail in faults]


def unusable(outside: Iterable[str], spare: Mapping[str, Iterable[str]], inspected: Mapping[str, Inspection]) -> Iterator[Finding]:
    """Files outside the class folders, those in split folders that are not used (`spare`), and files that do not decode completely."""
    for name in sorted(outside):
        yield Finding("misplaced", (name,), "not in a class folder", (name,))
    for folder, names in sorted(spare.items()):
        for name in sorted(names):
            yield Finding("spare", (name,), f"in the folder {folder}, which is neither val nor test", (name,))
    for name in sorted(inspected):
        if fault := inspected[name].fault:
            yield Finding("broken", (name,), fault, (name,))


def mirrors(names: Iterable[str]) -> Iterator[Finding]:
    """Folders most of whose pictures have the paths of others, but for the folder: thumbnails or masks, rather than pictures.

    The folder of a thumbnail may have the picture's name: `cat/thumbs/1.jpg/small.jpg` mirrors `cat/1.jpg`. Suffixes may differ.
    """
    ordered = sorted(names)
    stems = {splitext(name)[0] for name in ordered}
    below, mirrored = defaultdict[str, list[str]](list), Counter[str]()
    for name in ordered:
        parts = name.split("/")
        for depth in range(len(parts) - 1):
            folder, rest = "/".join(parts[: depth + 1]), parts[:depth] + parts[depth + 1 :]
            below[folder].append(name)
            mirrored[folder] += any(splitext("/".join(path))[0] in stems for path in (rest, rest[:-1]))
    for folder, inner in below.items():
        if mirrored[folder] > max(1, len(inner) / 2):
            detail = f"folder {folder!r} contains {len(inner)} pictures with the names of others; remove it if a program added it"
            yield Finding("mirror", tuple(inner), detail)


def oddities(infos: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """Pictures of a single colour, with a wrong suffix, or changed by decoding."""
    for name, info in sorted(infos.items()):
        if info.is_one_colour:
            yield Finding("one_colour", (name,), "shows a single colour")
        if wrong_suffix(name, info.traits.format):
            yield Finding("wrong_suffix", (name,), f"is {info.traits.format}, despite its suffix")
        for change in info.traits.changes:
            yield Finding("converted", (name,), change)


def trait_values(infos: Mapping[str, PictureInfo]) -> dict[str, Array]:
    """The brightness, sharpness, aspect (width / height) and size (pixels) of the pictures, each in the order of the infos."""
    return {
        "brightness": np.array([info.brightness for info in infos.values()]),
        "sharpness": np.array([info.sharpness for info in infos.values()]),
        "aspect": np.array([info.width / info.height for info in infos.values()]),
        "size": np.array([info.width * info.height for info in infos.values()], dtype=float),
    }


def robust_scores(values: Array) -> Array:
    """Modified z-scores: 0.6745 (x - median) / MAD, after Iglewicz and Hoaglin, «How to detect and handle outliers» (1993).

    If more than half of the values are equal, their mean absolute deviation replaces the MAD; 0 if all are equal.
    """
    deviations = values - np.median(values)
    scale = np.median(np.abs(deviations)) / 0.6745 or np.abs(deviations).mean() * (np.pi / 2) ** 0.5
    return np.asarray(deviations / scale if scale else np.zeros_like(deviations))


def outliers(infos: Mapping[str, PictureInfo]) -> Iterator[Finding]:
    """The pictures whose brightness, sharpness, aspect or size is farthest from the others', at most 20 for each of the four."""
    names = list(infos)
    for trait, values in trait_values(infos).items():
        if len(names) < _LEAST_SAMPLE:
            return
        scores = robust_scores(values if trait == "brightness" else np.log2(values + (trait == "sharpness")))
        unusual = sorted(np.flatnonzero(np.abs(scores) >= _OUTLIER).tolist(), key=lambda at: (-abs(scores[at]), names[at]))
        for at in unusual[:_LISTED_OUTLIERS]:
            value, usual = (f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in (values[at], np.median(values)))
            yield Finding(f"unusual_{trait}", (names[at],), f"{trait} {value}; the median is {usual} (robust z-score {scores[at]:+.1f})")


def summarise_traits(infos: Mapping[str, PictureInfo]) -> dict[str, dict[str, object]]:
    """The median, the median absolute deviation and the deciles, from the least to the greatest value, of each trait."""
    return {
        trait: {
            "median": round(float(np.median(values)), 4),
            "mad": round(float(np.median(np.abs(values - np.median(values)))), 4),
            "deciles": np.quantile(values, np.linspace(0, 1, 11)).round(4).tolist(),
        }
        for trait, values in trait_values(infos).items()
    }


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
    first: dict[tuple[str, ...], dict[str, str]] = {}  # tie: split: its first picture with the tie
    for name in names:
        if given[name] != SPLITS[0]:  # which is later than no other
            for tie in _ties(name, together, groups, infos):
                first.setdefault(tie, {}).setdefault(given[name], name)
    for name in names if first else []:
        # The earlier split loses the picture, so that test keeps all that its publisher put there.
        later = SPLITS[SPLITS.index(given[name]) + 1 :]
        for tie in _ties(name, together, groups, infos):
            of_tie = first.get(tie, {})
            partners = [of_tie[split] for split in later if split in of_tie]
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
        raise PipelineError(f"data/raw: no picture decodes{_first_of(broken, inspected)}; check the source")
    if len(counts) == 1:
        raise PipelineError(f"data/raw: contains one class, {next(iter(counts))!r}; a classifier needs two, one folder each")
    for label, count in sorted(counts.items()):
        if count < _LEAST_PICTURES:
            number = sum(entry.label == label for entry in excluded)
            because = f" ({number} more decode{'s' * (number == 1)}, but may not stay, because of labels or splits)" if number else ""
            raise PipelineError(
                f"data/raw: class {label!r} has {count} usable picture{'s' * (count != 1)}{because}, fewer than {_LEAST_PICTURES}; "
                f"add pictures or remove the class{_first_of([entry for entry in broken if entry.label == label], inspected)}"
            )


def check_every_class_everywhere(pictures: list[Picture]) -> None:
    """Raise PipelineError if a split lacks a class."""
    present = {(picture.label, picture.split) for picture in pictures}
    for label in sorted({label for label, _ in present}):
        for split in SPLITS:
            if (label, split) not in present:
                raise PipelineError(f"data/raw: class {label!r} has no picture in {split}; add some, or remove the class")


def quarantine_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The rows of quarantine.csv, sorted by image_id: each picture that was left out, and the reason."""
    rows = [{"image_id": name, "reason": finding.detail} for finding in findings for name in finding.left_out]
    return sorted(rows, key=lambda row: row["image_id"])


def summarise_audit(
    pictures: list[Picture], infos: Mapping[str, PictureInfo], findings: Sequence[Finding], thumbnails: Mapping[str, str]
) -> dict[str, object]:
    """The content of audit.json: counts per class and split, traits of the pictures, each kind with its count, and every finding."""
    counts = Counter((picture.label, picture.split) for picture in pictures)
    per_kind = Counter(finding.kind for finding in findings)
    return {
        "pictures": len(pictures),
        "quarantined": sum(len(finding.left_out) for finding in findings),
        "median_width": median(picture.width for picture in pictures),
        "median_height": median(picture.height for picture in pictures),
        "traits": summarise_traits({picture.image_id: infos[picture.image_id] for picture in pictures}),
        "classes": {label: {split: counts[label, split] for split in SPLITS} for label in sorted({label for label, _ in counts})},
        "kinds": {kind: {"title": title, "fate": fate, "count": per_kind[kind]} for kind, (title, fate) in KINDS.items()},
        "findings": [{**asdict(finding), "sentence": finding.sentence} for finding in findings],
        "thumbnails": dict(thumbnails),
    }


def draw_thumbnails(files: Mapping[str, Path | Slice], findings: Sequence[Finding]) -> dict[str, str]:
    """`image_id: data URL` of a small JPEG, for the pictures in the first findings of each kind, except files that do not decode."""
    names = set[str]()
    for kind in KINDS.keys() - _UNDRAWN:
        for finding in [finding for finding in findings if finding.kind == kind][:_DRAWN_FINDINGS]:
            names.update(finding.image_ids[:_DRAWN_PICTURES])
    return {name: thumbnail_url(files[name]) for name in sorted(names)}


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
