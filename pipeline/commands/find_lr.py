"""`pipeline find-lr`: the loss of an entry of `models` as its learning rate rises, drawn, and the rate to take."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.outs import choose_entry, find_inputs
from pipeline.commands.pictures import png
from pipeline.errors import PipelineError
from pipeline.files import atomic_file
from pipeline.params import read_section

if TYPE_CHECKING:
    from pipeline.training.course import Course, Inputs
    from pipeline.training.finetune import Hardware


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("find-lr", help="draw the loss as the learning rate rises, and name the rate to take")
    parser.add_argument("model", nargs="?", help="an entry of `models` in params.yaml (default: the first)")
    parser.add_argument("--steps", type=int, default=100, help="of training, at most (default: %(default)s)")
    parser.add_argument("--output", type=png, metavar="FILE.png", default="find_lr.png", help="the picture to draw (default: %(default)s)")
    parser.set_defaults(run=find_lr, here=Path.cwd())


def find_lr(parsed: argparse.Namespace) -> None:
    """Train a copy with a rising rate, draw the curve, and print the rate. Raises PipelineError."""
    from pipeline.evaluation.figures import plot_rates
    from pipeline.serving.rows import target, writing
    from pipeline.training.rate_finder import find_rates

    output = target(parsed.here, parsed.output)
    name = choose_entry("find-lr", parsed.model)
    if parsed.steps < 20:
        raise PipelineError(f"--steps: {parsed.steps} is not at least 20")
    inputs = find_inputs()
    with tempfile.TemporaryDirectory() as folder:
        course, hardware = _prepare(name, inputs, Path(folder) / "activations.npy")
        curve = find_rates(course, hardware, parsed.steps)
    with writing(output), atomic_file(output) as partial:
        plot_rates(partial, curve.rates, curve.losses, curve.suggestion, f"{name}: the loss as the learning rate rises")
    print(f"models.{name}.learning_rate: {curve.suggestion:g}")
    print(output)


def _prepare(name: str, inputs: "Inputs", activations: Path) -> "tuple[Course, Hardware]":
    """The course of an entry of `models`, and the hardware."""
    from pipeline.data.manifest import read_manifest
    from pipeline.training.course import choose_hardware, make_ready
    from pipeline.training.settings import Settings, settle

    stated = settle(read_section(f"models.{name}", Settings), len(read_manifest(inputs.manifest, "train")))
    settings = stated.model_copy(update={"schedule": "constant", "accumulate": 1, "ema": 0.0})  # the finder sets the rate, step by step
    hardware = choose_hardware(settings)
    _, _, course = make_ready(settings, inputs, hardware, activations)
    return course, hardware
