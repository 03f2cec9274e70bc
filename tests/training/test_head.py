"""The linear head: val chooses its penalty, folds keep groups whole, and features are joined on image_id."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pipeline.core.files import write_table
from pipeline.pictures.manifest import Picture
from pipeline.training.head import Examples, Head, choose_head, deal_folds, out_of_fold_probs, read_examples
from pipeline.training.logistic import fit_logistic, principal_axes
from pipeline.training.temperature import calibrated_losses

GRID = [0.001, 0.1, 10.0]


def draw_examples(num_classes, seed=0, count=60, width=5, noise=1.0):
    """Overlapping clouds, a class each, far from the origin."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    centres = np.random.default_rng(99).normal(size=(num_classes, width))
    return Examples((3 + 2 * (centres[labels] + noise * generator.normal(size=(count, width)))).astype(np.float32), labels)


def fit_head(examples, l2):
    used = np.ones((1, len(examples.labels)), bool)
    return Head(*fit_logistic(examples.features, examples.labels, used, [l2], principal_axes(examples.features, 1), 1)[0])


def test_logits_are_a_linear_map():
    head = Head(np.array([[1, 2], [3, 4]], np.float32), np.array([10, 20], np.float32))
    assert head.logits(np.array([[1, 1], [0, 2]], np.float32)).tolist() == [[13, 27], [14, 28]]


def halves_of(examples):
    return np.arange(len(examples.labels)) % 2 == 0


@pytest.fixture(scope="module")
def choice():
    """Few pictures, many features: the penalties differ much."""
    train, val = draw_examples(3, seed=1, count=20, width=30, noise=1.5), draw_examples(3, seed=2, width=30, noise=1.5)
    return train, val, *choose_head(train, val, halves_of(val), GRID, principal_axes(train.features, 1), 1)


def test_there_is_a_row_for_each_penalty_in_order(choice):
    assert [(row["step"], row["l2"]) for row in choice[3]] == [(0, 0.001), (1, 0.1), (2, 10.0)]


@pytest.mark.parametrize(("split", "suffix"), [("train", ""), ("val", "_unscaled")])
def test_the_rows_contain_mean_cross_entropy_and_accuracy(choice, split, suffix):
    examples, row = dict(zip(("train", "val"), choice[:2], strict=True))[split], choice[3][1]
    logits = fit_head(choice[0], 0.1).logits(examples.features).astype(float)
    loss = -np.mean([line[label] for line, label in zip(log_softmax(logits, axis=1), examples.labels, strict=True)])
    assert row[f"{split}_loss{suffix}"] == pytest.approx(loss, rel=1e-4)
    assert row[f"{split}_accuracy"] == np.mean(logits.argmax(axis=1) == examples.labels)


def test_the_head_of_the_lowest_val_loss_is_chosen(choice):
    train, _, head, history = choice
    best = min(history, key=lambda row: row["val_loss"])
    assert best["l2"] == 0.1  # neither the first nor the last, nor the one that fits train best
    np.testing.assert_allclose(head.weight, fit_head(train, best["l2"]).weight, atol=1e-3)


def test_the_val_loss_is_that_after_temperature_scaling(choice):
    _, val, head, history = choice
    best = min(history, key=lambda row: row["val_loss"])
    assert best["val_loss"] == calibrated_losses(head.logits(val.features), val.labels, halves_of(val)).mean()


def test_of_equal_val_losses_the_first_is_chosen(monkeypatch):
    train, val = draw_examples(3, seed=1), draw_examples(3, seed=2)
    val.features[:, 4] = 0
    first, second = np.eye(3, 5, dtype=np.float32), np.eye(3, 5, dtype=np.float32)
    second[:, 4] = 1  # makes no difference for val
    monkeypatch.setattr("pipeline.training.head.fit_logistic", lambda *_: [(weight, np.zeros(3, np.float32)) for weight in (first, second)])
    head, history = choose_head(train, val, halves_of(val), [0.1, 0.2], principal_axes(train.features, 1), 1)
    assert history[0]["val_loss"] == history[1]["val_loss"]
    assert head.weight is first


def test_a_head_fitted_twice_is_the_same():
    train, val = draw_examples(4), draw_examples(4, seed=1)
    first, second = (choose_head(train, val, halves_of(val), GRID, principal_axes(train.features, 2), 2)[0] for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)


def out_of_fold(features, labels, folds):
    return out_of_fold_probs(Examples(features, labels), folds, 0.1, principal_axes(features, 1), 1)


def test_answers_out_of_fold_come_from_heads_fitted_on_the_other_folds():
    features, labels = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3
    found = out_of_fold(features, labels, np.arange(30) // 10)
    head = fit_head(Examples(features[10:], labels[10:]), 0.1)
    np.testing.assert_allclose(found[:10], softmax(head.logits(features[:10]), axis=1), atol=2e-3)


def test_a_class_that_the_other_folds_lack_is_never_answered():
    features, labels = np.random.default_rng(0).normal(size=(15, 4)).astype(np.float32), np.array([0, 1] * 5 + [2] * 5)
    assert out_of_fold(features, labels, np.arange(15) // 5)[10:, 2].tolist() == [0] * 5


def test_where_the_other_folds_hold_one_class_it_is_the_answer():
    found = out_of_fold(np.ones((4, 2), np.float32), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    assert found.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]


def make_picture(image_id, label, split="train", group=""):
    return Picture(image_id, image_id, "0" * 64, label, split, group or image_id, 4, 4)


def write_embeddings(folder, image_ids, features):
    folder.mkdir()
    np.save(folder / "features.npy", np.asarray(features, np.float32))
    write_table(folder / "image_ids.csv", ["image_id"], [{"image_id": image_id} for image_id in image_ids])


def test_examples_are_joined_on_their_image_id(tmp_path):
    write_embeddings(tmp_path / "embeddings", ["c", "a", "b"], [[3], [1], [2]])
    pictures = [make_picture("a", "bees"), make_picture("b", "ants"), make_picture("c", "bees")]
    examples = read_examples(tmp_path / "embeddings", pictures, [1, 0, 1])
    assert examples.features.tolist() == [[1], [2], [3]]
    assert examples.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("names", "is_mapped"), [("ab", True), ("bcd", True), ("ba", False), ("ac", False), ("aab", False)])
def test_features_in_the_order_of_the_file_stay_on_disk(names, is_mapped, tmp_path):
    write_embeddings(tmp_path / "embeddings", list("abcd"), [[0], [1], [2], [3]])
    features = read_examples(tmp_path / "embeddings", [make_picture(name, "ants") for name in names], [0] * len(names)).features
    assert features.tolist() == [["abcd".index(name)] for name in names]
    assert isinstance(features.base, np.memmap) == is_mapped


def test_pictures_that_are_not_asked_for_are_left_out(tmp_path):
    write_embeddings(tmp_path / "embeddings", ["a", "b"], [[1], [2]])
    assert read_examples(tmp_path / "embeddings", [make_picture("b", "ants")], [0]).features.tolist() == [[2]]


def test_folds_keep_groups_whole():
    pictures = [make_picture(f"{index:02}", "ab"[index % 2], group=f"g{index // 2 % 6}{index % 2}") for index in range(48)]
    folds = deal_folds(pictures, seed=0)
    assert all(
        len({fold for fold, picture in zip(folds, pictures, strict=True) if picture.group == group}) == 1 for group in ("g00", "g51")
    )


def test_there_are_five_folds_where_every_class_has_five_groups():
    assert sorted(set(deal_folds([make_picture(str(index), "ab"[index % 2]) for index in range(10)], seed=0))) == [0, 1, 2, 3, 4]


def test_there_are_as_many_folds_as_the_rarest_class_has_groups():
    pictures = [make_picture(str(index), "a" if index < 2 else "b") for index in range(20)]
    assert sorted(set(deal_folds(pictures, seed=0))) == [0, 1]


def test_another_seed_deals_other_folds():
    pictures = [make_picture(f"{index:02}", "ab"[index % 2]) for index in range(40)]
    assert deal_folds(pictures, seed=0).tolist() != deal_folds(pictures, seed=1).tolist()
