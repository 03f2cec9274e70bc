"""The digits equal those of scikit-learn."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.sources.formats import digits_members


def test_the_digits_are_those_of_scikit_learn(published):
    members, digits = digits_members(published({})), load_digits()
    assert len(members) == 1797
    for number in (0, 1, 1796):
        with Image.open(io.BytesIO(members[f"{digits.target[number]}/{number:04d}.png"]())) as image:
            assert np.array_equal(np.asarray(image), np.rint(digits.images[number] * 255 / 16))
