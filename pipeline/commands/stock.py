"""`pipeline classify`, `segment` and `detect`: pretrained networks as they are."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.commands.answering import add_command, add_row_arguments, answer, make_folder, see, share, whole, write_picture
from pipeline.core.files import csv_line
from pipeline.core.params import read_threads

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from pipeline.stock.networks import NetworkRequest
    from pipeline.stock.tasks import Detection, ImageClassifier


def add_network_arguments(parser: argparse.ArgumentParser, model: str, models: str) -> None:
    """Let the parser take a network; `model` where nothing is said, one of those that `models` describes."""
    parser.add_argument("--model", metavar="NAME", default=model, help=f"{models} (default: {model})")
    parser.add_argument(
        "--weights", metavar="W", help="packaged, pretrained (as published), or a file of your own (default: packaged where they are)"
    )
    parser.add_argument("--classes", metavar="FILE", help="the names of the classes of your own weights, one a line, in their order")
    parser.add_argument("--fetch", action="store_true", help="fetch published weights that are not on this disk")


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """Let the parser take the size at which pictures go through the network."""
    parser.add_argument("--image-size", type=whole, metavar="PX", help="resize the shorter side to this (default: as published)")


def network_request(parsed: argparse.Namespace) -> "NetworkRequest":
    """The network that the command line asks for."""
    from pipeline.stock.networks import NetworkRequest

    size = getattr(parsed, "image_size", None)
    return NetworkRequest(parsed.model, parsed.here, parsed.weights, parsed.classes, size, parsed.fetch)


def prepare_torch(threads: int) -> "torch.device":
    """Let torch use so many threads, and say where it computes."""
    import torch

    from pipeline.core.hardware import choose_device

    torch.set_num_threads(threads)
    return choose_device()


_CLASSIFY = """\
Name pictures with a pretrained network as it is: a row a picture, in the order in which they are named.

Probabilities are the network's own, not calibrated, and have six places. CSV has the columns path, predicted, probability
(of the most probable class), top_1, top_1_prob and so on. A JSON line has the keys path, predicted, probability, probs."""


_CLASSIFY_EXAMPLES = """\
  pipeline classify pictures/ --sheet sheet.png > names.csv
  pipeline classify bee.jpg --model resnet50 --fetch --format jsonl"""


def add_classify(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "classify", "name pictures with a pretrained network as it is", _CLASSIFY, _CLASSIFY_EXAMPLES)
    add_network_arguments(parser, "tf_efficientnet_lite0", "a classification model of torchvision or timm, see `pipeline models`")
    add_row_arguments(parser, top=5)
    parser.set_defaults(run=classify)


def classify(parsed: argparse.Namespace) -> None:
    """Answer, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.stock.tasks import load_classifier

    def open_stock(threads: int) -> "tuple[str, ImageClassifier]":
        return parsed.model, load_classifier(network_request(parsed), prepare_torch(threads))

    answer(parsed, "classify", open_stock)


_SEGMENT = """\
Say what each pixel of a picture belongs to, with a pretrained network as it is: two PNG files and a row a picture.

NAME_overlay.png shows the segments over the picture, with a legend; it is as large as can be seen well. NAME_mask.png has
the size of the picture, and its pixels are the numbers of the classes. CSV has the columns path, overlay, mask and
pixels_<class> for each class; a JSON line has the keys path, overlay, mask, pixels."""


_SEGMENT_EXAMPLES = """\
  pipeline segment street.jpg --fetch
  pipeline segment pictures/ --weights own.safetensors --classes names.txt --image-size 256 --format jsonl"""


def add_segment(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands, "segment", "say what each pixel belongs to, with a pretrained network as it is", _SEGMENT, _SEGMENT_EXAMPLES
    )
    add_network_arguments(parser, "lraspp_mobilenet_v3_large", "an FCN, DeepLabV3 or LRASPP of torchvision")
    add_size_argument(parser)
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    parser.add_argument("--output", metavar="FOLDER", default="segmented", help="where the PNG files go (default: %(default)s)")
    parser.set_defaults(run=segment)


def segment(parsed: argparse.Namespace) -> None:
    """Segment, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    import numpy as np

    from pipeline.stock.drawing import draw_segments, with_palette
    from pipeline.stock.tasks import load_segmenter

    segmenter = load_segmenter(network_request(parsed), prepare_torch(read_threads()))
    class_names, folder = segmenter.class_names, make_folder(parsed.here, parsed.output)

    def look(path: str, name: str, picture: "Image.Image") -> str:
        mask = segmenter.segment(picture)
        overlay, plain = f"{name}_overlay.png", f"{name}_mask.png"
        write_picture(draw_segments(picture, mask, class_names), folder / overlay)
        write_picture(with_palette(mask, class_names), folder / plain)
        pixels = np.bincount(mask.ravel(), minlength=len(class_names)).tolist()
        return _segment_row(path, overlay, plain, dict(zip(class_names, pixels, strict=True)), parsed.format)

    columns = _segment_columns(class_names)
    see(parsed, "segment", csv_line(columns, {name: name for name in columns}) if parsed.format == "csv" else "", look)


def _segment_columns(class_names: Sequence[str]) -> list[str]:
    return ["path", "overlay", "mask", *(f"pixels_{name}" for name in class_names)]


def _segment_row(path: str, overlay: str, mask: str, pixels: Mapping[str, int], form: str) -> str:
    """The row of a picture. JSON is pure ASCII, so that no name can break a line or an encoding."""
    if form == "jsonl":
        return json.dumps({"path": path, "overlay": overlay, "mask": mask, "pixels": pixels}) + "\n"
    columns = _segment_columns(list(pixels))
    return csv_line(columns, dict(zip(columns, [path, overlay, mask, *pixels.values()], strict=True)))


_DETECT = """\
Find the things in pictures with a pretrained network as it is: a PNG with boxes and names, and a JSON line a picture.

A line has the keys path, drawn (the PNG, NAME_drawn.png), width, height (of the picture, upright) and found: the things, the
surest first, each with label, score and box, which is [x0, y0, x1, y1] in pixels from the upper left corner. Mask R-CNN draws
masks, too."""


_DETECT_EXAMPLES = """\
  pipeline detect street.jpg --fetch --threshold 0.7
  pipeline detect pictures/ --model maskrcnn_resnet50_fpn_v2 > things.jsonl"""


def add_detect(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "detect", "find the things in pictures, with a pretrained network as it is", _DETECT, _DETECT_EXAMPLES)
    models = "a Faster R-CNN, Mask R-CNN, RetinaNet, FCOS or SSD of torchvision"
    add_network_arguments(parser, "fasterrcnn_mobilenet_v3_large_320_fpn", models)
    add_size_argument(parser)
    parser.add_argument("--threshold", type=share, default=0.5, metavar="P", help="leave out things of a lower score (default: 0.5)")
    parser.add_argument("--output", metavar="FOLDER", default="detected", help="where the PNG files go (default: %(default)s)")
    parser.set_defaults(run=detect)


def detect(parsed: argparse.Namespace) -> None:
    """Find, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.stock.drawing import draw_things
    from pipeline.stock.tasks import load_detector

    detector = load_detector(network_request(parsed), prepare_torch(read_threads()))
    folder = make_folder(parsed.here, parsed.output)

    def look(path: str, name: str, picture: "Image.Image") -> str:
        things = detector.detect(picture, parsed.threshold)
        drawn = f"{name}_drawn.png"  # never the picture itself
        write_picture(draw_things(picture, things), folder / drawn)
        return _detect_row(path, drawn, picture.size, things)

    see(parsed, "detect", "", look)


def _detect_row(path: str, drawn: str, size: tuple[int, int], things: "Sequence[Detection]") -> str:
    """The row of a picture: pure ASCII, so that no name can break a line or an encoding."""
    found = [{"label": thing.name, "score": thing.score, "box": thing.box} for thing in things]
    return json.dumps({"path": path, "drawn": drawn, "width": size[0], "height": size[1], "found": found}, allow_nan=False) + "\n"
