"""The linear head: it minimises its objective, val chooses its penalty, and folds keep groups whole."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from pipeline.core.files import write_table
from pipeline.pictures.manifest import Picture
from pipeline.training.head import Examples, Head, choose_head, deal_folds, fit_head, out_of_fold_probs, read_examples
from pipeline.training.temperature import calibrated_losses

GRID = [0.001, 0.1, 10.0]


def draw_examples(num_classes, seed=0, count=60, width=5, noise=1.0):
    """Overlapping clouds, a class each, far from the origin."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    centres = np.random.default_rng(99).normal(size=(num_classes, width))
    return Examples((3 + 2 * (centres[labels] + noise * generator.normal(size=(count, width)))).astype(np.float32), labels)


def scaled(examples):
    """The features as the objective sees them: centred, scaled as a whole."""
    features = examples.features.astype(float)
    return (features - features.mean(axis=0)) / features.std()


def gradient(head, examples, l2):
    """Of the mean cross entropy + l2/2 · |weight|² on the scaled features, by the weight and by the bias."""
    features, deviation = scaled(examples), examples.features.astype(float).std()
    weight = head.weight.astype(float) * deviation
    bias = head.bias + head.weight.astype(float) @ examples.features.astype(float).mean(axis=0)
    errors = softmax(features @ weight.T + bias, axis=1) - np.eye(len(bias))[examples.labels]
    return errors.T @ features / len(features) + l2 * weight, errors.mean(axis=0)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("l2", GRID)
def test_the_objectives_gradient_is_zero_at_the_head(num_classes, l2):
    examples = draw_examples(num_classes)
    by_weight, by_bias = gradient(fit_head(examples, l2), examples, l2)
    np.testing.assert_allclose(by_weight, 0, atol=5e-4)
    np.testing.assert_allclose(by_bias, 0, atol=5e-4)


@pytest.mark.parametrize("num_classes", [3, 6])
def test_the_head_answers_as_scikit_learns_on_scaled_features(num_classes):
    examples = draw_examples(num_classes)
    model = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8, max_iter=5000).fit(scaled(examples), examples.labels)
    probs = softmax(fit_head(examples, 0.01).logits(examples.features), axis=1)
    np.testing.assert_allclose(probs, model.predict_proba(scaled(examples)), atol=2e-3)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_is_float32_in_rows_of_classes(num_classes):
    head = fit_head(draw_examples(num_classes), 0.1)
    assert (head.weight.shape, head.bias.shape) == ((num_classes, 5), (num_classes,))
    assert head.weight.dtype == head.bias.dtype == np.float32


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_heads_arrays_lie_row_by_row(num_classes):
    head = fit_head(draw_examples(num_classes), 0.1)
    assert head.weight.flags.c_contiguous
    assert head.bias.flags.c_contiguous


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_head_comes_back_from_safetensors_as_it_was(num_classes, tmp_path):
    head = fit_head(draw_examples(num_classes), 0.1)
    save_file({"head.weight": head.weight, "head.bias": head.bias}, tmp_path / "head.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "head.safetensors")["head.weight"], head.weight)
    np.testing.assert_array_equal(load_file(tmp_path / "head.safetensors")["head.bias"], head.bias)


def test_shifted_and_stretched_features_get_the_same_answers():
    examples = draw_examples(3)
    other = Examples(examples.features * 10 + 5, examples.labels)
    np.testing.assert_allclose(fit_head(other, 0.1).logits(other.features), fit_head(examples, 0.1).logits(examples.features), atol=2e-3)


def test_a_greater_penalty_gives_smaller_weights():
    sizes = [np.abs(fit_head(draw_examples(3), l2).weight).sum() for l2 in GRID]
    assert sizes == sorted(sizes, reverse=True)


def test_two_classes_have_opposite_weights():
    head = fit_head(draw_examples(2), 0.1)
    np.testing.assert_allclose(head.weight[0], -head.weight[1], rtol=1e-6)


def test_logits_are_a_linear_map():
    head = Head(np.array([[1, 2], [3, 4]], np.float32), np.array([10, 20], np.float32))
    assert head.logits(np.array([[1, 1], [0, 2]], np.float32)).tolist() == [[13, 27], [14, 28]]


def halves_of(examples):
    return np.arange(len(examples.labels)) % 2 == 0


@pytest.fixture(scope="module")
def choice():
    """Few pictures, many features: the penalties differ much."""
    train, val = draw_examples(3, seed=1, count=20, width=30, noise=1.5), draw_examples(3, seed=2, width=30, noise=1.5)
    return train, val, *choose_head(train, val, halves_of(val), GRID, 1)


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
    np.testing.assert_array_equal(head.weight, fit_head(train, best["l2"]).weight)


def test_the_val_loss_is_that_after_temperature_scaling(choice):
    _, val, head, history = choice
    best = min(history, key=lambda row: row["val_loss"])
    assert best["val_loss"] == calibrated_losses(head.logits(val.features), val.labels, halves_of(val)).mean()


def test_of_equal_val_losses_the_first_is_chosen():
    train, val = draw_examples(3, seed=1), draw_examples(3, seed=2)
    head, history = choose_head(train, val, halves_of(val), [0.1, 0.1], 1)
    assert history[0]["val_loss"] == history[1]["val_loss"]
    np.testing.assert_array_equal(head.weight, fit_head(train, 0.1).weight)


def test_a_head_fitted_twice_is_the_same():
    train, val = draw_examples(4), draw_examples(4, seed=1)
    first, second = (choose_head(train, val, halves_of(val), GRID, 2)[0] for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)


def test_answers_out_of_fold_come_from_heads_fitted_on_the_other_folds():
    generator = np.random.default_rng(0)
    examples = Examples(generator.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3)
    folds = np.arange(30) // 10
    found = out_of_fold_probs(examples, folds, 0.1, 1)
    head = fit_head(Examples(examples.features[10:], examples.labels[10:]), 0.1)
    np.testing.assert_allclose(found[:10], softmax(head.logits(examples.features[:10]), axis=1), atol=1e-6)


def test_a_class_that_the_other_folds_lack_is_never_answered():
    generator = np.random.default_rng(0)
    labels = np.array([0, 1] * 5 + [2] * 5)
    found = out_of_fold_probs(
        Examples(generator.normal(size=(15, 4)), labels), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]), 0.1, 1
    )
    assert found[10:, 2].tolist() == [0] * 5


def test_where_the_other_folds_hold_one_class_it_is_the_answer():
    found = out_of_fold_probs(Examples(np.ones((4, 2)), np.array([0, 0, 1, 1])), np.array([0, 0, 1, 1]), 0.1, 1)
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
