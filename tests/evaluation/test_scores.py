"""Scores against scikit-learn's, the interval of each, undefined figures, and the tables."""

import numpy as np
import pytest
import sklearn.metrics as oracle

from pipeline.core.files import read_table
from pipeline.evaluation import answers as answers_module
from pipeline.evaluation import areas as areas_module
from pipeline.evaluation import intervals
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.areas import macro, ranking_areas
from pipeline.evaluation.intervals import Bootstrap, wilson_interval
from pipeline.evaluation.scores import (
    balanced_accuracy,
    confusion_matrix,
    drawn_macro_f1,
    f1_per_class,
    flat,
    read_matrix,
    recall_per_class,
    score,
    shares,
    write_classes,
    write_matrix,
)

NAMES = ["ants", "bees", "wasps"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PROBS = np.array(
    [
        [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1],
        [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6], [0.6, 0.1, 0.3],
    ],
    dtype=np.float32,
)  # fmt: skip
UNDEFINED = {"value": None, "low": None, "high": None}


def draw_case(seed, num_classes=4, count=60, never_predicted=None, places=None):
    """Labels of every class, and float32 probabilities that are rarely confident. With few decimal places many are equal."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    probs = generator.dirichlet(np.ones(num_classes), count)
    if places is not None:
        probs = np.round(probs, places)
    if never_predicted is not None:
        probs[:, never_predicted] = 0
        probs /= probs.sum(axis=1, keepdims=True)
    return labels, probs.astype(np.float32)


def score_of(labels, probs, groups, names, temperature, confidence, seed):
    """The scores of probabilities that were scaled with this temperature."""
    return score(read_answers(labels, probs), read_answers(labels, probs, temperature), probs, groups, names, confidence, seed)


CASES = [
    pytest.param((LABELS, PROBS), id="by hand"),
    pytest.param(draw_case(0), id="four classes"),
    pytest.param(draw_case(1, num_classes=2), id="two classes"),
    pytest.param(draw_case(2, num_classes=12, count=40), id="few pictures"),
    pytest.param(draw_case(3, never_predicted=2), id="a class never predicted"),
    pytest.param(draw_case(4, never_predicted=3), id="the last class never predicted"),
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Labels, probabilities, and the scores of them."""
    labels, probs = request.param
    return labels, probs, score_of(labels, probs, np.arange(len(labels)), [str(index) for index in range(probs.shape[1])], 2.0, 0.9, 0)


@pytest.fixture(scope="module")
def scores():
    return score_of(LABELS, PROBS, np.arange(len(LABELS)), NAMES, temperature=2.0, confidence=0.9, seed=0)


# Figures


def figures_of(labels, probs):
    """The figures that scikit-learn has, too."""
    predicted, classes = probs.argmax(axis=1), range(probs.shape[1])
    one_hot = labels[:, None] == np.array(classes)
    unscaled = probs.astype(float) ** 2  # as float32, whose epsilon bounds both log losses
    return {
        "top1_accuracy": oracle.accuracy_score(labels, predicted),
        "balanced_accuracy": oracle.balanced_accuracy_score(labels, predicted),
        "macro_f1": oracle.f1_score(labels, predicted, labels=classes, average="macro", zero_division=np.nan),
        "roc_auc": oracle.roc_auc_score(one_hot, probs, average="macro"),
        "pr_auc": oracle.average_precision_score(one_hot, probs, average="macro"),
        "log_loss": oracle.log_loss(labels, probs, labels=classes),
        "log_loss_unscaled": oracle.log_loss(labels, (unscaled / unscaled.sum(axis=1, keepdims=True)).astype(np.float32), labels=classes),
        "brier": sum(oracle.brier_score_loss(labels == index, probs[:, index].astype(float)) for index in classes),
        **({"top5_accuracy": oracle.top_k_accuracy_score(labels, probs, k=5, labels=classes)} if len(classes) > 10 else {}),
    }


def test_the_figures_are_scikit_learns(case):
    labels, probs, scores = case
    found = {name: figure["value"] for name, figure in scores["figures"].items()}
    wanted = figures_of(labels, probs)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=2e-6)
    assert found.keys() - wanted.keys() == {"ece", "ece_unscaled", "brier_unscaled"}


def test_the_figures_of_each_class_are_scikit_learns(case):
    labels, probs, scores = case
    classes = range(probs.shape[1])
    precision, recall, f1, support = oracle.precision_recall_fscore_support(
        labels, probs.argmax(axis=1), labels=classes, zero_division=np.nan
    )
    areas = {
        key: [of(labels == index, probs[:, index]) for index in classes]
        for key, of in (("roc_auc", oracle.roc_auc_score), ("pr_auc", oracle.average_precision_score))
    }
    for name, wanted in {"precision": precision, "recall": recall, "f1": f1, **areas}.items():
        found = [facts[name]["value"] for facts in scores["classes"].values()]
        np.testing.assert_allclose(np.array(found, float), wanted, atol=1e-6, err_msg=name)
    assert [facts["support"] for facts in scores["classes"].values()] == list(support)


def test_an_interval_contains_its_figure(case):
    for name, figure in case[2]["figures"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name


def test_the_ece_is_the_one_worked_by_hand(scores):
    # Bins of 1/15. 0.8 (3 correct): gap 0.6; 0.7 (1 correct, 1 wrong): 0.4; 0.6 (3 correct, 1 wrong): 0.6; 0.5 (wrong): 0.5.
    assert scores["figures"]["ece"]["value"] == pytest.approx((0.6 + 0.4 + 0.6 + 0.5) / 10, abs=1e-6)


def test_proportions_have_wilsons_interval(scores):
    accuracy, bees = scores["figures"]["top1_accuracy"], scores["classes"]["bees"]
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(wilson_interval(7 / 10, 10, 0.9), abs=1e-6)
    # Bees: 2 of 3 predictions are correct, 2 of 3 pictures recognised, 2 of the 4 pictures that are bees or predicted as such.
    for name, interval in (
        ("precision", wilson_interval(2 / 3, 3, 0.9)),
        ("recall", wilson_interval(2 / 3, 3, 0.9)),
        ("f1", tuple(2 * end / (1 + end) for end in wilson_interval(2 / 4, 4, 0.9))),
    ):
        assert (bees[name]["low"], bees[name]["high"]) == pytest.approx(interval, abs=1e-6)


def test_top5_accuracy_has_wilsons_interval_and_needs_more_than_ten_classes():
    labels, probs = draw_case(0, num_classes=11, count=50)
    figure = score_of(labels, probs, np.arange(len(labels)), [str(index) for index in range(11)], 1.0, 0.95, 0)["figures"]["top5_accuracy"]
    assert (figure["low"], figure["high"]) == pytest.approx(wilson_interval(figure["value"], 50, 0.95), abs=1e-6)
    ten = [str(index) for index in range(10)]
    assert "top5_accuracy" not in score_of(labels % 10, probs[:, :10], np.arange(50), ten, 1.0, 0.95, 0)["figures"]


@pytest.mark.parametrize("count", [2, 6, 30])
@pytest.mark.parametrize("pictures_per_group", [1, 2])
def test_no_interval_exceeds_what_its_figure_can_be(count, pictures_per_group):
    generator = np.random.default_rng(count)
    probs = np.full((count, 3), 1e-9)
    probs[np.arange(count), generator.integers(0, 3, count)] = 1  # certain, and often wrong: the largest losses
    probs[0] = (0.5, 0.3, 0.2)
    found = score_of(generator.integers(0, 3, count), probs, np.arange(count) // pictures_per_group, NAMES, 1.5, 0.95, 0)
    most = {"log_loss": -np.log(np.finfo(np.float32).eps), "brier": 2.0}
    for figures in (found["figures"], *found["classes"].values()):
        for name, figure in figures.items():
            if name != "support" and figure["low"] is not None:
                assert 0 <= figure["low"] <= figure["high"] <= most.get(name.removesuffix("_unscaled"), 1.0) + 1e-6, name


def test_the_figures_have_an_order(scores):
    of_probabilities = ["log_loss", "brier", "ece"]
    assert list(scores["figures"]) == [
        "top1_accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "pr_auc",
        *of_probabilities, *(f"{name}_unscaled" for name in of_probabilities),
    ]  # fmt: skip


def test_another_seed_moves_only_bootstrap_intervals(scores):
    figures, other = flat(scores["figures"]), flat(score_of(LABELS, PROBS, np.arange(len(LABELS)), NAMES, 2.0, 0.9, 1)["figures"])
    moved = {name for name in figures if figures[name] != other[name]}
    drawn = {f"{name}{end}" for name in figures if name not in ("top1_accuracy", "balanced_accuracy") for end in ("_low", "_high")}
    assert {"log_loss_low", "roc_auc_low", "ece_high"} <= moved <= drawn


# Undefined figures


def test_a_class_that_is_never_predicted_has_no_precision():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    found = score_of(np.array([0, 0, 1]), probs, np.arange(3), ["ants", "bees"], 1.0, 0.9, 0)["classes"]["bees"]
    assert found["precision"] == UNDEFINED
    assert (found["recall"]["value"], found["f1"]["value"], found["support"]) == (0.0, 0.0, 1)


def test_a_class_without_test_pictures_has_neither_recall_nor_areas():
    probs = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.1, 0.2]], np.float32)
    found = score_of(np.array([0, 1, 0]), probs, np.arange(3), NAMES, 1.0, 0.9, 0)["classes"]["wasps"]
    assert found == {**dict.fromkeys(("precision", "recall", "f1", "roc_auc", "pr_auc"), UNDEFINED), "support": 0}


def test_a_perfect_model_has_an_interval_only_if_it_is_defined():
    figures = score_of(np.array([0, 1, 0, 1]), np.eye(2)[[0, 1, 0, 1]], np.arange(4), ["ants", "bees"], 1.0, 0.95, 0)["figures"]
    assert figures["balanced_accuracy"]["low"] < 0.9
    assert (figures["roc_auc"]["value"], figures["roc_auc"]["low"]) == (1.0, None)


@pytest.mark.parametrize("formula", [recall_per_class, f1_per_class])
def test_a_class_without_pictures_and_predictions_has_no_figure(formula):
    np.testing.assert_array_equal(np.isnan(formula(np.array([[3, 0], [0, 0]]))), [False, True])


def test_balanced_accuracy_leaves_out_a_class_without_pictures():
    assert balanced_accuracy(np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])) == pytest.approx((0.75 + 0.5) / 2)


# Formulas


def test_rows_of_the_matrix_are_the_true_classes():
    np.testing.assert_array_equal(confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), 2), [[0, 2], [0, 1]])


def test_the_macro_f1_of_samples_is_scikit_learns_with_weights():
    labels, probs = draw_case(6, num_classes=12, count=40, never_predicted=3)
    bootstrap, predicted = Bootstrap(np.arange(40), 0), probs.argmax(axis=1)
    found = drawn_macro_f1(read_answers(labels, probs), bootstrap.counts(30), 12)
    counts = np.concatenate(list(bootstrap.counts(30)))
    there = [np.isin(np.arange(12), np.concatenate([labels[drawn > 0], predicted[drawn > 0]])) for drawn in counts]
    wanted = [
        oracle.f1_score(labels, predicted, labels=np.flatnonzero(classes), average="macro", sample_weight=drawn, zero_division=np.nan)
        for drawn, classes in zip(counts, there, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("pictures_per_group", [1, 3])
def test_the_scores_of_samples_in_blocks_are_those_of_all_samples_at_once(monkeypatch, pictures_per_group):
    labels, probs = draw_case(7, num_classes=5, count=90)
    arguments = (labels, probs, np.arange(90) // pictures_per_group, list("abcde"), 2.0, 0.95, 0)
    wanted = score_of(*arguments)
    monkeypatch.setattr(intervals, "_BLOCK", 90 * 24)  # 24 samples
    monkeypatch.setattr(areas_module, "_RANKED", 90 * 2)  # two classes
    monkeypatch.setattr(answers_module, "_BLOCK", 5 * 7)  # seven pictures
    assert score_of(*arguments) == wanted


# Areas


def oracle_areas(labels, probs, weights):
    return np.array(
        [
            [of(labels == index, probs[:, index], sample_weight=weights) for index in range(probs.shape[1])]
            for of in (oracle.roc_auc_score, oracle.average_precision_score)
        ]
    )


def test_areas_of_equal_probabilities_are_scikit_learns():
    labels, probs = draw_case(0, num_classes=3, places=1)
    np.testing.assert_allclose(
        np.concatenate(ranking_areas(labels, probs, lambda: [np.ones((1, 60))])), oracle_areas(labels, probs, None), atol=1e-12
    )


def test_areas_of_samples_are_scikit_learns_with_weights():
    labels, probs = draw_case(1, num_classes=3, places=1)
    (counts,) = Bootstrap(np.arange(60), 0).counts(20)
    found = np.stack(ranking_areas(labels, probs, lambda: [counts[:12], counts[12:]]), axis=1)
    for areas, weights in zip(found, counts, strict=True):
        np.testing.assert_allclose(areas, oracle_areas(labels, probs, weights), atol=1e-6)


def test_probabilities_that_are_all_equal_are_one_step():
    labels, probs = np.array([0, 0, 1]), np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    roc, precision = ranking_areas(labels, probs, lambda: [np.ones((1, 3))])
    assert (roc.tolist(), precision[0].tolist()) == ([[0.5, 0.5]], pytest.approx([2 / 3, 1 / 3]))


def test_a_sample_of_one_class_has_no_area():
    labels, probs = draw_case(2, num_classes=2, count=4)
    counts = (labels == 0).astype(float)[None]
    assert np.isnan(ranking_areas(labels, probs, lambda: [counts])).all()


def test_the_macro_area_leaves_out_undefined_areas():
    assert macro(np.array([[0.5, np.nan, 1.0]])).tolist() == [0.75]
    assert np.isnan(macro(np.array([[np.nan, np.nan]]))).all()


# Tables


def test_shares_are_those_of_the_true_class_and_rounded(tmp_path):
    write_matrix(tmp_path / "matrix.csv", shares(np.array([[2, 1], [0, 2]])), ["ants", "bees"])
    assert (tmp_path / "matrix.csv").read_text() == "true/predicted,ants,bees\nants,0.666667,0.333333\nbees,0.0,1.0\n"


def test_counts_are_read_as_they_were_written(tmp_path):
    write_matrix(tmp_path / "matrix.csv", np.array([[2, 1], [0, 12]]), ["ants", "a,b"])
    names, counts = read_matrix(tmp_path / "matrix.csv")
    assert (names, counts.tolist()) == (["ants", "a,b"], [[2, 1], [0, 12]])


def test_a_class_without_pictures_has_shares_of_0():
    assert shares(np.array([[2, 0], [0, 0]])).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_class_has_its_figures_and_empty_cells_for_undefined_ones(tmp_path):
    classes = {"ants": {"recall": {"value": 0.75, "low": 0.5, "high": None}, "support": 4}}
    write_classes(tmp_path / "classes.csv", classes)
    assert read_table(tmp_path / "classes.csv") == [
        {"class": "ants", "support": "4", "recall": "0.75", "recall_low": "0.5", "recall_high": ""}
    ]
