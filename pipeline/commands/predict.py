"""`pipeline predict`: ask a stored model about pictures. ONNX Runtime answers; torch is never imported."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import add_row_arguments, answer
from pipeline.commands.pictures import add_command

if TYPE_CHECKING:
    from pipeline.serving.predictor import Predictor

_ABOUT = """\
Ask a stored model about pictures: a row a picture, in the order in which they are named.

Probabilities are calibrated and have six places. CSV has the columns path, predicted, probability (of the most
probable class) and prob_<class> for each class, with --top K in their place top_1, top_1_prob and so on. A JSON line has
the keys path, predicted, probability, probs. Where the model abstains, predicted is empty (JSON: null)."""

_EXAMPLES = """\
  pipeline predict pictures/ --sheet sheet.png > answers.csv
  find /photos -name '*.jpg' -print0 | pipeline predict -0 - --format jsonl --abstain-below 0.9"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "predict", "ask a stored model about pictures", _ABOUT, _EXAMPLES)
    parser.add_argument("--model", metavar="NAME|FOLDER", help="one of models/, or a model's folder (default: the lowest val loss)")
    add_row_arguments(parser, top=None)
    parser.set_defaults(run=predict)


def predict(parsed: argparse.Namespace) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.serving.choice import find_model, open_model

    def open_stored(threads: int) -> tuple[str, "Predictor"]:
        folder = find_model(parsed.model, Path("models"), parsed.here)
        return folder.name, open_model(folder, threads)

    answer(parsed, "predict", open_stored)
