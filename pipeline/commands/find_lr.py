"""`pipeline find-lr`: the loss of an entry of `models` as its learning rate rises, drawn, and the rate to take."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.params import read_params, read_section

_MADE_BY = ("data/manifest.csv", "data/splits/train", "data/embeddings/embedding.json", "models/backbone/backbone.json", "models/baseline")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("find-lr", help="draw the loss as the learning rate rises, and name the rate to take")
    parser.add_argument("model", nargs="?", help="an entry of `models` in params.yaml (default: the first)")
    parser.add_argument("--steps", type=int, default=100, help="of training, at most (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE.png", default="find_lr.png", help="the picture to draw (default: %(default)s)")
    parser.set_defaults(run=find_lr, here=Path.cwd())


def find_lr(parsed: argparse.Namespace) -> None:
    """Train a copy with a rising rate, draw the curve, and print the rate. Raises PipelineError."""
    from pipeline.evaluation.figures import plot_rates
    from pipeline.serving.rows import target, writing
    from pipeline.training.rate_finder import find_rates

    output = target(parsed.here, parsed.output)
    names = list(read_params().get("models") or {})
    name = str(parsed.model or next(iter(names), ""))
    if name not in names:
        raise PipelineError(f"find-lr {name}: is no entry of `models` in params.yaml; there: {', '.join(names) or 'none'}")
    if parsed.steps < 20:
        raise PipelineError(f"--steps: {parsed.steps} is not at least 20")
    for path in _MADE_BY:
        if not Path(path).exists():
            raise PipelineError(f"{path}: is not there; run `dvc repro`")
    with tempfile.TemporaryDirectory() as folder:
        course, hardware = _prepare(name, Path(folder) / "activations.npy")
        curve = find_rates(course, hardware, parsed.steps)
    with writing(output):
        plot_rates(output, curve.rates, curve.losses, curve.suggestion, f"{name}: the loss as the learning rate rises")
    print(f"models.{name}.learning_rate: {curve.suggestion:g}")
    print(output)


def _prepare(name: str, activations: Path) -> tuple[Any, Any]:
    """The course of an entry of `models` on the pictures that `dvc repro` laid out, and the hardware."""
    from pipeline.data.manifest import class_names, read_manifest
    from pipeline.training.course import begin, choose_hardware, gather, prepare
    from pipeline.training.settings import Settings, settle

    splits, manifest, backbone = Path("data/splits"), Path("data/manifest.csv"), Path("models/backbone")
    training = read_manifest(manifest, "train")
    stated = settle(read_section(f"models.{name}", Settings), len(training))
    settings = stated.model_copy(update={"schedule": "constant", "accumulate": 1, "ema": 0.0})  # the finder sets the rate, step by step
    hardware = choose_hardware(settings)
    embedding = read_json(Path("data/embeddings/embedding.json"))
    material = gather(settings, splits / "train", splits / "val", manifest, embedding)
    classifier = begin(settings, backbone, Path("models/baseline"), len(class_names(training)))
    return prepare(classifier, material, settings, backbone, hardware, activations), hardware
