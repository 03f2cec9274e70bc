"""Areas under curves against scikit-learn's, also where probabilities tie and where pictures are drawn several times."""

import numpy as np
import pytest
import sklearn.metrics as oracle

from pipeline.evaluation import scores as ranking
from pipeline.evaluation.intervals import draw_counts
from pipeline.evaluation.scores import macro, ranking_areas


def draw_case(seed, num_classes=3, count=60, places=3):
    """Labels that hold every class, and float32 probabilities of so few places that many tie."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    return labels, np.round(generator.dirichlet(np.ones(num_classes), count), places).astype(np.float32)


def oracle_areas(labels, probs, weights):
    return np.array(
        [
            [of(labels == index, probs[:, index], sample_weight=weights) for index in range(probs.shape[1])]
            for of in (oracle.roc_auc_score, oracle.average_precision_score)
        ]
    )


@pytest.mark.parametrize("places", [1, 6])
def test_areas_are_scikit_learns(places):
    labels, probs = draw_case(0, places=places)
    found = ranking_areas(labels, probs, np.ones((1, 60)))
    np.testing.assert_allclose(np.concatenate(found), oracle_areas(labels, probs, None), atol=1e-12)


def test_areas_of_samples_are_scikit_learns_with_weights(monkeypatch):
    monkeypatch.setattr(ranking, "_CHUNK", 200)  # three samples at once
    labels, probs = draw_case(1, places=1)
    counts = draw_counts(60, 0)[:20]
    found = np.stack(ranking_areas(labels, probs, counts), axis=1)
    for areas, weights in zip(found, counts, strict=True):
        np.testing.assert_allclose(areas, oracle_areas(labels, probs, weights), atol=1e-6)


def test_saturated_probabilities_are_one_step():
    labels, probs = np.array([0, 0, 1]), np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    roc, precision = ranking_areas(labels, probs, np.ones((1, 3)))
    assert (roc.tolist(), precision[0].tolist()) == ([[0.5, 0.5]], pytest.approx([2 / 3, 1 / 3]))


def test_a_class_that_is_not_drawn_has_no_area():
    labels, probs = draw_case(2, num_classes=2, count=4)
    counts = (labels == 0).astype(float)[None]
    assert np.isnan(ranking_areas(labels, probs, counts)).all()


def test_the_macro_area_leaves_out_what_is_not_defined():
    assert macro(np.array([[0.5, np.nan, 1.0]])).tolist() == [0.75]
    assert np.isnan(macro(np.array([[np.nan, np.nan]]))).all()
