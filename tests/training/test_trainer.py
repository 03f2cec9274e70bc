"""The trainer: losses, steps over several batches, clipping, resuming; values worked by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.core.hardware import Hardware
from pipeline.networks.classifier import Backbone, Classifier
from tests.recipes import trainer_of


def build_small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)


PIXELS = torch.randint(0, 256, (6, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.tensor([0, 1, 0, 0, 1, 0])
ALL = (PIXELS, LABELS)


def test_a_trainer_leaves_frozen_batchnorm_out_of_the_optimiser():
    model = build_small()
    names = {id(parameter): name.removeprefix("backbone.network.") for name, parameter in model.named_parameters()}
    trained = {names[id(parameter)] for group in trainer_of(model).optimiser.param_groups for parameter in group["params"]}
    assert trained == {"0.weight", "0.bias", "2.weight", "2.bias", "head.weight", "head.bias"}


def test_a_trainer_spreads_its_schedule_over_all_steps_of_all_epochs():
    trainer = trainer_of(build_small(), (ALL,) * 5, epochs=2, learning_rate=1.0, warmup=0.5)
    assert trainer.schedule.get_last_lr() == [0.2, 0.2]  # the first of five warm-up steps of ten


@pytest.mark.parametrize(
    ("accumulate", "sizes"),
    [(2, (3, 3)), (2, (4, 2)), (3, (4, 1, 1)), (4, (5, 1)), (4, (6,))],
    ids=["full", "short last batch", "unequal batches", "short last group and batch", "one batch"],
)
def test_batches_that_make_one_step_move_as_one_batch_of_all_their_pictures(accumulate, sizes):
    # SGD without weight decay: a weight moves by the gradient alone.
    moved = []
    for together, parts in ((accumulate, sizes), (1, (6,))):
        model = build_small()
        batches = list(zip(PIXELS.split(parts), LABELS.split(parts), strict=True))
        plain = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
        trainer = trainer_of(model, batches, accumulate=together, **plain)
        trainer.begin_epoch(1)
        for number, batch in enumerate(batches, start=1):
            trainer.step(trainer.loss(*batch)[0], number)
        moved.append(model.head.weight.detach())
    torch.testing.assert_close(*moved)
    assert not torch.equal(moved[0], build_small().head.weight)


def test_what_is_left_of_an_epoch_makes_a_step_too():
    model = build_small()
    trainer = trainer_of(model, (ALL,) * 3, accumulate=2, epochs=1, schedule="constant")
    trainer.begin_epoch(1)
    seen = []
    for number in (1, 2, 3):
        trainer.step(trainer.loss(PIXELS, LABELS)[0], number)
        seen.append(model.head.weight.detach().clone())
    assert torch.equal(seen[0], build_small().head.weight)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_clipped_gradient_has_the_norm_that_is_named():
    model = build_small()
    changes = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant"}
    trainer = trainer_of(model, [ALL], clip_norm=1e-3, **changes)
    before = copy.deepcopy(model.state_dict())
    trainer.begin_epoch(1)
    trainer.step(trainer.loss(PIXELS, LABELS)[0], 1)
    moved = torch.cat([(value - before[name]).flatten().float() for name, value in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_that_is_too_small_for_fp16_survives():
    gradients = []
    for precision in ("fp32", "fp16"):
        model = build_small()
        model.head.weight.data *= 1e-6  # so are the gradients of what is before it: 1e-8, where fp16 ends at 6e-8
        trainer = trainer_of(model, (ALL,), hardware=Hardware(torch.device("cpu"), precision))
        trainer.begin_epoch(1)
        with trainer.hardware.autocast():
            loss, _ = trainer.loss(PIXELS, LABELS)
        trainer.scaler.scale(loss).backward()
        trainer.scaler.unscale_(trainer.optimiser)
        gradients.append(next(model.backbone.parameters()).grad)
    assert gradients[0].abs().max() < 6e-8
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.1, atol=1e-9)


def test_rare_classes_weigh_more_in_the_loss():
    model = build_small()
    trainer = trainer_of(model, labels=LABELS.tolist(), balance="loss")
    trainer.begin_epoch(1)
    loss, logits = trainer.loss(PIXELS, LABELS)
    wanted = functional.cross_entropy(logits, LABELS, torch.tensor([6 / 2 / 4, 6 / 2 / 2]))
    torch.testing.assert_close(loss, wanted)


def test_side_heads_add_a_share_of_their_loss():
    class WithSides(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = build_small()

        def forward(self, pixels):
            logits = self.classifier(pixels)
            return logits, 2 * logits

    model = WithSides()
    trainer = trainer_of(model, classifier=model.classifier)
    loss, logits = trainer.loss(PIXELS, LABELS)
    wanted = functional.cross_entropy(logits, LABELS) + 0.3 * functional.cross_entropy(2 * logits, LABELS)
    torch.testing.assert_close(loss, wanted)


def test_dropout_takes_features_away_in_training_alone():
    model = build_small()
    trainer = trainer_of(model, dropout=0.9)
    torch.manual_seed(0)
    trainer.begin_epoch(1)
    assert not torch.equal(model(PIXELS), model(PIXELS))
    model.eval()
    assert torch.equal(model(PIXELS), model(PIXELS))


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.5},
        {"schedule": "plateau"},
        {"schedule": "one_cycle", "optimiser": "sgd"},
        {"accumulate": 2},
        {"hardware": Hardware(torch.device("cpu"), "fp16")},
    ],
)
def test_a_trainer_that_is_restored_goes_on_as_if_nothing_had_happened(changes):
    def steps(trainer, numbers):
        for number in numbers:
            trainer.begin_epoch(1)
            trainer.step(trainer.loss(PIXELS, LABELS)[0], (number - 1) % 4 + 1)
            if number % 4 == 0:
                trainer.end_epoch({"epoch": number // 4, "val_loss": 1.0 + number, "val_accuracy": 0.5})

    whole = build_small()
    undisturbed = trainer_of(whole, (ALL,) * 4, **changes)
    steps(undisturbed, range(1, 13))
    first = build_small()
    before = trainer_of(first, (ALL,) * 4, **changes)
    steps(before, range(1, 9))
    second = build_small()
    second.load_state_dict(first.state_dict())
    after = trainer_of(second, (ALL,) * 4, **changes)
    after.restore(copy.deepcopy(before.state()))
    steps(after, range(9, 13))
    for one, other in ((undisturbed.model, after.model), (undisturbed.average.scored, after.average.scored)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert after.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()
