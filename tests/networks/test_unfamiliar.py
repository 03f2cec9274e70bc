"""How unfamiliar a picture is: the graph against scikit-learn, the threshold against its definition, and the stated rate in many splits."""

import math

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pipeline.networks.artifact import append_head
from pipeline.networks.onnx_file import open_session, write_onnx
from pipeline.networks.unfamiliar import (
    MOST_REFERENCES,
    References,
    add_unfamiliarity,
    append_unfamiliarity,
    choose_references,
    conformal_quantile,
    fit_references,
    normalise,
)
from tests.networks.test_artifact import build_backbone

EACH_ALONE = [str(number) for number in range(40)]


def build_graph():
    """Three features, the mean colours of a picture, and two classes."""
    return append_head(build_backbone(), np.ones((2, 3), np.float32), np.zeros(2, np.float32), 1.0)


def answers(graph, pixels, path):
    write_onnx(graph, path)
    return open_session(path, 1).run(["features", "unfamiliarity"], {"pixels": pixels})


@pytest.mark.parametrize(("count", "neighbours"), [(5, 1), (7, 3), (7, 7)])
def test_the_graph_computes_the_cosine_distance_to_the_kth_neighbour_over_the_threshold(count, neighbours, tmp_path):
    generator = np.random.default_rng(count)
    pixels, features = generator.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8), generator.random((count, 3)).astype(np.float32)
    graph = build_graph()
    append_unfamiliarity(graph, References(normalise(features), neighbours), 0.02)
    found_features, found = answers(graph, pixels, tmp_path / "model.onnx")
    oracle = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(features)
    np.testing.assert_allclose(found, oracle.kneighbors(found_features)[0][:, -1] / 0.02, atol=1e-4)
    np.testing.assert_allclose(References(normalise(features), neighbours).distances(found_features) / 0.02, found, atol=1e-4)


def test_a_black_picture_without_features_is_unfamiliar_and_not_undefined(tmp_path):
    graph = build_graph()
    append_unfamiliarity(graph, fit_references(np.ones((3, 3))), 0.5)
    assert answers(graph, np.zeros((1, 4, 4, 3), np.uint8), tmp_path / "model.onnx")[1].tolist() == [2.0]


def test_the_output_follows_the_probabilities_and_the_bytes_are_equal_each_time():
    graphs = [build_graph(), build_graph()]
    for graph in graphs:
        append_unfamiliarity(graph, fit_references(np.eye(3)), 0.5)
    assert [output.name for output in graphs[0].graph.output] == ["probs", "unfamiliarity", "features"]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


def test_k_is_a_hundredth_of_the_references_and_at_least_5_or_all_of_fewer():
    assert [fit_references(np.ones((count, 2))).neighbours for count in (1, 99, 1000)] == [1, 5, 10]


# The threshold


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("count", [19, 20, 39, 40])
def test_the_threshold_is_the_conformal_quantile_of_the_distances(count, rate):
    distances = np.random.default_rng(count).permutation(count) + 1.0  # the j-th smallest is j
    assert conformal_quantile(distances, EACH_ALONE[:count], rate) == math.ceil(round((count + 1) * (1 - rate), 9))


def test_with_too_few_pictures_the_threshold_is_above_all():
    assert conformal_quantile(np.arange(18.0), EACH_ALONE[:18], 0.05) == math.inf


def test_pictures_of_a_group_share_the_weight_of_one():
    # Four groups: each weighs 1/5. Of the last, with distances 8 and 9, each picture weighs 1/10.
    distances, groups = np.array([1.0, 2, 3, 8, 9]), ["a", "b", "c", "d", "d"]
    found = [conformal_quantile(distances, groups, rate) for rate in (0.2, 0.25, 0.3, 0.31, 0.4)]
    assert found == [9, 9, 8, 8, 3]


def test_in_many_splits_of_one_population_the_rate_of_false_alarms_is_the_stated_one():
    generator, rates = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = generator.normal(size=140)
        rates.append((drawn[40:] > conformal_quantile(drawn[:40], EACH_ALONE, 0.1)).mean())
    # 37 of 40 are below the threshold; a new one is above it with a probability of 4 / 41.
    assert np.mean(rates) == pytest.approx(4 / 41, abs=3 * np.std(rates) / 1000**0.5)


def test_too_few_val_pictures_are_reported_with_the_number_that_would_do(capsys):
    graph = build_graph()
    assert add_unfamiliarity(graph, fit_references(np.eye(3)), np.arange(18.0), EACH_ALONE[:18], 0.05) == {}
    assert [output.name for output in graph.graph.output] == ["probs", "features"]
    assert capsys.readouterr().out.startswith("false_alarm_rate: 0.05 needs 19 val pictures, there are 18; ")


def test_too_few_groups_are_reported_however_many_pictures_they_have(capsys):
    assert add_unfamiliarity(build_graph(), fit_references(np.eye(3)), np.arange(40.0), ["a", "b"] * 20, 0.05) == {}
    assert "needs 19 groups of val pictures, there are 2;" in capsys.readouterr().out


def test_the_facts_say_how_the_threshold_was_made():
    facts = add_unfamiliarity(build_graph(), fit_references(np.eye(3)), np.arange(1.0, 20.0), EACH_ALONE[:19], 0.05)
    assert facts["unfamiliar"] == {
        "method": "nearest neighbours", "neighbours": 3, "references": 3, "threshold": 19.0, "false_alarm_rate": 0.05,
        "val_pictures": 19, "val_groups": 19,
    }  # fmt: skip


# The references


def test_references_are_even_over_the_classes_and_rare_classes_give_all_of_theirs():
    labels = np.repeat([0, 1, 2], [500, 3, 400])
    rows = choose_references(labels, 103)
    assert np.bincount(labels[rows]).tolist() == [50, 3, 50]
    assert len(set(rows.tolist())) == 103
    assert (rows.min(), rows.max()) == (0, 902)


def test_few_pictures_are_all_references_and_many_classes_do_not_exceed_the_bound():
    assert choose_references([1, 0, 1]).tolist() == [0, 1, 2]
    assert len(choose_references(np.arange(3 * MOST_REFERENCES))) == MOST_REFERENCES


def test_distances_do_not_depend_on_the_blocks_in_which_they_are_computed(tmp_path):
    features = np.random.default_rng(0).random((5000, 4)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    references = fit_references(features[:50])
    found = references.distances(np.load(tmp_path / "features.npy", mmap_mode="r"))
    parts = [references.distances(part) for part in np.split(features, 50)]
    np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-6)
