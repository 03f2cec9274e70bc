"""Generated pictures of squares and discs, and small networks of torchvision's classes that are trained on them in seconds."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.transforms._presets import SemanticSegmentation
from torchvision.transforms.functional import pil_to_tensor

NAMES = ["background", "square", "disc"]
SIDE = 96  # pixels of the training pictures


@dataclass(frozen=True)
class Scene:
    """A picture, the class of each pixel, uint8 (H, W), and of each shape its box (x0, y0, x1, y1) and its class."""

    picture: Image.Image
    mask: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    labels: list[int]


def draw_scene(seed: int, most: int = 2, width: int = SIDE, height: int = SIDE) -> Scene:
    """Up to `most` bright shapes that do not touch, on a dark ground with noise."""
    generator = np.random.default_rng(seed)
    ground = generator.integers(20, 90, 3) + generator.integers(-12, 12, (height, width, 3))
    picture, mask = Image.fromarray(ground.clip(0, 255).astype(np.uint8)), Image.new("L", (width, height))
    scene = Scene(picture, np.empty(0), [], [])
    for _ in range(20 * most):
        side = int(generator.integers(SIDE // 4, SIDE // 2))
        x, y = (int(generator.integers(2, length - side - 2)) for length in (width, height))
        if len(scene.boxes) == most or any(
            x < b[2] + 4 and b[0] < x + side + 4 and y < b[3] + 4 and b[1] < y + side + 4 for b in scene.boxes
        ):
            continue
        label = int(generator.integers(1, 3))
        for image, colour in ((picture, tuple(generator.integers(110, 256, 3).tolist())), (mask, label)):
            pen = ImageDraw.Draw(image)
            (pen.rectangle if label == 1 else pen.ellipse)((x, y, x + side - 1, y + side - 1), colour)
        scene.boxes.append((x, y, x + side, y + side))
        scene.labels.append(label)
    return Scene(picture, np.asarray(mask), scene.boxes, scene.labels)


class Body(nn.Module):
    """Five convolutions with a receptive field of 60 pixels; they return a dict with the name that torchvision expects."""

    out_channels = 64

    def __init__(self, name: str, strides: Sequence[int], dilations: Sequence[int]) -> None:
        super().__init__()
        self.name, layers, last = name, list[nn.Module](), 3
        for width, stride, dilation in zip((16, 32, 64, 64, 64), strides, dilations, strict=True):
            layers += [nn.Conv2d(last, width, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            last = width
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict([(self.name, self.layers(pixels))])


def small_fcn(num_classes: int = 3) -> nn.Module:
    """torchvision's FCN on a small body."""
    return FCN(Body("out", (2, 2, 1, 1, 1), (1, 1, 2, 4, 4)), FCNHead(64, num_classes))


def small_fcos(num_classes: int = 3) -> nn.Module:
    """torchvision's FCOS on a small body."""
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return FCOS(Body("0", (2, 2, 1, 2, 1), (1, 1, 2, 1, 1)), num_classes, anchor_generator=anchors, min_size=SIDE, max_size=4 * SIDE)


def train_segmenter(steps: int = 130) -> nn.Module:
    """An FCN trained on the shapes."""
    torch.manual_seed(0)
    network, prepare = small_fcn(), SemanticSegmentation(resize_size=None)
    for scenes in _steps(network, steps, rate=5e-3):
        pixels = torch.stack([prepare(scene.picture) for scene in scenes])
        truth = torch.from_numpy(np.stack([scene.mask for scene in scenes])).long()
        cross_entropy(network(pixels)["out"], truth, torch.tensor([0.3, 1, 1])).backward()
    return network.eval()


def train_detector(steps: int = 240) -> nn.Module:
    """An FCOS trained on the shapes."""
    torch.manual_seed(0)
    network = small_fcos()
    for scenes in _steps(network, steps, rate=4e-3):
        truth = [{"boxes": torch.tensor(scene.boxes, dtype=torch.float32), "labels": torch.tensor(scene.labels)} for scene in scenes]
        sum(network([pil_to_tensor(scene.picture) / 255 for scene in scenes], truth).values()).backward()
    return network.eval()


def _steps(network: nn.Module, steps: int, rate: float) -> Iterator[list[Scene]]:
    """Yield eight new scenes per step; after each, update the weights by their gradients."""
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for step in range(steps):
        optimizer.zero_grad()
        yield [draw_scene(8 * step + number) for number in range(8)]
        nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        schedule.step()
