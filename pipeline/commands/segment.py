"""`pipeline segment`: what each pixel of a picture belongs to, by a pretrained network as it is."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.commands.pictures import add_command
from pipeline.commands.seeing import make_folder, see, write_picture
from pipeline.commands.stock_networks import add_network_arguments, add_size_argument, prepare_torch, wanted
from pipeline.files import csv_line
from pipeline.params import read_threads

if TYPE_CHECKING:
    from PIL import Image

_ABOUT = """\
Say what each pixel of a picture belongs to, with a pretrained network as it is: two PNG files and a row a picture.

NAME_overlay.png shows the segments over the picture, with a legend; it is as large as can be seen well. NAME_mask.png has
the size of the picture, and its pixels are the numbers of the classes. CSV has the columns path, overlay, mask and
pixels_<class> for each class; a JSON line has the keys path, overlay, mask, pixels."""

_EXAMPLES = """\
  pipeline segment street.jpg --fetch
  pipeline segment pictures/ --weights own.safetensors --classes names.txt --image-size 256 --format jsonl"""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "segment", "say what each pixel belongs to, with a pretrained network as it is", _ABOUT, _EXAMPLES)
    add_network_arguments(parser, "lraspp_mobilenet_v3_large", "an FCN, DeepLabV3 or LRASPP of torchvision")
    add_size_argument(parser)
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(default: csv)")
    parser.add_argument("--output", metavar="FOLDER", default="segmented", help="where the PNG files go (default: %(default)s)")
    parser.set_defaults(run=segment)


def segment(parsed: argparse.Namespace) -> None:
    """Segment, and tell by the exit code whether all pictures could be read. Raises PipelineError."""
    import numpy as np

    from pipeline.stock.colours import with_palette
    from pipeline.stock.drawing import draw_segments
    from pipeline.stock.segment import load_segmenter

    segmenter = load_segmenter(wanted(parsed), prepare_torch(read_threads()))
    class_names, folder = segmenter.class_names, make_folder(parsed.here, parsed.output)

    def look(path: str, name: str, picture: "Image.Image") -> str:
        mask = segmenter.segment(picture)
        overlay, plain = f"{name}_overlay.png", f"{name}_mask.png"
        write_picture(draw_segments(picture, mask, class_names), folder / overlay)
        write_picture(with_palette(mask, class_names), folder / plain)
        pixels = np.bincount(mask.ravel(), minlength=len(class_names)).tolist()
        return _line(path, overlay, plain, dict(zip(class_names, pixels, strict=True)), parsed.format)

    columns = _columns(class_names)
    see(parsed, "segment", csv_line(columns, {name: name for name in columns}) if parsed.format == "csv" else "", look)


def _columns(class_names: Sequence[str]) -> list[str]:
    return ["path", "overlay", "mask", *(f"pixels_{name}" for name in class_names)]


def _line(path: str, overlay: str, mask: str, pixels: Mapping[str, int], form: str) -> str:
    """The row of a picture. JSON is pure ASCII, so that no name can break a line or an encoding."""
    if form == "jsonl":
        return json.dumps({"path": path, "overlay": overlay, "mask": mask, "pixels": pixels}) + "\n"
    columns = _columns(list(pixels))
    return csv_line(columns, dict(zip(columns, [path, overlay, mask, *pixels.values()], strict=True)))
