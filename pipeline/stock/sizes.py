"""Pictures of any size made such as networks can take; those of usual size and shape are let be."""

from PIL import Image

_CROPPED, _RESIZED, _PADDED = 8, 4, 16  # times as long as wide: from there on a picture is changed


def middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than eight times as long as wide."""
    longest = _CROPPED * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def working_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Width and height such that the shorter side is `image_size` and the longer one at most four times that.

    They are rounded down, as torchvision does.
    """
    shorter, longer = sorted(size)
    new_shorter, new_longer = image_size, int(image_size * longer / shorter)
    if new_longer > _RESIZED * image_size:
        new_longer = _RESIZED * image_size
        new_shorter = max(1, int(new_longer * shorter / longer))
    return (new_shorter, new_longer) if size[0] <= size[1] else (new_longer, new_shorter)


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """A picture whose longer side is at most so many pixels."""
    scale = longest / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3) if scale < 1 else image


def widened(image: Image.Image) -> Image.Image:
    """A picture at most sixteen times as long as wide; what is lacking is added below or to the right, in black."""
    least = -(-max(image.size) // _PADDED)
    return image.crop((0, 0, max(image.width, least), max(image.height, least)))
