"""`pipeline summary`: the layers of the backbone, or of a model, and which of them are trained."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.outs import BACKBONE, check_backbone, read_backbone

if TYPE_CHECKING:
    from torch import nn

_COLUMNS = ("input_size", "output_size", "num_params", "trainable")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("summary", help="print the layers of the backbone or of a model, their shapes and sizes")
    parser.add_argument("--model", metavar="NAME", help="a name in models/, or a folder (default: the backbone alone)")
    parser.set_defaults(run=lambda parsed: print(describe(parsed.model, parsed.here)), here=Path.cwd())


def describe(model: str | None, here: Path) -> str:
    """A row a layer: what goes in, what comes out, how many parameters, and whether they are trained. Raises PipelineError."""
    facts = read_backbone()

    import torch
    import torchinfo

    network, side = _open_model(model, here) if model else _open_backbone(facts)
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    depth = 4 if model else 3  # a classifier holds the backbone one level deeper
    table = torchinfo.summary(
        network, input_data=pixels, col_names=_COLUMNS, row_settings=("var_names",), depth=depth, mode="eval", verbose=0
    )
    return re.sub(r"Units\.([A-Z])[A-Z]+", r"\1", str(table))  # since Python 3.11 it names its own constants


def _open_backbone(facts: dict[str, Any]) -> tuple["nn.Module", int]:
    from pipeline.models.classifier import freeze_norms, load_backbone

    backbone = load_backbone(BACKBONE)[0]
    freeze_norms(backbone)
    return backbone, facts["architecture"]["image_size"]


def _open_model(name: str, here: Path) -> tuple["nn.Module", int]:
    """The classifier that a model folder stores, as its regime trains it in the end, and the side of its pictures in pixels."""
    from pipeline.models.artifact import read_facts
    from pipeline.models.classifier import load_classifier
    from pipeline.models.regimes import make_plan
    from pipeline.serving.choice import find_model

    folder = find_model(name, Path("models"), here)
    told = read_facts(folder)
    check_backbone(folder)
    params, side = told["params"], told["preprocessing"]["image_size"]
    classifier = load_classifier(BACKBONE, folder, len(told["class_names"]))
    name, batchnorm = params.get("regime", "frozen"), params.get("batchnorm", "frozen")  # the baseline has neither
    regime = make_plan(name, params.get("stages", 1), batchnorm, params.get("epochs", 1), False, classifier.backbone, side).regime
    regime.train_mode(classifier, classifier, regime.thaw_epochs)
    return classifier, side
