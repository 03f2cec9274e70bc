"""The recipe: what `auto` means, optimisers and their groups, averaged weights, early stopping; values worked by hand."""

import pytest
import torch
import yaml
from timm.optim import list_optimizers
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.sections import read_section
from pipeline.networks.classifier import Backbone, Classifier
from pipeline.networks.regimes import Regime
from pipeline.training.recipe import EarlyStopping, Recipe, WeightAverage, make_optimiser, resolve_auto, training_size
from tests.recipes import PLAIN, recipe_of

AUTO = {"epochs": "auto", "learning_rate": "auto", "mixup": "auto"}
REGIMES = {False: "finetuned", True: "scratch"}


@pytest.mark.parametrize(
    ("pictures", "from_scratch", "epochs"),
    [(100, False, 12), (500, False, 10), (1257, False, 4), (100_000, False, 4), (100, True, 50), (500, True, 50), (100_000, True, 10)],
)
def test_the_fewer_the_pictures_the_more_epochs(pictures, from_scratch, epochs):
    assert resolve_auto(recipe_of(**AUTO, regime=REGIMES[from_scratch]), pictures).epochs == epochs


@pytest.mark.parametrize(
    ("optimiser", "from_scratch", "rate"),
    [("adamw", False, 3e-4), ("adamw", True, 1e-3), ("adam", False, 3e-4), ("sgd", False, 3e-3), ("sgd", True, 3e-2)],
)
def test_a_network_that_knows_something_learns_slower(optimiser, from_scratch, rate):
    assert resolve_auto(recipe_of(**AUTO, optimiser=optimiser, regime=REGIMES[from_scratch]), 100).learning_rate == rate


@pytest.mark.parametrize(("pictures", "alpha"), [(19_999, 0.0), (20_000, 0.1)])
def test_large_data_alone_are_mixed(pictures, alpha):
    assert resolve_auto(recipe_of(**AUTO), pictures).mixup == alpha


def test_what_is_stated_stays():
    stated = recipe_of(regime="scratch", epochs=7, learning_rate=0.5, mixup=0.3)
    assert resolve_auto(stated, 100) == stated


def build_small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(Backbone(nn.Sequential(*layers), (0.5,) * 3, (0.5,) * 3), 4, 2)


def optimiser_of(model, regime=Regime(norms=True), **changes):  # noqa: B008 - it is frozen
    return make_optimiser(regime.stages_of(model, model), regime.stages, recipe_of(**changes))


def names_in(model, group):
    names = {id(parameter): name.removeprefix("backbone.network.") for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_only_matrices_and_kernels_decay():
    model = build_small()
    decaying, others = optimiser_of(model, learning_rate=0.1).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert names_in(model, decaying) == {"0.weight", "head.weight"}
    assert names_in(model, others) == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "head.bias"}


def test_a_stage_learns_at_its_share_of_the_next_ones_rate():
    model = build_small()
    regime = Regime(stages=2, stage_of={"2": 1})
    groups = optimiser_of(model, regime, learning_rate=1.0, layer_decay=0.5, weight_decay=0.0).param_groups
    assert [(group["lr"], names_in(model, group)) for group in groups] == [
        (1.0, {"head.weight", "head.bias"}),
        (0.5, {"2.weight", "2.bias"}),
        (0.25, {"0.weight", "0.bias"}),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "dampening": 0}),
    ],
)
def test_the_usual_optimisers_are_those_of_torch(name, kind, options):
    optimiser = optimiser_of(build_small(), optimiser=name, momentum=0.8)
    assert type(optimiser) is kind
    assert [{key: group[key] for key in options} for group in optimiser.param_groups] == [options] * 2


def test_sgd_takes_a_momentum_of_zero():
    assert optimiser_of(build_small(), optimiser="sgd", momentum=0.0).param_groups[0]["momentum"] == 0


ON_CUDA_ALONE = ("bnb", "fused")
SLOW = ("kron",)  # it compiles


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith(SLOW) else ()) for name in list_optimizers() if name != "adahessian"],
)
@pytest.mark.filterwarnings("ignore")
def test_every_optimiser_of_timm_takes_a_step_or_is_refused_in_one_line(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    recipe = recipe_of(optimiser=name, learning_rate=0.1)
    if name.startswith(ON_CUDA_ALONE):
        if torch.cuda.is_available():
            pytest.skip("a library of its own decides")
        with pytest.raises(PipelineError, match=f"recipe.optimiser: '{name}'"):
            make_optimiser(dict.fromkeys(model.parameters(), 0), 0, recipe)
        return
    optimiser = make_optimiser(dict.fromkeys(model.parameters(), 0), 0, recipe)
    before = model.weight.detach().clone()
    for _ in range(2):  # the first step of some does not move
        model(torch.eye(4)).square().mean().backward()
        optimiser.step()
    assert not torch.equal(model.weight, before)
    assert model.weight.isfinite().all()


@pytest.mark.parametrize(("name", "fault"), [("adamww", "'adamw'"), ("adahessian", "second derivatives")])
def test_an_optimiser_that_cannot_train_is_refused_before_anything_is_read(name, fault, tmp_path):
    params = {**PLAIN, "regime": "finetuned", "optimiser": name}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"seed": 0, "threads": 1, "recipe": params}))
    with pytest.raises(PipelineError, match=f"recipe.optimiser: '{name}' .*{fault}"):
        read_section("recipe", Recipe, tmp_path / "params.yaml")


def averaged_over(values, decay):
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    return average, average.scored.weight.item()


def test_without_a_decay_the_model_itself_is_scored():
    average, _ = averaged_over([1, 2], 0.0)
    assert average.scored is average.model


@pytest.mark.parametrize(
    ("decay", "values", "wanted"),
    [
        (0.9, [1.0], 1.0),  # the first step is taken as it is
        (0.9, [1.0, 2.0], 1.0 * 2 / 11 + 2.0 * 9 / 11),  # a young average follows quickly: (1 + 1) / (10 + 1) of it is kept
        (0.1, [1.0, 2.0, 3.0], (0.1 * 1 + 0.9 * 2) * 0.1 + 0.9 * 3),
    ],
)
def test_the_average_keeps_a_share_of_itself(decay, values, wanted):
    assert averaged_over(values, decay)[1] == pytest.approx(wanted, rel=1e-6)


def test_batchnorms_statistics_are_averaged_too():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.5)
    for value in (0.0, 1.0):
        nn.init.constant_(model.running_mean, value)
        average.update()
    assert 0 < average.scored.running_mean.item() < 1


def test_a_restored_average_is_where_it_was():
    first, value = averaged_over([1, 2, 5], 0.5)
    second = WeightAverage(nn.Linear(1, 1, bias=False), 0.5)
    second.restore(first.state())
    assert second.scored.weight.item() == value
    nn.init.constant_(second.model.weight, 7)
    nn.init.constant_(first.model.weight, 7)
    second.update(), first.update()
    assert torch.equal(first.scored.weight, second.scored.weight)


def test_what_does_not_move_stays_exactly_as_it_is():
    model = nn.Linear(100, 100)
    average = WeightAverage(model, 0.9)
    for _ in range(20):
        average.update()
    assert torch.equal(average.scored.weight, model.weight)


def see_all(best, losses):
    """Epochs of these losses, whose weight is their number; whether each was the last."""
    model = nn.Linear(1, 1)
    ends = []
    for epoch, loss in enumerate(losses):
        nn.init.constant_(model.weight, epoch)
        best.see({"epoch": epoch, "val_loss": loss}, model)
        ends.append(best.is_over)
    return ends


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 2, 1], 2), ([1, 2, 3], 0), ([3, 1, 2], 1), ([2, 1, 1], 1)],  # of equal losses the first
)
def test_the_weights_of_the_lowest_loss_are_kept(losses, epoch):
    best = EarlyStopping(patience=9)
    see_all(best, losses)
    assert best.weights["weight"].item() == epoch


def test_the_kept_weights_do_not_move_with_the_model():
    best, model = EarlyStopping(patience=9), nn.Linear(1, 1)
    best.see({"epoch": 0, "val_loss": 1.0}, model)
    kept = best.weights["weight"].item()
    nn.init.constant_(model.weight, 7)
    assert best.weights["weight"].item() == kept != 7


def test_what_is_kept_knows_the_versions_of_the_layers_without_which_some_refuse_it():
    best, model = EarlyStopping(patience=9), nn.BatchNorm2d(1)
    best.see({"epoch": 0, "val_loss": 1.0}, model)
    assert best.weights._metadata == model.state_dict()._metadata


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
    assert see_all(EarlyStopping(patience), losses) == ends


def test_epochs_of_the_warm_up_do_not_count():
    assert see_all(EarlyStopping(2, warmup_epochs=3), [3, 4, 4, 4, 4, 4]) == [False] * 5 + [True]
    assert see_all(EarlyStopping(2, warmup_epochs=1), [3, 4, 2, 4, 4]) == [False] * 4 + [True]


def test_the_highest_accuracy_is_the_best_where_that_is_watched():
    best, model = EarlyStopping(patience=2, monitor="val_accuracy"), nn.Linear(1, 1)
    for epoch, accuracy in enumerate([0.5, 0.9, 0.7, 0.8]):
        nn.init.constant_(model.weight, epoch)
        best.see({"epoch": epoch, "val_loss": 0.1, "val_accuracy": accuracy}, model)
    assert best.weights["weight"].item() == 1
    assert best.is_over


@pytest.mark.parametrize(("image_size", "side"), [(64, 64), (128, 128), (160, 128), (224, 160), (299, 224), (384, 288)])
def test_training_crops_are_smaller_than_large_pictures(image_size, side):
    assert training_size("auto", image_size, lambda _: True) == side


@pytest.mark.parametrize(("named", "side"), [(96, 96), (None, 224)])
def test_training_crops_have_the_size_that_is_named(named, side):
    assert training_size(named, 224, lambda _: True) == side


def test_a_network_of_one_size_is_trained_at_it():
    assert training_size("auto", 224, lambda side: side == 224) == training_size(224, 224, lambda _: False) == 224


def test_a_named_size_that_the_network_refuses_is_one_line():
    with pytest.raises(PipelineError) as error:
        training_size(100, 224, lambda side: side == 224)
    assert str(error.value) == "params.yaml: train_image_size: the backbone refuses 100; set auto, or 224"
