"""Pictures of usual shapes are let be; others become such as networks can take."""

import pytest
from PIL import Image
from torchvision.transforms.functional import resize

from pipeline.stock.tasks import middle, shrunk, widened, working_size


@pytest.mark.parametrize(("size", "wanted"), [((30, 20), (30, 20)), ((160, 20), (160, 20)), ((200, 20), (160, 20)), ((1, 50), (1, 8))])
def test_the_middle_is_eight_times_as_long_as_wide_at_most(size, wanted):
    assert middle(Image.new("RGB", size)).size == wanted


def test_as_much_is_cut_off_at_both_ends():
    picture = Image.new("RGB", (100, 10), "white")
    picture.paste("black", (10, 0, 90, 10))
    assert middle(picture).getcolors() == [(800, (0, 0, 0))]


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (33, 97), (7, 7), (1000, 251)])
def test_a_working_size_is_the_one_that_torchvision_takes(size):
    assert working_size(size, 520) == resize(Image.new("RGB", size), [520]).size


@pytest.mark.parametrize(("size", "wanted"), [((8000, 1000), (400, 50)), ((1000, 8000), (50, 400)), ((1, 100_000), (1, 400))])
def test_a_longer_side_is_four_times_the_working_size_at_most(size, wanted):
    assert working_size(size, 100) == wanted


@pytest.mark.parametrize(("size", "wanted"), [((300, 200), (300, 200)), ((600, 400), (300, 200)), ((3, 90_000), (1, 300))])
def test_a_picture_is_shrunk_to_its_longer_side(size, wanted):
    assert shrunk(Image.new("RGB", size), 300).size == wanted


@pytest.mark.parametrize(("size", "wanted"), [((30, 20), (30, 20)), ((160, 10), (160, 10)), ((161, 10), (161, 11)), ((1, 100), (7, 100))])
def test_a_narrow_picture_is_widened(size, wanted):
    assert widened(Image.new("RGB", size)).size == wanted


def test_it_is_widened_in_black_and_stays_at_the_upper_left():
    picture = widened(Image.new("RGB", (32, 1), "white"))
    assert [picture.getpixel((31, 0)), picture.getpixel((0, 1))] == [(255, 255, 255), (0, 0, 0)]
