"""Bring the pretrained network: its weights as safetensors, and what it is in a table for people."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeInt, StringConstraints

from pipeline import stage
from pipeline.files import atomic_dir, write_json
from pipeline.models import weights, zoo
from pipeline.params import Section


class Params(Section):  # section `backbone` of params.yaml
    seed: NonNegativeInt  # draws the weights where `weights` is none
    name: str
    weights: str  # packaged, pretrained, none, a file, or a model folder of this pipeline
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None


def run(params: Params, backbone: Path) -> None:
    """Build the architecture, fill it, and write the folder `backbone`."""
    architecture = zoo.find_architecture(params.name)

    import torch

    from pipeline.models.classifier import fill, headless, save_tensors
    from pipeline.models.maps import find_feature_map

    torch.manual_seed(params.seed)
    network = zoo.build(architecture)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    tensors = network.state_dict()  # those of the head too, which the network is about to lose
    body = headless(network, architecture).eval()
    kept = network.state_dict()
    head_tensors = [key for key in tensors if key not in kept]
    origin = weights.load_weights(tensors, architecture, params.weights, params.digest, head_tensors)
    fill(network, {key: tensors[key] for key in kept})
    facts = {
        "architecture": asdict(architecture),
        "head": zoo.name_heads(head_tensors),
        "head_tensors": head_tensors,
        "num_features": zoo.count_features(body, architecture),
        "parameters": parameters,
        "feature_map": find_feature_map(body, architecture.image_size),
        "weights": asdict(origin),
    }
    with atomic_dir(backbone) as partial:
        save_tensors(tensors, partial / "weights.safetensors")
        write_json(partial / "backbone.json", facts)


if __name__ == "__main__":
    stage.main("backbone", Params, run)
