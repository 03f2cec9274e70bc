"""What is wrong or odd with a set of pictures, and what is left out because of it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.duplicates import Groups, Pair
from pipeline.data.inspection import Inspected, Look, wrong_suffix

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


def broken(inspected: Mapping[str, Inspected]) -> Iterator[Finding]:
    """Files that are no picture to the last byte."""
    for name in sorted(inspected):
        if fault := inspected[name].fault:
            yield Finding("broken", (name,), fault, (name,))


def oddities(looks: Mapping[str, Look]) -> Iterator[Finding]:
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


def leaks(given: Mapping[str, str], together: Groups, groups: Mapping[str, str], looks: Mapping[str, Look]) -> Iterator[Finding]:
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


def _relation(name: str, other: str, groups: Mapping[str, str], looks: Mapping[str, Look]) -> str:
    if looks[name].pixels_sha256 == looks[other].pixels_sha256:
        return _RELATIONS[0]
    return _RELATIONS[1] if name in groups and groups[name] == groups.get(other) else _RELATIONS[2]
