"""The 1,797 handwritten digits that scikit-learn carries."""

from functools import partial

from pipeline.data.members import Members
from pipeline.data.named.arrays import encode_png
from pipeline.data.named.published import Published


def digits_members(published: Published) -> Members:
    """The digits, 8 x 8 grey pixels each, as `<digit>/<number>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {
        f"{label}/{number:04d}.png": partial(encode_png, (pixels * (255 / 16)).round().astype("uint8"))
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }
