"""The test, the interval and the power of a look, against enumerations, scipy's binomial test and the bars of bench/gate.json."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from pipeline.evaluation.intervals import mcnemar_p
from pipeline.promotion.looks import LEVEL, detectable_gain, effective_size, power, score_interval, sign_flip_p, stratified_mean, weigh

ROOT = Path(__file__).parent.parent.parent
ALPHA = 0.05 / 26


def enumerated(gains):
    """The same probability, of every choice of signs."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(gains))))
    return np.mean(signs @ np.abs(gains) >= np.sum(gains) - 1e-9)


def one_stratum(gains, groups=None):
    gains = np.array(gains)
    return gains, np.zeros(len(gains), int), np.arange(len(gains)) if groups is None else np.array(groups)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=10))
def test_the_sign_flip_test_of_whole_gains_is_that_of_every_choice_of_signs(gains):
    expected = enumerated(gains) if any(gains) else 1.0
    assert sign_flip_p(np.array(gains)) == pytest.approx(expected, abs=1e-9)


def test_the_sign_flip_test_of_weighted_gains_is_that_of_every_choice_of_signs():
    gains = np.array([0.31, -0.12, 0.2, 0.57, -0.2, 0.11, 0.1])
    assert sign_flip_p(gains) == pytest.approx(enumerated(gains), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(9, 1), (30, 12), (3, 3), (1, 8)])
def test_of_single_pictures_the_sign_flip_test_is_the_binomial_test(gained, lost):
    expected = binomtest(gained, gained + lost, alternative="greater").pvalue
    assert sign_flip_p(np.array([1] * gained + [-1] * lost + [0] * 40)) == pytest.approx(expected, abs=1e-12)


def test_the_sign_flip_test_is_half_of_mcnemars_if_the_challenger_gains():
    groups = np.repeat(np.arange(40), 3)
    generator = np.random.default_rng(0)
    first, second = generator.random(120) < 0.7, generator.random(120) < 0.9
    sums = np.bincount(groups, second.astype(int) - first)
    assert sums.sum() > 0
    assert sign_flip_p(sums) == pytest.approx(mcnemar_p(first, second, groups) / 2, rel=1e-9)


def test_many_gains_of_many_sizes_are_tested_in_proportion():
    generator = np.random.default_rng(0)
    gains = generator.normal(0.02, 1, 20_000)
    z = gains.sum() / np.sqrt((gains**2).sum())  # the sum of so many signed sizes is normal
    assert sign_flip_p(gains) == pytest.approx(norm.sf(z), rel=0.15)  # the gains are rounded to some ten steps


def test_the_score_interval_of_no_difference_is_the_one_worked_by_hand():
    # No answer differs: the difference tried, d, has the variance d (1 - d) / n; (n d - 1/2)² = z² n d (1 - d), with z = 1.644854.
    z2, n = 1.644854**2, 100
    a, b, c = n * n + z2 * n, n + z2 * n, 0.25
    expected = (b + np.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert score_interval(0.0, 0.0, n, 0.9) == pytest.approx((-expected, expected), abs=1e-6)


def test_the_interval_never_hides_what_the_exact_test_shows():
    for differing in range(9, 150):
        fewest = int(binom.isf(ALPHA, differing, 0.5)) + 1
        if fewest <= differing:
            assert score_interval(fewest / 1000, (differing - fewest) / 1000, 1000, 1 - 2 * ALPHA)[0] > 0


def test_the_interval_turns_round_with_the_sides():
    low, high = score_interval(0.06, 0.02, 153, 0.95)
    assert score_interval(0.02, 0.06, 153, 0.95) == pytest.approx((-high, -low))


def test_single_pictures_of_one_stratum_count_as_they_are():
    assert effective_size(*one_stratum([1, -1, 0, 0, 1, 0]), 0.9) == pytest.approx(6)


def test_pictures_in_groups_that_agree_count_as_fewer():
    gains = np.repeat([1, -1, 0, 0, 1, 0, 0, -1, 0, 1] * 4, 5)
    size = effective_size(*one_stratum(gains, np.repeat(np.arange(40), 5)), 0.9)
    assert 25 < size < 45  # of 200 pictures in 40 groups


def test_one_group_shows_nothing():
    evidence = weigh(*one_stratum([1] * 50, [0] * 50), ALPHA)
    assert evidence.interval == (-1.0, 1.0)
    assert not evidence.is_better(0, ALPHA)
    assert not evidence.is_worse()


def test_the_mean_over_classes_weighs_classes_alike():
    assert stratified_mean(np.array([1, 1, 1, 0]), np.array([0, 0, 0, 1])) == 0.5


def test_too_few_pictures_to_show_equality_accept_a_challenger_that_is_not_worse_on_them():
    few, many = weigh(*one_stratum([0] * 20), ALPHA), weigh(*one_stratum([0] * 2000), ALPHA)
    worse = weigh(*one_stratum([-1] + [0] * 19), ALPHA)
    assert few.wide[0] < -0.02 < many.wide[0]
    assert [each.is_not_inferior(0.02) for each in (few, many, worse)] == [True, True, False]


def test_the_power_is_that_of_every_outcome():
    # Of 12 pictures, 10 or more must differ and all be gained at 0.002 (2 ** -9 = 0.00195), or 11 of 12.
    n, gain, disagreement, alpha = 12, 0.5, 0.9, 0.002
    expected = 0.0
    for differing in range(n + 1):
        for gained in range(differing + 1):
            if binom.sf(gained - 1, differing, 0.5) <= alpha:
                expected += binom.pmf(differing, n, disagreement) * binom.pmf(gained, differing, (1 + gain / disagreement) / 2)
    assert power(n, gain, disagreement, alpha) == pytest.approx(expected, abs=1e-6)


def test_the_detectable_gain_is_the_first_step_with_that_power():
    gain = detectable_gain(153, 0.08, ALPHA)
    assert power(153, gain, 0.08, ALPHA) >= 0.8 > power(153, gain - 0.001, 0.08, ALPHA)


def test_very_few_pictures_see_no_gain():
    assert detectable_gain(8, 0.5, ALPHA) is None
    assert detectable_gain(0, 0.5, ALPHA) is None


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40))
def test_the_evidence_of_any_pictures_is_finite_and_contains_the_difference(pictures):
    gains, strata, groups = (np.array(column) for column in zip(*pictures, strict=True))
    strata, groups = (np.unique(each, return_inverse=True)[1] for each in (strata, groups))
    evidence = weigh(gains, strata, groups, ALPHA)
    for low, high in (evidence.interval, evidence.wide):
        assert -1 <= low <= evidence.difference + 1e-9
        assert evidence.difference - 1e-9 <= high <= 1
    assert 0 <= evidence.better_p <= 1
    assert not (evidence.is_better(0, ALPHA) and evidence.is_worse())
    assert LEVEL > ALPHA


MEASURED = json.loads((ROOT / "bench/gate.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["no_better", "some_better"])
def test_the_simulated_gate_promotes_one_that_is_no_better_at_most_at_the_stated_rate(kind):
    assert MEASURED["draws"] >= 2000
    assert MEASURED["looks"] == 26
    assert [row for row in MEASURED[kind] if row["false"] > MEASURED["error_rate"]] == []


def test_the_simulated_gate_promotes_most_of_those_that_are_better():
    assert MEASURED["some_better"][0]["promoted"] > 0.7


def test_the_simulated_intervals_miss_at_most_about_as_often_as_stated():
    *sound, (_, worst) = MEASURED["misses"].items()  # the last one is the limit that the page tells
    assert [title for title, misses in sound if max(misses.values()) > 1.6] == []
    assert max(worst.values()) < 5


def test_simulated_looks_see_what_the_power_table_says():
    for size, row in MEASURED["simulated_power"].items():
        assert row == pytest.approx(MEASURED["power"][size], abs=0.05)


def test_the_power_table_is_what_power_returns():
    size, gain = 300, 6
    assert MEASURED["power"][str(size)][str(gain)] == pytest.approx(power(size, gain / 100, MEASURED["disagreement"], ALPHA), abs=0.001)


def test_the_page_on_promotion_quotes_the_simulation():
    page = (ROOT / "docs/promotion.md").read_text(encoding="utf-8")
    rows = [f"| {int(size):,} | {' | '.join(f'{100 * share:.0f}' for share in row.values())} |" for size, row in MEASURED["power"].items()]
    rows += [f"| {title} | {' | '.join(f'{rate:.2f}' for rate in rates.values())} |" for title, rates in MEASURED["misses"].items()]
    for row in MEASURED["no_better"] + MEASURED["some_better"]:
        shares = f"{100 * row['false']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}) |"
        promoted = f" {100 * row['promoted']:.0f} % |" if "promoted" in row else ""
        rows.append(f"| {100 * row['disagreement']:.0f} % | {row['group']} | {shares}{promoted}")
    assert [row for row in rows if row not in page] == []
    assert f"{MEASURED['draws']:,} histories of looks at {MEASURED['test_pictures']} test pictures" in page
