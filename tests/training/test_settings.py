"""What `auto` stands for: by the number of pictures, and by whether the network knows anything."""

import pytest

from pipeline.training.recipe import resolve_auto
from tests.recipes import settings

AUTO = {"epochs": "auto", "learning_rate": "auto", "mixup": "auto"}
REGIMES = {False: "finetuned", True: "scratch"}


@pytest.mark.parametrize(
    ("pictures", "from_scratch", "epochs"),
    [(100, False, 12), (500, False, 10), (1257, False, 4), (100_000, False, 4), (100, True, 50), (500, True, 50), (100_000, True, 10)],
)
def test_the_fewer_the_pictures_the_more_epochs(pictures, from_scratch, epochs):
    assert resolve_auto(settings(**AUTO, regime=REGIMES[from_scratch]), pictures).epochs == epochs


@pytest.mark.parametrize(
    ("optimiser", "from_scratch", "rate"),
    [("adamw", False, 3e-4), ("adamw", True, 1e-3), ("adam", False, 3e-4), ("sgd", False, 3e-3), ("sgd", True, 3e-2)],
)
def test_a_network_that_knows_something_learns_slower(optimiser, from_scratch, rate):
    assert resolve_auto(settings(**AUTO, optimiser=optimiser, regime=REGIMES[from_scratch]), 100).learning_rate == rate


@pytest.mark.parametrize(("pictures", "alpha"), [(19_999, 0.0), (20_000, 0.1)])
def test_large_data_alone_are_mixed(pictures, alpha):
    assert resolve_auto(settings(**AUTO), pictures).mixup == alpha


def test_what_is_stated_stays():
    stated = settings(regime="scratch", epochs=7, learning_rate=0.5, mixup=0.3)
    assert resolve_auto(stated, 100) == stated
