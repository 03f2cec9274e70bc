"""Draw docs/stock.png: `PYTHONPATH=. python docs/stock_pictures.py`. It trains two small networks on shapes for half a minute."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms._presets import SemanticSegmentation

from pipeline.stock.drawing import draw_segments, draw_things
from pipeline.stock.tasks import Detector, Segmenter
from tests import shapes

DOCS = Path(__file__).parent
SCENE = 1_000_003  # not among the training scenes
GAP = 12  # pixels


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A picture as detectors take it: float32 (3, H, W) from 0 to 1."""
    return functional.pil_to_tensor(picture) / 255


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """The pictures in a row, on white."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def main() -> None:
    """Train both networks, and draw what each finds in a new scene."""
    torch.set_num_threads(1)
    cpu, prepare = torch.device("cpu"), SemanticSegmentation(resize_size=None)
    segmenter = Segmenter(shapes.train_segmenter(), prepare, shapes.SIDE, shapes.NAMES, cpu)
    detector = Detector(shapes.train_detector(), to_tensor, shapes.NAMES, cpu)
    picture = shapes.draw_scene(SCENE, most=5, width=170).picture
    segments = draw_segments(picture, segmenter.segment(picture), shapes.NAMES)
    row = side_by_side([segments, draw_things(picture, detector.detect(picture, 0.5))])
    row.save(DOCS / "stock.png", optimize=True)


if __name__ == "__main__":
    main()
