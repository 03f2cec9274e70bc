"""Fetch the pretrained network: its weights as safetensors, and a description of it."""

from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeInt, StringConstraints

from pipeline.core import stage
from pipeline.core.sections import Section
from pipeline.networks.weights import write_backbone


class Params(Section):  # section `backbone` of params.yaml
    seed: NonNegativeInt  # of the random weights if `weights` is none
    name: str
    weights: str  # packaged, pretrained, none, a file, or a model folder of this pipeline
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None


def run(params: Params, backbone: Path) -> None:
    """Build the architecture, load its weights, and write the folder `backbone`."""
    write_backbone(backbone, params.name, params.weights, params.digest, params.seed)


if __name__ == "__main__":
    stage.main("backbone", Params, run)
