"""`pipeline predict` and `pipeline explain`: run a stored model on pictures."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.commands.answering import add_command, add_row_arguments, answer, png
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.params import read_threads
from pipeline.networks.artifact import BACKBONE, check_backbone

if TYPE_CHECKING:
    from pipeline.evaluation.galleries import Cell
    from pipeline.serving.predictor import Predictor

_ABOUT = """\
Ask a stored model about pictures: a row a picture, in the order in which they are named.

Probabilities are calibrated and have six places. CSV has the columns path, predicted, probability (of the most
probable class) and prob_<class> for each class, with --top K in their place top_1, top_1_prob and so on. A JSON line has
the keys path, predicted, probability, probs. Where the model abstains, predicted is empty (JSON: null)."""


_EXAMPLES = """\
  pipeline predict pictures/ --sheet sheet.png > answers.csv
  find /photos -name '*.jpg' -print0 | pipeline predict -0 - --format jsonl --abstain-below 0.9"""


def add_predict(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "predict", "ask a stored model about pictures", _ABOUT, _EXAMPLES)
    parser.add_argument("--model", metavar="NAME|FOLDER", help="one of models/, or a model's folder (default: the lowest val loss)")
    add_row_arguments(parser, top=None)
    parser.set_defaults(run=predict)


def predict(parsed: argparse.Namespace) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.networks.artifact import find_model
    from pipeline.serving.predictor import open_model

    def open_stored(threads: int) -> tuple[str, "Predictor"]:
        folder = find_model(parsed.model, Path("models"), parsed.here)
        return folder.name, open_model(folder, threads)

    answer(parsed, "predict", open_stored)


Array = np.ndarray[Any, np.dtype[Any]]
_SHOWN = 50  # pictures on the sheet


def add_explain(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("explain", help="draw where a model looked in pictures (Grad-CAM)")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"a picture, or a folder of pictures; the first {_SHOWN} are drawn")
    parser.add_argument("--model", help="a name in models/, or a folder (default: the model with the lowest val loss)")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="what speaks for this class (default: for the answer)")
    parser.add_argument("--output", type=png, metavar="FILE.png", default="explained.png", help="the sheet to draw (default: %(default)s)")
    parser.set_defaults(run=explain, here=Path.cwd())  # where the user stands: commands run in the project's root


def explain(parsed: argparse.Namespace) -> None:
    """Draw each picture beside its map, with the model's answer. Raises PipelineError."""
    from pipeline.core.files import output_path, writing
    from pipeline.evaluation.galleries import draw_sheet
    from pipeline.networks.artifact import find_model
    from pipeline.serving.answers import find_pictures
    from pipeline.serving.predictor import open_model

    output = output_path(parsed.here, parsed.output)
    folder = find_model(parsed.model, Path("models"), parsed.here)
    predictor = open_model(folder, read_threads())
    if parsed.class_name not in (None, *predictor.class_names):
        raise PipelineError(f"--class {parsed.class_name}: is no class of {folder}; its classes are {', '.join(predictor.class_names)}")
    picks = list(find_pictures(parsed.paths, parsed.here))[:_SHOWN]
    look = _open_eyes(folder, predictor)
    cells = [cell for pick in picks for cell in _pair(parsed.here / pick.path, predictor, look, parsed.class_name)]
    with writing(output):
        draw_sheet(output, cells, f"{folder.name}: where it looked")
    print(output)


def _open_eyes(folder: Path, predictor: "Predictor") -> Callable[[Array, int], Array]:
    """What gives the map of a picture's pixels for the number of a class. Raises PipelineError where the network has none."""
    from pipeline.evaluation.galleries import grad_cam
    from pipeline.networks.classifier import last_map, load_classifier

    check_backbone(folder)
    facts = read_json(BACKBONE / "backbone.json")
    classifier = load_classifier(BACKBONE, folder, len(predictor.class_names))
    layer = facts["feature_map"] or last_map(classifier.backbone, predictor.preprocessing.image_size)
    if layer is None:
        name = facts["architecture"]["name"]
        raise PipelineError(f"{name}: gives no feature map, as transformers do not; Grad-CAM needs a convolutional network")
    return lambda square, index: grad_cam(classifier, layer, square, index)


def _pair(path: Path, predictor: "Predictor", look: Callable[[Array, int], Array], class_name: str | None) -> list["Cell"]:
    """A picture with the answer, and beside it what spoke for the class; a crossed square where it cannot be read."""
    from PIL import Image

    from pipeline.evaluation.galleries import SIDE, Cell, overlay, thumbnail
    from pipeline.pictures.images import BrokenPicture, read_square
    from pipeline.serving.answers import file_fault, judge, plain

    try:
        if fault := file_fault(path):
            raise BrokenPicture(fault)
        square = read_square(path, predictor.preprocessing)
    except BrokenPicture as error:
        return [Cell(None, plain(path.name), plain(f"broken: {error}"), "broken")]
    names = predictor.class_names
    answer = judge(path.name, predictor.predict_pixels(square[None])[0], names, 0.0)
    shown = class_name or str(answer.predicted)
    seen = Image.fromarray(square).resize((SIDE, SIDE))
    return [
        Cell(thumbnail(path), plain(path.name), plain(answer.words), "answered"),
        Cell(overlay(seen, look(square, names.index(shown))), "", plain(f"for {shown}"), "answered"),
    ]
