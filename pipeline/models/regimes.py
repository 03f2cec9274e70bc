"""The regimes by name: which stages of a network are trained, and from where on it is run again in every epoch."""

from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.models.classifier import Backbone, Regime
from pipeline.models.depth import measure

_WHOLE = ("finetuned", "scratch")


@dataclass(frozen=True)
class Plan:
    """A regime, and the front of the network that never moves and is run once a picture, if it `has_front`.

    `front_end`: the layer that ends it; None where it is the whole network.
    """

    regime: Regime
    has_front: bool = False
    front_end: str | None = None


def make_plan(name: str, stages: int, batchnorm: str, epochs: int, by_stage: bool, backbone: Backbone, image_size: int) -> Plan:
    """The regime of that name: frozen, partial (the last `stages`), gradual (over the first half of the epochs), finetuned or scratch.

    `batchnorm`: training (where its stage learns), frozen, or auto, which is frozen but for scratch; `by_stage`: whether the
    rates differ by stage. Raises PipelineError.
    """
    norms = name == "scratch" if batchnorm == "auto" else batchnorm == "training"
    if name in _WHOLE and not by_stage:
        return Plan(Regime(norms=norms))
    if name == "frozen":
        return Plan(Regime(first=1, norms=norms), has_front=True)
    depth = measure(backbone, image_size)
    if name == "partial" and stages > depth.count:
        ends = ", ".join((*depth.ends, "the features"))
        raise PipelineError(
            f"params.yaml: models: stages: {stages} are more than the {depth.count} that the backbone has, which end at {ends}; say fewer"
        )
    first = depth.count - stages if name == "partial" else 0
    thaw_epochs = max(1, epochs // 2) if name == "gradual" else 0
    regime = Regime(depth.count, depth.stage_of, first, thaw_epochs, norms)
    return Plan(regime, first > 0, depth.ends[first - 1] if first > 0 else None)
