"""`pipeline predict` and `pipeline explain`: run a stored model on pictures."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import add_command, add_row_arguments, answer, png
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.evaluation.galleries import Cell
    from pipeline.pictures.images import Array
    from pipeline.serving.predictor import Predictor

_ABOUT = """\
Predict the classes of pictures with a stored model: one row per picture, in the order of the arguments.

Probabilities are calibrated and have six places. CSV has the columns path, predicted, probability (of the most probable
class) and prob_<class> per class; with --top K it has top_1, top_1_prob and so on instead. A JSON line has the keys path,
predicted, probability and probs. If the model abstains, predicted is empty (JSON: null).

A model that tells which pictures are unlike those that it learned from adds unfamiliar (true or false) and unfamiliarity
(above 1 is unfamiliar)."""
_EXAMPLES = """\
  pipeline predict pictures/ --sheet sheet.png > predictions.csv
  find /photos -name '*.jpg' -print0 | pipeline predict -0 - --format jsonl --abstain-below 0.9
  RAY_ADDRESS=10.0.0.1:6379 pipeline predict /photos --on ray --output predictions.csv"""
_MODEL_HELP = "a name in models/, or a model folder (default: champion; before there is one, the lowest val loss)"
_SHEET_SIZE = 50  # pictures on the sheet of `explain`


def add_predict(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "predict", "predict the classes of pictures with a stored model", _ABOUT, _EXAMPLES)
    parser.add_argument("--model", metavar="NAME|FOLDER", help=_MODEL_HELP)
    add_row_arguments(parser, top=None)
    unfamiliar = "what becomes of an unfamiliar picture: say predicts its class and says so, refuse predicts none (default: %(default)s)"
    parser.add_argument("--unfamiliar", choices=("say", "refuse"), default="say", help=unfamiliar)
    parser.add_argument("--on", choices=("ray",), help="compute on the Ray cluster at RAY_ADDRESS, or on a Ray that is started here")
    parser.set_defaults(run=predict)


def predict(parsed: argparse.Namespace) -> None:
    """Write a row per picture; the exit code reports whether all could be read. Raises PipelineError."""
    from pipeline.promotion.champions import find_served
    from pipeline.serving.predictions import predict_all
    from pipeline.serving.predictor import open_model

    name, folder = find_served(parsed.model, parsed.here)
    refuses = parsed.unfamiliar == "refuse"

    def open_stored(threads: int) -> tuple[str, "Predictor"]:
        predictor = open_model(folder, threads)
        if refuses and not predictor.tells_unfamiliar:
            raise PipelineError(f"--unfamiliar refuse: {name} does not tell unfamiliar pictures; set false_alarm_rate and train it again")
        return name, predictor

    if parsed.on == "ray":
        from pipeline.serving.remote import predict_on_ray

        answer(parsed, "predict", open_stored, partial(predict_on_ray, folder, refuse_unfamiliar=refuses))
    else:
        answer(parsed, "predict", open_stored, partial(predict_all, refuse_unfamiliar=refuses))


def add_explain(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("explain", help="draw which parts of pictures speak for a class (Grad-CAM)")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"a picture, or a folder of pictures; the first {_SHEET_SIZE} are drawn")
    parser.add_argument("--model", metavar="NAME|FOLDER", help=_MODEL_HELP)
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="the class to explain (default: the predicted one)")
    parser.add_argument("--output", type=png, metavar="FILE.png", default="explained.png", help="the sheet to draw (default: %(default)s)")
    parser.set_defaults(run=explain, here=Path.cwd())  # the user's working directory: commands run in the project's root


def explain(parsed: argparse.Namespace) -> None:
    """Draw each picture with its prediction beside its Grad-CAM map, and print the path of the sheet. Raises PipelineError."""
    from pipeline.core.files import output_path, writing
    from pipeline.core.params import read_threads
    from pipeline.evaluation.galleries import draw_sheet
    from pipeline.promotion.champions import find_served
    from pipeline.serving.predictions import find_pictures
    from pipeline.serving.predictor import open_model

    output = output_path(parsed.here, parsed.output)
    name, folder = find_served(parsed.model, parsed.here)
    predictor = open_model(folder, read_threads())
    if parsed.class_name not in (None, *predictor.class_names):
        raise PipelineError(f"--class {parsed.class_name}: is not a class of {folder}; its classes are {', '.join(predictor.class_names)}")
    files = list(find_pictures(parsed.paths, parsed.here))[:_SHEET_SIZE]
    draw_map = _load_grad_cam(folder, predictor)
    cells = [cell for file in files for cell in _draw_pair(parsed.here / file.path, predictor, draw_map, parsed.class_name)]
    with writing(output):
        draw_sheet(output, cells, f"{name}: where it looked")
    print(output)


def _load_grad_cam(folder: Path, predictor: "Predictor") -> "Callable[[Array, int], Array]":
    """A function from pixels, uint8 (S, S, 3), and the number of a class to a map. Raises PipelineError if the network has none."""
    from pipeline.core.files import read_json
    from pipeline.evaluation.galleries import grad_cam
    from pipeline.networks.artifact import BACKBONE, check_backbone
    from pipeline.networks.classifier import last_map, load_classifier

    if not (folder / "model.safetensors").is_file():
        raise PipelineError(f"{folder}: has no weights for Grad-CAM, as an exported form has none; name the model that it comes from")
    check_backbone(folder)
    facts = read_json(BACKBONE / "backbone.json")
    classifier = load_classifier(BACKBONE, folder, len(predictor.class_names))
    layer = facts["feature_map"] or last_map(classifier.backbone, predictor.preprocessing.image_size)
    if layer is None:
        name = facts["architecture"]["name"]
        raise PipelineError(f"{name}: has no feature map, as transformers have none; Grad-CAM needs a convolutional network")
    return lambda square, index: grad_cam(classifier, layer, square, index)


def _draw_pair(path: Path, predictor: "Predictor", draw_map: "Callable[[Array, int], Array]", class_name: str | None) -> list["Cell"]:
    """A picture with its prediction and the map of the class; one crossed square if the picture cannot be read."""
    from PIL import Image

    from pipeline.evaluation.galleries import SIDE, Cell, overlay, thumbnail
    from pipeline.pictures.images import BrokenPicture, read_square
    from pipeline.serving.predictions import file_fault, make_prediction, printable

    try:
        if fault := file_fault(path):
            raise BrokenPicture(fault)
        square = read_square(path, predictor.preprocessing)
    except BrokenPicture as error:
        return [Cell(None, printable(path.name), printable(f"broken: {error}"), "broken")]
    names = predictor.class_names
    prediction = make_prediction(path.name, predictor.predict_pixels(square[None])[0], None, names, 0.0)
    explained = class_name or str(prediction.predicted)
    pixels = Image.fromarray(square).resize((SIDE, SIDE))
    return [
        Cell(thumbnail(path), printable(path.name), printable(prediction.caption), "answered"),
        Cell(overlay(pixels, draw_map(square, names.index(explained))), "", printable(f"for {explained}"), "answered"),
    ]
