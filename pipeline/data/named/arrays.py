"""Pictures that are published as arrays, as PNG files: no value changes, and the bytes are the same each time."""

import io
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.data.members import Members
from pipeline.data.named.published import Published

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray


def picture_members(
    published: Published, split: str, pictures: "Iterable[NDArray[uint8]]", labels: Iterable[int], class_names: Sequence[str]
) -> Members:
    """One split's pictures as `<split>/<class>/<number>.png`, each made when it is read.

    `pictures`: (height, width) or (height, width, 3), uint8. `labels`: places in `class_names`, as many as there are pictures.
    Raises PipelineError where there are more than the limits allow.
    """
    members: Members = {}
    for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        published.budget.add_file()
        members[f"{split}/{class_names[label]}/{number:05d}.png"] = partial(encode_png, pixels)
    return members


def encode_png(pixels: "NDArray[Any]") -> bytes:
    """A picture as a PNG file. `pixels`: (height, width) or (height, width, 3), uint8."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # how well it is packed depends on the version of zlib
        return file.getvalue()
