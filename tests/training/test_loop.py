"""The training loop on a network of a few layers: it learns, keeps the best epoch, and stops if a loss is not finite."""

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.hardware import Hardware
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.training import loop
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import RunningMeans, score
from tests.recipes import CPU, trainer_of

DARK, BRIGHT = 60, 180


def draw_batches(seed, count=4, size=8):
    """Dark pictures of class 0, bright ones of class 1, in batches."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 2, (size,), generator=generator)
        noise = torch.randint(-50, 50, (size, 8, 8, 3), generator=generator)
        batches.append(((DARK + (BRIGHT - DARK) * labels[:, None, None, None] + noise).to(torch.uint8), labels))
    return batches


TRAIN, VAL = draw_batches(0), draw_batches(1, 2)


def build_small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)


def train(model, epochs=3, learning_rate=0.01, train=TRAIN, val=VAL, patience=9, label_smoothing=0.0, hardware=CPU, rows=None):
    """Train a model, and return its history. Nothing is kept of it."""
    torch.manual_seed(0)
    changes = {"epochs": epochs, "learning_rate": learning_rate, "label_smoothing": label_smoothing, "patience": patience}
    trainer = trainer_of(model, train, val, hardware=hardware, **changes)
    with tempfile.TemporaryDirectory() as folder:
        return loop.train(trainer, (rows if rows is not None else []).append, Checkpoint(Path(folder) / "key.pt"))


def score_of(model, val):
    return score(model, val, np.arange(sum(len(labels) for _, labels in val)) % 2 == 0, CPU.device, "val")


def weights_of(model):
    return copy.deepcopy(model.state_dict())


def are_equal(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_the_loss_falls():
    history = train(build_small(), epochs=6)
    assert history[-1]["train_loss"] < history[1]["train_loss"]
    assert history[-1]["val_loss"] < 0.8 * history[0]["val_loss"]


def test_there_are_metrics_of_each_epoch_and_of_the_start():
    assert [row["epoch"] for row in train(build_small(), epochs=2)] == [0, 1, 2]


def test_the_start_has_no_train_figure():
    history = train(build_small(), epochs=1)
    assert list(history[0]) == ["epoch", "learning_rate", "val_loss", "val_accuracy", "val_loss_unscaled"]
    assert list(history[1]) == ["epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_loss_unscaled"]


def test_each_row_is_logged_as_it_comes():
    rows = []
    history = train(build_small(), epochs=2, rows=rows)
    assert rows == history


def test_the_start_is_scored_before_anything_is_trained():
    model = build_small()
    wanted = score_of(copy.deepcopy(model), VAL)
    start = train(build_small(), epochs=1)[0]
    assert {key: start[key] for key in wanted} == pytest.approx(wanted, rel=1e-6)  # there, norms are folded


def test_the_best_epochs_weights_are_left_in_the_model():
    model = build_small()
    val = [(pixels, torch.cat([1 - labels[:2], labels[2:]])) for pixels, labels in VAL]  # some labels are wrong
    history = train(model, epochs=6, learning_rate=0.8, val=val)
    losses = [row["val_loss"] for row in history]
    assert 0 < losses.index(min(losses)) < len(losses) - 1  # neither the start nor the last
    assert score_of(model, val)["val_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_starts_weights_are_left_where_no_epoch_is_better():
    model = build_small()
    train(model, epochs=10)
    start = weights_of(model)
    swapped = [(pixels, 1 - labels) for pixels, labels in TRAIN]
    history = train(model, epochs=2, learning_rate=0.05, train=swapped)
    assert min(history, key=lambda row: row["val_loss"])["epoch"] == 0
    assert are_equal(model.state_dict(), start)


def test_training_stops_after_so_many_epochs_without_a_better_one():
    swapped = [(pixels, 1 - labels) for pixels, labels in TRAIN]
    model = build_small()
    train(model, epochs=10)
    assert len(train(model, epochs=8, learning_rate=0.05, train=swapped, patience=2)) == 4  # the start, the warm-up and two


def test_one_seed_gives_equal_weights_twice():
    first, second = build_small(), build_small()
    histories = [train(model) for model in (first, second)]
    assert histories[0] == histories[1]
    assert are_equal(first.state_dict(), second.state_dict())


def test_batchnorm_does_not_move():
    model = build_small()
    before = weights_of(model)
    train(model)
    moved = {key.removeprefix("backbone.network.") for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"0.weight", "0.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_a_lower_precision_keeps_float32_weights(precision):
    model = build_small()
    history = train(model, hardware=Hardware(torch.device("cpu"), precision))
    assert {tensor.dtype for name, tensor in model.named_parameters()} == {torch.float32}
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_val_is_scored_in_fp32_where_training_is_in_bf16():
    bf16 = train(build_small(), epochs=1, learning_rate=1e-30, hardware=Hardware(torch.device("cpu"), "bf16"))
    fp32 = train(build_small(), epochs=1, learning_rate=1e-30)
    assert bf16[1]["train_loss"] != fp32[1]["train_loss"]
    assert bf16[0] == fp32[0]


def test_epochs_are_ranked_by_the_loss_after_temperature_scaling():
    # The head's weights are tripled: as sure as that, the model has a larger loss, which the temperature repairs.
    model = build_small()
    train(model, epochs=6)
    before = score_of(model, VAL)
    with torch.no_grad():
        model.head.weight *= 3
        model.head.bias *= 3
    after = score_of(model, VAL)
    assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-4)
    assert abs(after["val_loss_unscaled"] - before["val_loss_unscaled"]) > 0.01


def test_a_val_loss_that_is_not_finite_stops_the_run():
    model = build_small()
    nn.init.constant_(model.head.bias, math.nan)
    with pytest.raises(PipelineError) as error:
        train(model)
    assert str(error.value).startswith("epoch 0/3: the val loss is nan; ")


def test_a_train_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(PipelineError) as error:
        train(build_small(), epochs=2, learning_rate=math.inf)
    assert str(error.value).startswith("epoch 1/2, step 2: the train loss is nan; ")


def test_the_scores_are_means_over_pictures_not_over_batches():
    model = build_small().eval()
    (pixels, labels), _ = VAL
    halves = [(pixels[:1], labels[:1]), (pixels[1:], labels[1:])]
    with torch.no_grad():
        logits = model(pixels).numpy().astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(probs[np.arange(len(labels)), labels.numpy()]).mean()
    accuracy = (logits.argmax(axis=1) == labels.numpy()).mean()
    found = score_of(model, halves)
    assert found == pytest.approx({"val_loss": found["val_loss"], "val_accuracy": accuracy, "val_loss_unscaled": loss}, rel=1e-5)


def test_the_train_loss_is_the_smoothed_one():
    # With a rate of zero nothing moves: cross entropy with smoothing s is (1 - s) of the plain one + s of the mean over all classes.
    plain, smooth = (train(build_small(), epochs=1, learning_rate=1e-30, label_smoothing=share)[1]["train_loss"] for share in (0.0, 0.5))
    model = build_small().eval()
    with torch.no_grad():
        uniform = torch.cat([-model(pixels).log_softmax(dim=1).mean(dim=1) for pixels, _ in TRAIN]).mean().item()
    assert smooth == pytest.approx(0.5 * plain + 0.5 * uniform, rel=1e-5)


def test_running_means_are_over_pictures_worked_by_hand():
    means = RunningMeans("epoch 1/1")
    means.add(torch.tensor(1.0), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), 1)
    means.add(torch.tensor(4.0), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]), 2)
    assert means.metrics() == {"train_loss": 3.0, "train_accuracy": pytest.approx(1 / 3)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_finite_number_stops_the_run_and_names_the_step(value):
    means = RunningMeans("epoch 2/3")
    for loss in (1.0, value, 2.0):
        means.add(torch.tensor(loss), torch.zeros(1, 2), torch.tensor([0]), 1)
    with pytest.raises(PipelineError, match=rf"^epoch 2/3, step 2: the train loss is {value}; "):
        means.metrics()


def test_a_long_epoch_is_stopped_before_its_end(monkeypatch):
    monkeypatch.setattr(loop, "_LOOK_EVERY", 3)
    means = RunningMeans("epoch 1/1")
    with pytest.raises(PipelineError, match="step 1"):
        for _ in range(3):
            means.add(torch.tensor(math.nan), torch.zeros(1, 2), torch.tensor([0]), 1)
    assert len(means.counts) == 3
