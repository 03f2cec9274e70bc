"""A 95 % interval contains the true value in 95 % of seeded simulations, for every kind of interval.

The simulated model has logits drawn from N(0, scale²), labels drawn from their softmax, and the probabilities softmax(logits / T): it is
calibrated at T = 1 and overconfident below. The true value of a figure is that of 400,000 pictures. Areas are also simulated with two and
with ten classes and nearly perfect models, since the areas are then close to 1.

In worlds of groups the pictures of a group are alike: proportions are drawn from a beta distribution per group (so that correct answers
correlate by 0.3), and logits and labels correlate by 0.5 through a Gaussian copula, which leaves the true values as they are.

coverage.json contains the shares of 2,000 draws, and of the first 300 of them. The short tests repeat most of these 300. A slow test
writes the file: run it when a formula has changed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr, softmax

from pipeline.evaluation import intervals, scores
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.areas import macro, ranking_areas
from pipeline.evaluation.calibration import ece_interval, expected_calibration_error
from pipeline.evaluation.comparison import compare_all
from pipeline.evaluation.intervals import Bootstrap, logit_interval, proportion_interval

ROOT = Path(__file__).parent.parent.parent
FILE = Path(__file__).with_name("coverage.json")
DRAWS, FEW = 2000, 300
BARS = (0.935, 0.965)  # of 2,000 draws: 95 % give or take 3 standard errors
FEW_BARS = (0.912, 0.988)  # of 300 draws: the same, with a standard error of 1.26 points
PICTURES, MANY = 250, 400_000
CORRELATION, LATENT = 0.3, 0.5  # within groups: of correct answers, and of what logits and labels are drawn from


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


def of_groups(world):
    """The group of each picture, from (number of groups, pictures per group)."""
    return np.repeat(np.arange(world[0]), world[1])


def singles(count):
    return count, 1


def simulate(seed, world, temperature=1.0, classes=3, scale=2):
    """Labels and predicted probabilities of a simulated model."""
    generator, groups = np.random.default_rng(seed), of_groups(world)
    shared = LATENT if world[1] > 1 else 0
    logits, chances = generator.normal(0, 1, (len(groups), classes)), generator.normal(0, 1, (len(groups), 1))
    if shared:
        logits, chances = (
            np.sqrt(shared) * generator.normal(0, 1, (world[0], each.shape[1]))[groups] + np.sqrt(1 - shared) * each
            for each in (logits, chances)
        )
    logits = scale * logits
    labels = (softmax(logits, axis=1).cumsum(axis=1) < ndtr(chances)).sum(axis=1).clip(0, classes - 1)
    return labels, softmax(logits / temperature, axis=1)


def answers_of(generator, share, world):
    """Whether answers are correct: bool (pictures,), correlated within groups."""
    both = (1 - CORRELATION) / CORRELATION  # the sum of the parameters of such a beta distribution
    chance = generator.beta(share * both, (1 - share) * both, world[0])[of_groups(world)] if world[1] > 1 else share
    return generator.random(world[0] * world[1]) < chance


# Each of these returns the intervals of one draw as a function of its seed, and the true values of their figures.


def proportion(share, world):
    return lambda seed: [proportion_interval(answers_of(np.random.default_rng(seed), share, world), of_groups(world), 0.95)], [share]


def balanced_accuracy(shares, counts, world=None):
    labels = np.repeat(np.arange(len(shares)), counts)
    groups = np.arange(len(labels)) if world is None else np.random.default_rng(0).permutation(of_groups(world))

    def draw(seed):
        generator = np.random.default_rng(seed)
        easy = generator.normal(0, 1, len(labels))
        if world is not None:
            easy = np.sqrt(LATENT) * generator.normal(0, 1, world[0])[groups] + np.sqrt(1 - LATENT) * easy
        return [intervals.mean_of_proportions_interval(ndtr(easy) < np.array(shares)[labels], labels, groups, 0.95)]

    return draw, [np.mean(shares)]


def class_f1(world):
    def draw(seed):
        labels, probs = simulate(seed, world)
        return [intervals.f1_interval(labels == 0, probs.argmax(axis=1) == 0, of_groups(world), 0.95)]

    labels, probs = simulate(0, singles(MANY))
    return draw, [scores.f1_per_class(scores.confusion_matrix(labels, probs.argmax(axis=1), 3))[0]]


def macro_f1(world):
    def draw(seed):
        bootstrap = Bootstrap(of_groups(world), seed)
        draws = scores.drawn_macro_f1(read_answers(*simulate(seed, world)), bootstrap.counts(), 3)
        return [intervals.percentile_interval(draws, 0.95, bootstrap.widening(0.95))]

    labels, probs = simulate(0, singles(MANY))
    return draw, [scores.macro_f1(scores.confusion_matrix(labels, probs.argmax(axis=1), 3))]


def mean_loss(loss, temperature, world):
    def draw(seed):
        answers = read_answers(*simulate(seed, world, temperature))
        return [intervals.mean_interval(getattr(answers, loss), Bootstrap(of_groups(world), seed), 0.95)]

    return draw, [getattr(read_answers(*simulate(0, singles(MANY), temperature)), loss).mean()]


def calibration_error(temperature, world):
    def draw(seed):
        return [ece_interval(read_answers(*simulate(seed, world, temperature)), Bootstrap(of_groups(world), seed), 0.95)]

    return draw, [expected_calibration_error(read_answers(*simulate(0, singles(MANY), temperature)))]


def areas(classes, world, scale):
    """ROC and precision-recall areas, each as the mean over the classes and of the first class."""

    def values(labels, probs, draw):
        return [value for areas in ranking_areas(labels, probs, draw) for value in (macro(areas), areas[:, 0])]

    def draw(seed):
        answers, bootstrap = simulate(seed, world, 1.0, classes, scale), Bootstrap(of_groups(world), seed)
        pairs = zip(values(*answers, lambda: [np.ones((1, world[0] * world[1]))]), values(*answers, bootstrap.counts), strict=True)
        return [logit_interval(value[0], draws, 0.95, bootstrap.widening(0.95)) for value, draws in pairs]

    return draw, [truth[0] for truth in values(*simulate(0, singles(MANY), 1.0, classes, scale), lambda: [np.ones((1, MANY))])]


def two_models(seed, world, shares):
    """Whether the answers of two models are correct. The second is correct on that share of the first's hits, and of its misses."""
    generator = np.random.default_rng(seed)
    first = answers_of(generator, 0.88, world)
    return first, np.where(first, answers_of(generator, shares[0], world), answers_of(generator, shares[1], world))


def difference(world):
    def draw(seed):
        bootstrap = Bootstrap(of_groups(world), seed)
        return [intervals.paired_difference(*two_models(seed, world, (0.97, 0.6)), bootstrap, 0.95)[1]]

    return draw, [0.88 * 0.97 + 0.12 * 0.6 - 0.88]


SINGLES, THIRTY, FIFTEEN = singles(PICTURES), (30, 10), (15, 20)
SIMULATIONS = {
    **{f"proportion of {share}": (proportion, share, SINGLES) for share in (0.8, 0.9, 0.95)},
    "balanced accuracy, 10 equal classes": (balanced_accuracy, [0.92] * 10, [27] * 10),
    "balanced accuracy, 2 classes": (balanced_accuracy, [0.95, 0.95], [70, 83]),
    "balanced accuracy, 3 unequal classes": (balanced_accuracy, [0.99, 0.8, 0.9], [100, 25, 50]),
    "F1 of a class": (class_f1, SINGLES),
    "macro F1": (macro_f1, SINGLES),
    **{f"log loss, T = {t}": (mean_loss, "log_losses", t, SINGLES) for t in (0.5, 1.0)},
    **{f"Brier score, T = {t}": (mean_loss, "brier_scores", t, SINGLES) for t in (0.5, 1.0)},
    **{
        f"ECE, T = {t}, {count} pictures": (calibration_error, t, singles(count))
        for t, count in ((0.5, 200), (0.75, 300), (0.75, 1000), (1.5, 250))
    },
    "areas, 3 classes": (areas, 3, SINGLES, 2),
    "areas, 2 classes, nearly perfect": (areas, 2, singles(153), 8),
    "areas, 10 classes, nearly perfect": (areas, 10, singles(268), 6),
    "difference of two models": (difference, SINGLES),
    **{
        f"{name}, {world[0]} groups of {world[1]}": (*simulation, world)
        for world in (THIRTY, FIFTEEN)
        for name, simulation in {
            "proportion of 0.8": (proportion, 0.8),
            "proportion of 0.9": (proportion, 0.9),
            "balanced accuracy": (balanced_accuracy, [0.95, 0.8, 0.9], [150, 50, 100]),
            "F1 of a class": (class_f1,),
            "macro F1": (macro_f1,),
            "log loss, T = 0.5": (mean_loss, "log_losses", 0.5),
            "Brier score, T = 1.0": (mean_loss, "brier_scores", 1.0),
            "ECE, T = 0.5": (calibration_error, 0.5),
            "difference of two models": (difference,),
        }.items()
    },
    "areas, 3 classes, 30 groups of 10": (areas, 3, THIRTY, 2),
    "areas, 3 classes, 15 groups of 20": (areas, 3, FIFTEEN, 2),
}
# Seconds each, while another of its kind is short: such figures are repeated in other worlds, or such worlds with other figures.
LONG = {
    *(f"ECE, T = {t}, {count} pictures" for t, count in ((0.5, 200), (0.75, 300), (0.75, 1000), (1.5, 250))),
    "log loss, T = 1.0", "Brier score, T = 0.5", "areas, 2 classes, nearly perfect", "areas, 10 classes, nearly perfect",
    *(f"{figure}, 15 groups of 20" for figure in ("macro F1", "log loss, T = 0.5", "Brier score, T = 1.0", "ECE, T = 0.5",
                                                  "difference of two models", "areas, 3 classes")),
}  # fmt: skip


def cover(name, draws):
    """Whether each draw's intervals contain the true values: bool (draws, figures)."""
    make, *arguments = SIMULATIONS[name]
    draw, truths = make(*arguments)
    return np.array([[low <= truth <= high for (low, high), truth in zip(draw(seed), truths, strict=True)] for seed in range(draws)])


def within(shares, bars):
    return all(bars[0] <= share <= bars[1] for share in shares)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SIMULATIONS])
def test_an_interval_contains_the_true_value_in_95_of_100_draws(name):
    shares = cover(name, FEW).mean(axis=0)
    assert within(shares, FEW_BARS), shares
    assert shares == pytest.approx(json.loads(FILE.read_text())[name]["300"], abs=1.1 / FEW)


def test_the_recorded_shares_of_2000_draws_are_95_percent_give_or_take_a_point_and_a_half():
    recorded = json.loads(FILE.read_text())
    assert list(recorded) == list(SIMULATIONS)
    assert {name: shares for name, shares in recorded.items() if not within(shares["2000"], BARS)} == {}


def coverage_table(recorded):
    """The recorded shares of 2,000 draws as docs/report.md quotes them."""
    rows = [
        ("accuracy, precision, recall", "proportion of 0.9", "proportion of 0.9"),
        ("balanced accuracy", "balanced accuracy, 3 unequal classes", "balanced accuracy"),
        ("F1 of a class", "F1 of a class", "F1 of a class"),
        ("macro F1", "macro F1", "macro F1"),
        ("ROC AUC", "areas, 3 classes", "areas, 3 classes"),
        ("log loss", "log loss, T = 0.5", "log loss, T = 0.5"),
        ("Brier score", "Brier score, T = 1.0", "Brier score, T = 1.0"),
        ("ECE", "ECE, T = 0.5, 200 pictures", "ECE, T = 0.5"),
        ("difference of two models", "difference of two models", "difference of two models"),
    ]
    lines = ["| figure | single pictures | 30 groups of 10 | 15 groups of 20 |", "| --- | --- | --- | --- |"]
    for title, of_singles, of_groups in rows:
        names = (of_singles, f"{of_groups}, 30 groups of 10", f"{of_groups}, 15 groups of 20")
        shares = [f"{100 * recorded[name]['2000'][0]:.1f} %" for name in names]
        lines.append(f"| {title} | {' | '.join(shares)} |")
    return "\n".join(lines)


def test_the_documentation_quotes_the_recorded_shares():
    assert coverage_table(json.loads(FILE.read_text())) in (ROOT / "docs/report.md").read_text()


@pytest.mark.slow
def test_2000_draws_are_simulated_and_recorded():
    covered = {name: cover(name, DRAWS) for name in SIMULATIONS}
    shares = {
        name: {str(draws): np.round(each[:draws].mean(axis=0), 4).tolist() for draws in (FEW, DRAWS)} for name, each in covered.items()
    }
    FILE.write_text(json.dumps(shares, indent=1) + "\n")
    assert {name: each for name, each in shares.items() if not within(each["2000"], BARS)} == {}


def test_the_interval_of_the_calibration_error_of_a_calibrated_model_begins_at_0():
    lows = [ece_interval(read_answers(*simulate(seed, SINGLES)), Bootstrap(of_groups(SINGLES), seed), 0.95)[0] for seed in range(FEW)]
    assert np.mean(np.array(lows) == 0) >= 0.95


def rows_of(correct, groups):
    """Rows of predictions.csv with such answers."""
    return [
        {"image_id": str(index), "group": str(group), "label": "a", "predicted": "a" if right else "b"}
        for index, (right, group) in enumerate(zip(correct, groups, strict=True))
    ]


def false_claims(models, world, draws):
    """The share of draws in which any of several equally good models is called better than the baseline or worse than the best."""
    claims = []
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        easy = answers_of(generator, 0.8, world)  # the models agree on most pictures
        answers = {name: np.where(generator.random(len(easy)) < 0.8, easy, answers_of(generator, 0.8, world)) for name in models}
        compared = compare_all({name: rows_of(each, of_groups(world)) for name, each in answers.items()}, 0.95, seed)
        pairs = [*compared["differences"].values(), *compared.get("best", {"differences": {}})["differences"].values()]
        claims.append(any(pair["is_shown"] for pair in pairs))
    return np.mean(claims)


@pytest.mark.parametrize(
    ("count", "world"),
    [
        (2, SINGLES),
        (2, THIRTY),
        (2, FIFTEEN),
        (4, SINGLES),
        *(pytest.param(10, world, marks=pytest.mark.slow) for world in (SINGLES, THIRTY)),
    ],
)
def test_equal_models_are_called_different_in_at_most_5_of_100_draws(count, world):
    assert false_claims(["baseline", *map(str, range(1, count))], world, 100) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
