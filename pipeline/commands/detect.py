"""`pipeline detect`: find the things in pictures, by a pretrained network as it is."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.commands.pictures import add_command, share
from pipeline.commands.seeing import make_folder, see, write_picture
from pipeline.commands.stock_networks import add_network_arguments, add_size_argument, prepare_torch, wanted
from pipeline.params import read_threads

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.stock.detect import Found

_ABOUT = """\
Find the things in pictures with a pretrained network as it is: a PNG with boxes and names, and a JSON line a picture.

A line has the keys path, drawn (the PNG, NAME_drawn.png), width, height (of the picture, upright) and found: the things, the
surest first, each with label, score and box, which is [x0, y0, x1, y1] in pixels from the upper left corner. Mask R-CNN draws
masks, too."""

_EXAMPLES = """\
  pipeline detect street.jpg --fetch --threshold 0.7
  pipeline detect pictures/ --model maskrcnn_resnet50_fpn_v2 > things.jsonl"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "detect", "find the things in pictures, with a pretrained network as it is", _ABOUT, _EXAMPLES)
    models = "a Faster R-CNN, Mask R-CNN, RetinaNet, FCOS or SSD of torchvision"
    add_network_arguments(parser, "fasterrcnn_mobilenet_v3_large_320_fpn", models)
    add_size_argument(parser)
    parser.add_argument("--threshold", type=share, default=0.5, metavar="P", help="leave out things of a lower score (default: 0.5)")
    parser.add_argument("--output", metavar="FOLDER", default="detected", help="where the PNG files go (default: %(default)s)")
    parser.set_defaults(run=detect)


def detect(parsed: argparse.Namespace) -> None:
    """Find, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    from pipeline.stock.detect import load_detector
    from pipeline.stock.drawing import draw_things

    detector = load_detector(wanted(parsed), prepare_torch(read_threads()))
    folder = make_folder(parsed.here, parsed.output)

    def look(path: str, name: str, picture: "Image.Image") -> str:
        things = detector.detect(picture, parsed.threshold)
        drawn = f"{name}_drawn.png"  # never the picture itself
        write_picture(draw_things(picture, things), folder / drawn)
        return _line(path, drawn, picture.size, things)

    see(parsed, "detect", "", look)


def _line(path: str, drawn: str, size: tuple[int, int], things: "Sequence[Found]") -> str:
    """The row of a picture: pure ASCII, so that no name can break a line or an encoding."""
    found = [{"label": thing.name, "score": thing.score, "box": thing.box} for thing in things]
    return json.dumps({"path": path, "drawn": drawn, "width": size[0], "height": size[1], "found": found}, allow_nan=False) + "\n"
