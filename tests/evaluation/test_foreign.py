"""Foreign pictures are always the same, and the area between known and foreign ones has an interval also where it is 1."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from pipeline.core.files import sha256_of
from pipeline.evaluation.foreign import PICTURES, area_between, area_interval, foreign_sets, score_unfamiliarity
from pipeline.pictures.images import decode
from pipeline.pictures.manifest import Picture, record_of
from pipeline.sources.formats import digits_members


@pytest.fixture(scope="module")
def sets():
    return dict(foreign_sets(""))


def test_each_set_has_sixty_different_pictures_and_is_always_the_same(sets):
    assert [len(set(pictures)) for pictures in sets.values()] == [PICTURES] * 4
    assert dict(foreign_sets("")) == sets


def test_their_pictures_decode_and_each_set_has_pictures_of_its_own(sets):
    sizes = {name: {decode(picture).size for picture in pictures} for name, pictures in sets.items()}
    assert (sizes["digits"], sizes["textures"], sizes["shapes"]) == ({(8, 8)}, {(128, 128)}, {(128, 128)})
    assert min(min(size) for size in sizes["photographs"]) > 80


def test_a_set_from_which_the_model_learned_is_no_foreign_one(sets):
    members = digits_members(None)
    assert len(members) == len(load_digits().target)
    pictures = [Picture("", "", sha256_of(read()), "", "", "", 8, 8) for read in list(members.values())[:200]]
    assert [name for name, _ in foreign_sets(record_of(pictures))] == ["photographs", "textures", "shapes"]


def test_the_area_is_that_of_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    known, foreign = generator.integers(0, 9, 50) / 9, generator.integers(3, 12, 30) / 9
    wanted = roc_auc_score(np.repeat([0, 1], [50, 30]), np.concatenate([known, foreign]))
    assert area_between(known, foreign) == pytest.approx(wanted)


def test_the_interval_of_a_perfect_area_ends_at_1_and_narrows_with_the_pictures():
    few, many = (area_interval(1.0, count, count, 0.95) for count in (10, 1000))
    assert few[1] == many[1] == 1
    assert 0.7 < few[0] < many[0] < 1


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_the_interval_contains_the_true_area_as_often_as_stated(shift):
    from scipy.special import ndtr

    generator, true = np.random.default_rng(0), ndtr(shift / 2**0.5)
    hits = []
    for _ in range(400):
        area = area_between(generator.normal(size=60), generator.normal(shift, 1, 40))
        low, high = area_interval(area, 60, 40, 0.9)
        hits.append(low <= true <= high)
    assert 0.85 < np.mean(hits) < 0.96


def test_the_scores_count_alarms_and_what_is_detected():
    known, groups = np.array([0.5] * 18 + [1.5, 1.0]), np.arange(20)
    found = score_unfamiliarity(known, groups, {"shapes": np.array([2.0, 1.2, 0.7, 0.1])}, {"false_alarm_rate": 0.05}, 0.95)
    assert (found["false_alarm_rate"], found["on_test"]["value"]) == (0.05, 0.05)  # 1.0 is familiar
    shapes = found["sets"]["shapes"]
    assert (shapes["pictures"], shapes["detected"]["value"], shapes["auroc"]["value"]) == (4, 0.5, 57 / 80)
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in (found["on_test"], shapes["detected"], shapes["auroc"]))


def test_pictures_of_few_groups_widen_the_intervals():
    known = np.repeat([0.5, 1.5], [36, 4])
    alone, grouped = (
        score_unfamiliarity(known, groups, {"a": np.array([2.0, 1.0])}, {}, 0.95) for groups in (np.arange(40), np.arange(40) // 4)
    )
    for figure in (lambda found: found["on_test"], lambda found: found["sets"]["a"]["auroc"]):
        assert figure(grouped)["high"] - figure(grouped)["low"] > figure(alone)["high"] - figure(alone)["low"]
