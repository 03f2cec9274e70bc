"""How training pictures are varied: one by one, and mixed within a batch."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_variation(
    image_size: int, interpolation: str, min_crop_area: float, flip: bool, augment: str
) -> Callable[[Image.Image], Image.Image]:
    """A random crop of at least that share of the picture, resized; mirrored half the time where `flip` allows.

    `augment`: then one random operation of random strength (trivial: Müller and Hutter, 2021), two of the usual strength
    (rand: Cubuk et al., 2020), or none.
    """
    steps: list[nn.Module] = [v2.RandomResizedCrop(image_size, (min_crop_area, 1.0), interpolation=v2.InterpolationMode(interpolation))]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += {"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}[augment]
    variation: Callable[[Image.Image], Image.Image] = v2.Compose(steps)
    return variation


def make_mix(mixup: float, cutmix: float, num_classes: int) -> Mix:
    """Batches of pixels uint8 (N, S, S, 3) and labels int64 (N,) as they are, or blended in pairs: labels float32 (N, classes).

    MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019), whose alphas these are; one of the two at random where both are
    above 0. Activations, which are not uint8, stay as they are.
    """
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    blends = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not blends:
        return lambda pixels, labels: (pixels, labels)
    blend = v2.RandomChoice(blends)

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.dtype != torch.uint8:
            return pixels, labels
        blended, shares = blend(pixels.permute(0, 3, 1, 2).to(torch.float32), labels)
        return blended.permute(0, 2, 3, 1), shares

    return mix


def class_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """For each class the mean number of pictures of a class by its own number: float32 (classes,)."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=num_classes)
    return len(labels) / num_classes / counts
