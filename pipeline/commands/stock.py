"""`pipeline classify`, `segment` and `detect`: pretrained networks as they are."""

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import add_command, add_row_arguments, answer, make_folder, see, share, whole, write_picture

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from pipeline.stock.networks import NetworkRequest
    from pipeline.stock.tasks import ImageClassifier

_CLASSIFY = """\
Name pictures with a pretrained network as it is: one row per picture, in the order of the paths.

Probabilities are the network's own, not calibrated, with six decimals. CSV has the columns path, predicted, probability
(of the most probable class), top_1, top_1_prob and so on. A JSON line has the keys path, predicted, probability, probs."""

_CLASSIFY_EXAMPLES = """\
  pipeline classify pictures/ --sheet sheet.png > names.csv
  pipeline classify bee.jpg --model resnet50 --fetch --format jsonl"""

_SEGMENT = """\
Assign each pixel of a picture to a class, with a pretrained network as it is: two PNG files and one row per picture.

NAME_overlay.png shows the segments over the picture, with a legend; small pictures are enlarged. NAME_mask.png has the size
of the picture, and its pixels are the labels of the classes. CSV has the columns path, overlay, mask and pixels_<class> for
each class; a JSON line has the keys path, overlay, mask, pixels."""

_SEGMENT_EXAMPLES = """\
  pipeline segment street.jpg --fetch
  pipeline segment pictures/ --weights own.safetensors --classes names.txt --image-size 256 --format jsonl"""

_DETECT = """\
Detect the things in pictures with a pretrained network as it is: a PNG with boxes and names, and one JSON line per picture.

A line has the keys path, drawn (the PNG, NAME_drawn.png), width, height (of the upright picture) and found: the things,
highest score first, each with label, score and box, which is [x0, y0, x1, y1] in pixels from the upper left corner. Mask R-CNN
also draws masks."""

_DETECT_EXAMPLES = """\
  pipeline detect street.jpg --fetch --threshold 0.7
  pipeline detect pictures/ --model maskrcnn_resnet50_fpn_v2 > things.jsonl"""


def _add_network_arguments(parser: argparse.ArgumentParser, model: str, models: str, any_size: bool = True) -> None:
    """Add the arguments that choose a network; `model` is the default, `models` describes the choice."""
    parser.add_argument("--model", metavar="NAME", default=model, help=f"{models} (default: {model})")
    parser.add_argument(
        "--weights", metavar="W", help="packaged, pretrained (as published), or your own file (default: packaged if a package has them)"
    )
    parser.add_argument("--classes", metavar="FILE", help="the class names of your own weights, one per line, in the order of the labels")
    parser.add_argument("--fetch", action="store_true", help="fetch published weights that are not on this disk")
    if any_size:
        parser.add_argument("--image-size", type=whole, metavar="PX", help="resize the shorter side to PX pixels (default: as published)")


def _network_request(parsed: argparse.Namespace) -> "NetworkRequest":
    """The network that the command line asks for."""
    from pipeline.stock.networks import NetworkRequest

    return NetworkRequest(parsed.model, parsed.here, parsed.weights, parsed.classes, getattr(parsed, "image_size", None), parsed.fetch)


def _prepare_torch(threads: int) -> "torch.device":
    """Set the number of torch's threads, and return the device to compute on."""
    import torch

    from pipeline.core.hardware import choose_device

    torch.set_num_threads(threads)
    return choose_device()


def _json_line(row: Mapping[str, Any]) -> str:
    """A row as pure ASCII, so that no name can break a line or an encoding."""
    return json.dumps(row, allow_nan=False) + "\n"


def add_classify(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "classify", "name pictures with a pretrained network as it is", _CLASSIFY, _CLASSIFY_EXAMPLES)
    _add_network_arguments(parser, "tf_efficientnet_lite0", "a classification model of torchvision or timm, see `pipeline models`", False)
    add_row_arguments(parser, top=5)
    parser.set_defaults(run=classify)


def classify(parsed: argparse.Namespace) -> None:
    """Classify; the exit code reports whether all pictures could be read. Raises PipelineError."""
    from pipeline.stock.tasks import load_classifier

    def open_stock(threads: int) -> "tuple[str, ImageClassifier]":
        return parsed.model, load_classifier(_network_request(parsed), _prepare_torch(threads))

    answer(parsed, "classify", open_stock)


def add_segment(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    summary = "assign each pixel to a class with a pretrained network as it is"
    parser = add_command(commands, "segment", summary, _SEGMENT, _SEGMENT_EXAMPLES)
    _add_network_arguments(parser, "lraspp_mobilenet_v3_large", "an FCN, DeepLabV3 or LRASPP of torchvision")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    parser.add_argument("--output", metavar="FOLDER", default="segmented", help="folder for the PNG files (default: %(default)s)")
    parser.set_defaults(run=segment)


def segment(parsed: argparse.Namespace) -> None:
    """Segment; the exit code reports whether all pictures could be read. Raises PipelineError."""
    import numpy as np

    from pipeline.core.files import csv_line
    from pipeline.core.params import read_threads
    from pipeline.stock.drawing import draw_segments, with_palette
    from pipeline.stock.tasks import load_segmenter

    segmenter = load_segmenter(_network_request(parsed), _prepare_torch(read_threads()))
    class_names, folder = segmenter.class_names, make_folder(parsed.here, parsed.output)
    columns = ["path", "overlay", "mask", *(f"pixels_{name}" for name in class_names)]

    def row_of(path: str, name: str, picture: "Image.Image") -> str:
        mask = segmenter.segment(picture)
        files = {"overlay": f"{name}_overlay.png", "mask": f"{name}_mask.png"}
        write_picture(draw_segments(picture, mask, class_names), folder / files["overlay"])
        write_picture(with_palette(mask, class_names), folder / files["mask"])
        pixels = np.bincount(mask.ravel(), minlength=len(class_names)).tolist()
        if parsed.format == "jsonl":
            return _json_line({"path": path, **files, "pixels": dict(zip(class_names, pixels, strict=True))})
        return csv_line(columns, dict(zip(columns, [path, *files.values(), *pixels], strict=True)))

    see(parsed, "segment", csv_line(columns, {name: name for name in columns}) if parsed.format == "csv" else "", row_of)


def add_detect(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "detect", "detect things with a pretrained network as it is", _DETECT, _DETECT_EXAMPLES)
    networks = "a Faster R-CNN, Mask R-CNN, RetinaNet, FCOS or SSD of torchvision"
    _add_network_arguments(parser, "fasterrcnn_mobilenet_v3_large_320_fpn", networks)
    parser.add_argument("--threshold", type=share, default=0.5, metavar="P", help="leave out things with a lower score (default: 0.5)")
    parser.add_argument("--output", metavar="FOLDER", default="detected", help="folder for the PNG files (default: %(default)s)")
    parser.set_defaults(run=detect)


def detect(parsed: argparse.Namespace) -> None:
    """Detect; the exit code reports whether all pictures could be read. Raises PipelineError."""
    from pipeline.core.params import read_threads
    from pipeline.stock.drawing import draw_things
    from pipeline.stock.tasks import load_detector

    detector = load_detector(_network_request(parsed), _prepare_torch(read_threads()))
    folder = make_folder(parsed.here, parsed.output)

    def row_of(path: str, name: str, picture: "Image.Image") -> str:
        things = detector.detect(picture, parsed.threshold)
        drawn = f"{name}_drawn.png"  # another name than the picture's own, which may be in the same folder
        write_picture(draw_things(picture, things), folder / drawn)
        found = [{"label": thing.name, "score": thing.score, "box": thing.box} for thing in things]
        return _json_line({"path": path, "drawn": drawn, "width": picture.width, "height": picture.height, "found": found})

    see(parsed, "detect", "", row_of)
