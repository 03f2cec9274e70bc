"""Optimiser, loss, steps, early stopping: values worked by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.core.errors import PipelineError
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.networks.regimes import Regime
from pipeline.training.recipe import BestEpoch, make_optimiser
from tests.recipes import recipe_of, settings


def build_small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)


PIXELS = torch.randint(0, 256, (6, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.tensor([0, 1, 0, 0, 1, 0])


def optimiser_of(model, regime=Regime(norms=True), **changes):  # noqa: B008 - it is frozen
    return make_optimiser(regime.stages_of(model, model), regime.stages, settings(**changes))


def names_in(model, group):
    names = {id(parameter): name.removeprefix("backbone.network.") for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_only_matrices_and_kernels_decay():
    model = build_small()
    decaying, others = optimiser_of(model, learning_rate=0.1).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert names_in(model, decaying) == {"0.weight", "head.weight"}
    assert names_in(model, others) == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "head.bias"}


def test_a_recipe_leaves_frozen_batchnorm_out_of_the_optimiser():
    model = build_small()
    names = set().union(*(names_in(model, group) for group in recipe_of(model).optimiser.param_groups))
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias", "head.weight", "head.bias"}


def test_a_stage_learns_at_its_share_of_the_next_ones_rate():
    model = build_small()
    regime = Regime(stages=2, stage_of={"2": 1})
    groups = optimiser_of(model, regime, learning_rate=1.0, layer_decay=0.5, weight_decay=0.0).param_groups
    assert [(group["lr"], names_in(model, group)) for group in groups] == [
        (1.0, {"head.weight", "head.bias"}),
        (0.5, {"2.weight", "2.bias"}),
        (0.25, {"0.weight", "0.bias"}),
    ]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_optimiser_is_the_one_that_is_named(name, kind):
    assert type(optimiser_of(build_small(), optimiser=name)) is kind


def test_sgd_has_nesterovs_momentum():
    (group, _) = optimiser_of(build_small(), optimiser="sgd", momentum=0.8).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.8, True)


def test_a_recipe_spreads_its_schedule_over_all_steps_of_all_epochs():
    recipe = recipe_of(build_small(), 5, epochs=2, learning_rate=1.0, warmup=0.5)
    assert recipe.schedule.get_last_lr() == [0.2, 0.2]  # the first of five warm-up steps of ten


def test_two_batches_that_make_one_step_move_as_one_of_both():
    # SGD: the step follows the mean of the two gradients; that of one batch of both halves is the same mean.
    moved = []
    for accumulate, parts in ((2, (slice(0, 3), slice(3, 6))), (1, (slice(0, 6),))):
        model = build_small()
        recipe = recipe_of(model, len(parts), accumulate=accumulate, optimiser="sgd", schedule="constant", warmup=0.0)
        recipe.begin_epoch(1)
        for number, part in enumerate(parts, start=1):
            recipe.step(recipe.loss(PIXELS[part], LABELS[part])[0], number, "epoch 1/1")
        moved.append(model.head.weight.detach())
    torch.testing.assert_close(*moved)
    assert not torch.equal(moved[0], build_small().head.weight)


def test_a_batch_that_is_left_over_counts_as_much_as_a_step_of_its_own():
    moved = []
    for accumulate in (4, 1):
        model = build_small()
        recipe = recipe_of(model, 1, accumulate=accumulate, optimiser="sgd", schedule="constant", warmup=0.0)
        recipe.begin_epoch(1)
        recipe.step(recipe.loss(PIXELS, LABELS)[0], 1, "epoch 1/1")
        moved.append(model.head.weight.detach())
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], build_small().head.weight)


def test_what_is_left_of_an_epoch_makes_a_step_too():
    model = build_small()
    recipe = recipe_of(model, 3, accumulate=2, epochs=1, schedule="constant")
    recipe.begin_epoch(1)
    seen = []
    for number in (1, 2, 3):
        recipe.step(recipe.loss(PIXELS, LABELS)[0], number, "epoch 1/1")
        seen.append(model.head.weight.detach().clone())
    assert torch.equal(seen[0], build_small().head.weight)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_clipped_gradient_has_the_norm_that_is_named():
    model = build_small()
    recipe = recipe_of(model, 1, clip_norm=1e-3, optimiser="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, schedule="constant")
    before = copy.deepcopy(model.state_dict())
    recipe.begin_epoch(1)
    recipe.step(recipe.loss(PIXELS, LABELS)[0], 1, "epoch 1/1")
    moved = torch.cat([(value - before[name]).flatten().float() for name, value in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_finite_number_stops_the_run_and_names_the_step(value):
    with pytest.raises(PipelineError) as error:
        recipe_of(build_small()).step(torch.tensor(value), 7, "epoch 2/3")
    assert str(error.value) == f"epoch 2/3, step 7: the train loss is {value}; lower the learning rate, or say precision: fp32"


def test_rare_classes_weigh_more_in_the_loss():
    model = build_small()
    recipe = recipe_of(model, labels=LABELS.tolist(), balance="loss")
    recipe.begin_epoch(1)
    loss, logits = recipe.loss(PIXELS, LABELS)
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
    recipe = recipe_of(model, classifier=model.classifier)
    loss, logits = recipe.loss(PIXELS, LABELS)
    wanted = functional.cross_entropy(logits, LABELS) + 0.3 * functional.cross_entropy(2 * logits, LABELS)
    torch.testing.assert_close(loss, wanted)


def test_dropout_takes_features_away_in_training_alone():
    model = build_small()
    recipe = recipe_of(model, dropout=0.9)
    torch.manual_seed(0)
    recipe.begin_epoch(1)
    assert not torch.equal(model(PIXELS), model(PIXELS))
    model.eval()
    assert torch.equal(model(PIXELS), model(PIXELS))


@pytest.mark.parametrize(
    "changes", [{"ema": 0.5}, {"schedule": "plateau"}, {"schedule": "one_cycle", "optimiser": "sgd"}, {"accumulate": 2}]
)
def test_a_recipe_that_is_restored_goes_on_as_if_nothing_had_happened(changes):
    def steps(recipe, numbers):
        for number in numbers:
            recipe.begin_epoch(1)
            recipe.step(recipe.loss(PIXELS, LABELS)[0], (number - 1) % 4 + 1, "epoch 1/3")
            if number % 4 == 0:
                recipe.end_epoch({"val_loss": 1.0 + number, "val_accuracy": 0.5})

    whole = build_small()
    undisturbed = recipe_of(whole, 4, **changes)
    steps(undisturbed, range(1, 13))
    first = build_small()
    before = recipe_of(first, 4, **changes)
    steps(before, range(1, 9))
    second = build_small()
    second.load_state_dict(first.state_dict())
    after = recipe_of(second, 4, **changes)
    after.restore(copy.deepcopy(before.state()))
    steps(after, range(9, 13))
    for one, other in ((undisturbed.model, after.model), (undisturbed.average.judged, after.average.judged)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert after.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()


def look(best, losses):
    """Show epochs of these losses, whose weight is their number; whether each was the last."""
    model = nn.Linear(1, 1)
    ends = []
    for epoch, loss in enumerate(losses):
        nn.init.constant_(model.weight, epoch)
        best.see({"val_loss": loss}, model)
        ends.append(best.is_over)
    return ends


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 2, 1], 2), ([1, 2, 3], 0), ([3, 1, 2], 1), ([2, 1, 1], 1)],  # of equal losses the first
)
def test_the_weights_of_the_lowest_loss_are_kept(losses, epoch):
    best = BestEpoch(patience=9)
    look(best, losses)
    assert best.state["weight"].item() == epoch


def test_the_kept_weights_do_not_move_with_the_model():
    best, model = BestEpoch(patience=9), nn.Linear(1, 1)
    best.see({"val_loss": 1.0}, model)
    kept = best.state["weight"].item()
    nn.init.constant_(model.weight, 7)
    assert best.state["weight"].item() == kept != 7


def test_what_is_kept_knows_the_versions_of_the_layers_without_which_some_refuse_it():
    best, model = BestEpoch(patience=9), nn.BatchNorm2d(1)
    best.see({"val_loss": 1.0}, model)
    assert best.state._metadata == model.state_dict()._metadata


@pytest.mark.parametrize(
    ("patience", "losses", "ends"),
    [
        (1, [3, 2, 2], [False, False, True]),
        (2, [3, 4, 5], [False, False, True]),
        (2, [3, 4, 2, 4, 3], [False, False, False, False, True]),
        (3, [3, 4, 5], [False, False, False]),
    ],
)
def test_it_is_over_after_so_many_epochs_without_a_lower_loss(patience, losses, ends):
    assert look(BestEpoch(patience), losses) == ends


def test_the_highest_accuracy_is_the_best_where_that_is_watched():
    best, model = BestEpoch(patience=2, monitor="val_accuracy"), nn.Linear(1, 1)
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8]):
        nn.init.constant_(model.weight, epoch)
        best.see({"val_loss": 0.1, "val_accuracy": accuracy}, model)
    assert best.state["weight"].item() == 1
    assert best.is_over
