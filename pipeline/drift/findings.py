"""Compare new pictures with the reference: the findings, effect first, and one verdict."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.drift import permuting
from pipeline.drift.reference import MOST, Reference, Sample
from pipeline.drift.unlabelled import class_shares, estimate_accuracy, estimate_shares
from pipeline.evaluation.comparison import holm
from pipeline.evaluation.intervals import Array, proportion_interval
from pipeline.networks.onnx_file import spread

Verdict = Literal["ok", "drift", "too few"]
PERMUTATIONS = 1999
LEAST_LEVEL = 1e-4  # of a look: a lower one needs too many permutations
SHIFT, POWER = 0.5, 0.8  # the effect that must be seen, in standard deviations of a trait, and how often
_FAR = 0.95  # of all pictures: beyond that quantile of the distance from their centre, a picture is far
_FEWEST = 10  # groups of either sample, below which nothing is tested
LEAST_DEVIATION = 1e-9  # below it, all values are equal, up to rounding
_SHOWN = 0.05  # of a p-value of one finding, which explains the verdict and does not make it


class Trait(NamedTuple):
    """A trait of a picture. `lower`, `higher`: the words for it; `scaled`: the scale on which it is compared; `shown`: back to its unit."""

    title: str
    lower: str
    higher: str
    scaled: Callable[[Any], Any] = np.log
    shown: Callable[[float], float] = math.exp


TRAITS = {
    "brightness": Trait("Brightness", "darker", "brighter", float, float),
    "sharpness": Trait("Sharpness", "blurrier", "sharper", np.log1p, math.expm1),
    "aspect": Trait("Width by height", "narrower", "wider"),
    "size": Trait("Pixels", "smaller", "larger"),
}


@dataclass(frozen=True)
class Findings:
    """What was found. All figures are numbers, None, or mappings of them, so that they become JSON.

    `p`: of all statistics together, None if nothing was tested; `level`: below which it is drift; `needed`: the number of new groups
    with which a shift by half a standard deviation is found in four of five cases, None if no number would do; `domain`: the AUC
    of the domain classifier; `within`: the same, given the predicted class; `traits`: a row per trait; `shares`: a row per class, of
    predictions; `true_shares`: a row per class, estimated, or empty, and `untold` says why; `labels`: distance and p of the class
    shares; `unfamiliar`: None if the model does not say; `accuracy`: estimated.
    """

    verdict: Verdict
    sentence: str
    p: float | None
    level: float
    pictures: Mapping[str, int]
    needed: int | None
    domain: Mapping[str, float] | None
    within: Mapping[str, float] | None
    labels: Mapping[str, float] | None
    traits: Sequence[Mapping[str, Any]]
    shares: Sequence[Mapping[str, Any]]
    true_shares: Sequence[Mapping[str, Any]]
    untold: str
    unfamiliar: Mapping[str, Any] | None
    accuracy: Mapping[str, Any]


def traits_of(sample: Sample) -> dict[str, Array]:
    """The values of TRAITS on their scales: each float (N,)."""
    brightness, sharpness, width, height = (
        values.astype(float) for values in (sample.brightness, sample.sharpness, sample.width, sample.height)
    )
    values = {"brightness": brightness, "sharpness": sharpness, "aspect": width / height, "size": width * height}
    return {name: values[name] if trait.scaled is float else trait.scaled(values[name]) for name, trait in TRAITS.items()}


def compare(
    reference: Reference, sample: Sample, level: float, stated: float | None = None, confidence: float = 0.95, count: int | None = None
) -> Findings:
    """Compare the new pictures with the reference. `stated`: the rate of false alarms of `unfamiliarity`.

    `count`: permutations; by default 1,999, or as many as a low level needs: the lowest p-value of `count` is 1 / (count + 1).

    The same pictures give the same findings. At most 5,000 pictures of a sample are tested, evenly drawn, and of its groups as many as
    `_even_groups` leaves; shares and accuracy are of all.
    """
    count = max(PERMUTATIONS, math.ceil(2 / level) - 1) if count is None else count
    old, new = _even_groups(*(each.take(spread(len(each), MOST)) for each in (reference.sample, sample)))
    drawn = [len(np.unique(each.groups)) for each in (old, new)]
    pictures = {"reference": len(old), "reference_groups": drawn[0], "new": len(sample), "new_groups": drawn[1], "tested": len(new)}
    tests = _test(old, new, confidence, count) if min(drawn) >= _FEWEST else None
    p = tests.p if tests else None
    needed = groups_needed(drawn[0], level, 3 + len(TRAITS) + (old.unfamiliarity is not None))
    verdict: Verdict = "too few" if needed is None or drawn[1] < needed else "ok"
    if p is not None and p <= level:
        verdict = "drift"
    traits = _compare_traits(old, new, tests)
    true_shares, untold = estimate_shares(reference, sample, confidence)
    unfamiliar = _unfamiliar(reference.sample, sample, stated, tests, confidence)
    accuracy = estimate_accuracy(reference, sample, confidence)
    sentence = _sentence(verdict, p, level, pictures, needed, tests, traits)
    return Findings(
        verdict, sentence, p, level, pictures, needed,
        _domain_facts(tests.domain) if tests else None,
        _domain_facts(tests.within) if tests else None,
        {"value": float(tests.statistics["labels"][0]), "p": permuting.tail_p(tests.statistics["labels"])} if tests else None,
        traits, class_shares(reference, sample, confidence), true_shares, untold, unfamiliar, accuracy,
    )  # fmt: skip


def _even_groups(old: Sample, new: Sample) -> tuple[Sample, Sample]:
    """Both samples with at most so many pictures of a group, drawn at random, as the smaller of the two median groups has.

    Groups are exchanged between the samples. If those of one were larger, their size alone would tell the samples apart.
    """
    most = min(np.median(np.unique(each.groups, return_counts=True)[1]) for each in (old, new))
    return _cap_groups(old, int(most)), _cap_groups(new, int(most))


def _cap_groups(sample: Sample, most: int) -> Sample:
    order = np.random.default_rng(0).permutation(len(sample))
    order = order[np.argsort(sample.groups[order], kind="stable")]
    _, starts, counts = np.unique(sample.groups[order], return_index=True, return_counts=True)
    ranks = np.arange(len(order)) - np.repeat(starts, counts)
    return sample.take(np.sort(order[ranks < most]))


@dataclass(frozen=True)
class _Tests:
    domain: permuting.Domain
    within: permuting.Domain
    statistics: Mapping[str, Array]  # each float (1 + permutations,)

    @property
    def p(self) -> float:
        return permuting.global_p([*self.statistics.values()])


def _test(old: Sample, new: Sample, confidence: float, count: int) -> _Tests:
    pool = permuting.make_pool((old.features, new.features), (old.groups, new.groups))
    labels = permuting.permute(pool, count)
    predicted = np.concatenate([old.predicted, new.predicted])[pool.order]
    domain = permuting.classify_domain(pool, labels, confidence=confidence)
    statistics = {"domain": domain.aucs, "labels": permuting.share_distances(labels, predicted)}
    # A few foreign pictures are far from all others, and change neither the means nor the shares by much.
    statistics["far"] = permuting.share_gaps(labels, pool.axes[:, -1] > np.quantile(pool.axes[:, -1], _FAR))
    values = {name: np.concatenate([each, traits_of(new)[name]])[pool.order] for name, each in traits_of(old).items()}
    statistics |= {name: permuting.ks_distances(labels, each) for name, each in values.items()}
    if old.unfamiliarity is not None and new.unfamiliarity is not None:
        unfamiliar = np.concatenate([old.unfamiliarity, new.unfamiliarity])[pool.order] > 1
        statistics["unfamiliar"] = permuting.share_gaps(labels, unfamiliar)
    # It explains the verdict and is no part of it: its permutations are of the pictures of one predicted class.
    within = permuting.classify_domain(pool, permuting.permute(pool, count, strata=predicted), predicted, confidence)
    return _Tests(domain, within, statistics)


def groups_needed(reference_groups: int, level: float, statistics: int) -> int | None:
    """How many new groups show a shift by SHIFT standard deviations with the probability POWER, by the normal approximation.

    `level`: of one look, of which each of the statistics gets the same part. None if the reference is too small for any number.
    """
    from scipy.special import ndtri

    inverse = (SHIFT / (ndtri(1 - level / statistics / 2) + ndtri(POWER))) ** 2 - 1 / reference_groups
    return math.ceil(1 / inverse) if inverse > 0 else None


def _domain_facts(domain: permuting.Domain) -> dict[str, float]:
    return {"value": float(domain.aucs[0]), **_ends(domain.interval), "p": domain.p}


def _ends(interval: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("low", "high"), interval, strict=True))


def _compare_traits(old: Sample, new: Sample, tests: _Tests | None) -> list[dict[str, Any]]:
    """A row per trait: medians, the difference of the means in standard deviations, the Kolmogorov-Smirnov distance, p by Holm."""
    p_values = [permuting.tail_p(tests.statistics[name]) for name in TRAITS] if tests else []
    adjusted: list[float] | list[None] = holm(p_values) if tests else [None] * len(TRAITS)
    rows = []
    for (name, trait), p in zip(TRAITS.items(), adjusted, strict=True):
        first, second = traits_of(old)[name], traits_of(new)[name]
        deviation = math.sqrt((first.var() + second.var()) / 2)
        difference = float(second.mean() - first.mean())
        medians = {side: trait.shown(float(np.median(values))) for side, values in (("reference", first), ("new", second))}
        rows.append({
            "name": name, "title": trait.title, **medians, "difference": difference / deviation if deviation > LEAST_DEVIATION else None,
            "ks": float(permuting.ks_distances(np.arange(len(first) + len(second))[None] >= len(first), np.append(first, second))[0]),
            "p": p, "word": trait.higher if difference > 0 else trait.lower,
        })  # fmt: skip
    return rows


def _unfamiliar(old: Sample, new: Sample, stated: float | None, tests: _Tests | None, confidence: float) -> dict[str, Any] | None:
    if old.unfamiliarity is None or new.unfamiliarity is None:
        return None
    is_unfamiliar = new.unfamiliarity > 1
    ends = _ends(proportion_interval(is_unfamiliar, new.groups, confidence))
    p = permuting.tail_p(tests.statistics["unfamiliar"]) if tests else None
    return {"value": float(is_unfamiliar.mean()), **ends, "reference": float((old.unfamiliarity > 1).mean()), "stated": stated, "p": p}


def _sentence(
    verdict: Verdict, p: float | None, level: float, pictures: Mapping[str, int], needed: int | None, tests: _Tests | None,
    traits: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    """The verdict in words, with what explains it."""
    given = f"p {p:.2g}, level {level:.2g}" if p is not None else "nothing was tested"
    if verdict == "ok":
        return f"No drift is shown ({given})."
    if verdict == "too few":
        unit, count = "picture" if pictures["new"] == pictures["new_groups"] else "group", pictures["new_groups"]
        few = f"{count} new {unit}{'s are' if count > 1 else ' is'} too few ({given}): a shift by half a standard deviation needs {needed}."
        none = f"The {pictures['reference_groups']} test pictures or groups are too few for any verdict ({given}); test on more."
        return few if needed else none
    assert tests  # noqa: S101 - it has a p-value
    words = [row["word"] for row in traits if row["p"] <= _SHOWN]
    shares, within = permuting.tail_p(tests.statistics["labels"]) <= _SHOWN, tests.within.p <= _SHOWN
    if shares and not within:
        cause = "The shares of the classes differ; the pictures of a predicted class look as before."
    elif words:
        listed = " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
        cause = f"The pictures are {listed}. Most drift is a camera: look at it first."
    elif permuting.tail_p(tests.statistics["far"]) <= _SHOWN:
        cause = "Some pictures are far from all others: look at the furthest."
    elif within:
        cause = "The pictures differ in content, not in brightness, sharpness or size."
    else:
        cause = "No single cause stands out."
    return f"Drift ({given}). {cause}"
