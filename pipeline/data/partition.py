"""Dealing pictures out to splits: seeded, stratified, groups whole, the same for any order of the listing."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import PipelineError

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
