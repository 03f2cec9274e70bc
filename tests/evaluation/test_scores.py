"""The scores against scikit-learn's and scipy's, and which interval each has."""

import numpy as np
import pytest
import sklearn.metrics as oracle

from pipeline.evaluation.intervals import f1_interval, wilson_interval
from pipeline.evaluation.scores import flat, score

NAMES = ["ants", "bees", "wasps"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PROBS = np.array(
    [
        [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1],
        [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.6, 0.1, 0.3],
    ],
    dtype=np.float32,
)  # fmt: skip
PREDICTED = PROBS.argmax(axis=1)


@pytest.fixture(scope="module")
def scores():
    return score(LABELS, PROBS, NAMES, temperature=2.0, confidence=0.9, seed=0)


@pytest.fixture(scope="module")
def figures(scores):
    return flat(scores["figures"])


def areas(of):
    return of(LABELS[:, None] == np.arange(3), PROBS, average="macro")


@pytest.mark.parametrize(
    ("figure", "wanted"),
    [
        ("top1_accuracy", oracle.accuracy_score(LABELS, PREDICTED)),
        ("balanced_accuracy", oracle.balanced_accuracy_score(LABELS, PREDICTED)),
        ("macro_f1", oracle.f1_score(LABELS, PREDICTED, average="macro")),
        ("roc_auc", areas(oracle.roc_auc_score)),
        ("pr_auc", areas(oracle.average_precision_score)),
        ("log_loss", oracle.log_loss(LABELS, PROBS)),
        ("brier", sum(oracle.brier_score_loss(index == LABELS, PROBS[:, index]) for index in range(3))),
    ],
)
def test_a_figure_is_scikit_learns(figures, figure, wanted):
    assert figures[figure] == pytest.approx(wanted, abs=1e-6)


def test_ece_is_the_one_worked_by_hand(figures):
    # Bins of a fifteenth. 0.8 (3 right): 0.6 off; 0.7 (1 right, 1 wrong): 0.4; 0.6 (3 right, 1 wrong): 0.6; 0.5 (wrong): 0.5.
    assert figures["ece"] == pytest.approx((0.6 + 0.4 + 0.6 + 0.5) / 10, abs=1e-6)


def test_unscaled_figures_are_those_of_the_probabilities_without_the_temperature(figures):
    raised = PROBS.astype(float) ** 2
    wanted = oracle.log_loss(LABELS, raised / raised.sum(axis=1, keepdims=True))
    assert figures["log_loss_unscaled"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("figure", "column"), [("precision", 0), ("recall", 1), ("f1", 2)])
def test_a_figure_of_each_class_is_scikit_learns(scores, figure, column):
    wanted = oracle.precision_recall_fscore_support(LABELS, PREDICTED)[column]
    assert [scores["classes"][name][figure]["value"] for name in NAMES] == pytest.approx(list(wanted), abs=1e-6)


@pytest.mark.parametrize(("figure", "of"), [("roc_auc", oracle.roc_auc_score), ("pr_auc", oracle.average_precision_score)])
def test_an_area_of_each_class_is_scikit_learns(scores, figure, of):
    wanted = [of(index == LABELS, PROBS[:, index]) for index in range(3)]
    assert [scores["classes"][name][figure]["value"] for name in NAMES] == pytest.approx(wanted, abs=1e-6)


def test_each_class_tells_how_many_pictures_it_has(scores):
    assert [scores["classes"][name]["support"] for name in NAMES] == [4, 3, 3]


def test_shares_have_wilsons_interval(scores, figures):
    assert (figures["top1_accuracy_low"], figures["top1_accuracy_high"]) == pytest.approx(wilson_interval(7, 10, 0.9), abs=1e-6)
    bees = scores["classes"]["bees"]  # 2 of 3 answers are right, 2 of 3 pictures recognised, 2 of 4 pictures one or the other
    for name, interval in (
        ("precision", wilson_interval(2, 3, 0.9)),
        ("recall", wilson_interval(2, 3, 0.9)),
        ("f1", f1_interval(2, 2, 0.9)),
    ):
        assert (bees[name]["low"], bees[name]["high"]) == pytest.approx(interval, abs=1e-6)


def test_an_interval_holds_its_figure(scores):
    for name, figure in scores["figures"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name


def test_all_figures_stand_in_their_order(scores):
    of_probabilities = ["log_loss", "brier", "ece"]
    assert list(scores["figures"]) == [
        "top1_accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "pr_auc",
        *of_probabilities, *(f"{name}_unscaled" for name in of_probabilities),
    ]  # fmt: skip


def test_scoring_twice_gives_equal_figures(scores):
    assert score(LABELS, PROBS, NAMES, 2.0, 0.9, 0) == scores


def test_another_seed_moves_only_bootstrapped_intervals(figures):
    other = flat(score(LABELS, PROBS, NAMES, 2.0, 0.9, 1)["figures"])
    assert {name for name in figures if figures[name] != other[name]} <= {
        f"{name}{end}" for name in figures if name not in ("top1_accuracy", "balanced_accuracy") for end in ("_low", "_high")
    }


def test_a_class_that_is_never_answered_has_no_precision():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    found = score(np.array([0, 0, 1]), probs, ["ants", "bees"], 1.0, 0.9, 0)["classes"]["bees"]
    assert found["precision"] == {"value": None, "low": None, "high": None}
    assert (found["recall"]["value"], found["f1"]["value"], found["support"]) == (0.0, 0.0, 1)


def test_a_class_without_test_pictures_has_neither_recall_nor_areas():
    probs = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.1, 0.2]], np.float32)
    found = score(np.array([0, 1, 0]), probs, NAMES, 1.0, 0.9, 0)["classes"]["wasps"]
    nothing = {"value": None, "low": None, "high": None}
    assert found == {**dict.fromkeys(("precision", "recall", "f1", "roc_auc", "pr_auc"), nothing), "support": 0}


def test_more_than_ten_classes_have_the_first_five():
    generator = np.random.default_rng(0)
    labels, probs = generator.integers(0, 11, 50), generator.dirichlet(np.ones(11), 50)
    found = score(labels, probs, [str(index) for index in range(11)], 1.0, 0.95, 0)["figures"]["top5_accuracy"]
    wanted = oracle.top_k_accuracy_score(labels, probs, k=5, labels=range(11))
    assert found["value"] == pytest.approx(wanted, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx(wilson_interval(round(50 * wanted), 50, 0.95), abs=1e-6)


def test_a_model_without_fault_has_intervals_where_they_are_defined():
    figures = score(np.array([0, 1, 0, 1]), np.eye(2)[[0, 1, 0, 1]], ["ants", "bees"], 1.0, 0.95, 0)["figures"]
    assert figures["balanced_accuracy"]["low"] < 0.9
    assert (figures["roc_auc"]["value"], figures["roc_auc"]["low"]) == (1.0, None)


def test_a_hundred_classes_and_two_thousand_pictures_are_scored():
    generator = np.random.default_rng(0)
    labels, probs = generator.integers(0, 100, 2000), generator.dirichlet(np.ones(100), 2000).astype(np.float32)
    scores = score(labels, probs, [str(index) for index in range(100)], 1.0, 0.95, 0)
    assert len(scores["classes"]) == 100
    assert scores["figures"]["roc_auc"]["value"] == pytest.approx(0.5, abs=0.03)
