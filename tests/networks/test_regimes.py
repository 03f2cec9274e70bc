"""The regimes by name: what they train, and which front they leave alone."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.networks.regimes import make_plan


@pytest.fixture(scope="module")
def backbone(backbone_of):
    return backbone_of("timm/test_resnet")


def plan_of(backbone, name, stages=2, batchnorm="auto", epochs=8, by_stage=False):
    return make_plan(name, stages, batchnorm, epochs, by_stage, backbone, 64)


@pytest.mark.parametrize(
    ("name", "stages", "first", "has_front", "front_end"),
    [
        ("finetuned", 2, 0, False, None),
        ("scratch", 2, 0, False, None),
        ("gradual", 2, 0, False, None),
        ("partial", 1, 4, True, "layer3"),
        ("partial", 2, 3, True, "layer2"),
        ("partial", 5, 0, False, None),  # all there are
        ("frozen", 2, 1, True, None),  # the whole network, as one stage
    ],
)
def test_a_regime_trains_from_a_stage_on_and_runs_what_is_before_it_once(backbone, name, stages, first, has_front, front_end):
    plan = plan_of(backbone, name, stages)
    assert (plan.regime.first, plan.has_front, plan.front_end) == (first, has_front, front_end)


def test_gradual_joins_its_stages_over_the_first_half_of_the_epochs(backbone):
    regime = plan_of(backbone, "gradual", epochs=10).regime
    assert [regime.first_stage(epoch) for epoch in range(1, 8)] == [4, 3, 2, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "batchnorm", "norms"),
    [
        ("finetuned", "auto", False),
        ("partial", "auto", False),
        ("scratch", "auto", True),
        ("finetuned", "training", True),
        ("scratch", "frozen", False),
    ],
)
def test_batchnorm_learns_from_scratch_or_where_that_is_said(backbone, name, batchnorm, norms):
    assert plan_of(backbone, name, batchnorm=batchnorm).regime.norms is norms


def test_stages_are_looked_for_only_where_they_matter(backbone):
    assert plan_of(backbone, "finetuned").regime.stage_of == {}
    assert plan_of(backbone, "finetuned", by_stage=True).regime.stages == 5


def test_more_stages_than_there_are_are_refused_with_a_list(backbone):
    with pytest.raises(PipelineError) as error:
        plan_of(backbone, "partial", 6)
    assert str(error.value) == (
        "params.yaml: models: stages: 6 are more than the 5 of this backbone, which end at act1, layer1, layer2, layer3, "
        "the features; choose fewer"
    )
