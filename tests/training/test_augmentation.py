"""How training pictures are varied and mixed: what is random, and within which bounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.training.recipe import class_weights, make_augmentation, make_mix


def picture():
    """Dark on the left, bright on the right."""
    return Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (16, 1, 3)))


def vary(flip, seed, count=40, min_crop_area=0.65, augment="none"):
    torch.manual_seed(seed)
    variation = make_augmentation(12, "bicubic", min_crop_area, flip, augment)
    return [np.asarray(variation(picture())) for _ in range(count)]


def is_mirrored(pixels):
    return pixels[:, :6].mean() > pixels[:, 6:].mean()


def test_variations_of_one_seed_are_the_same():
    np.testing.assert_array_equal(vary(True, 3), vary(True, 3))


def test_variations_differ_from_each_other():
    first, second = vary(False, 3, count=2)
    assert (first != second).any()


def test_a_variation_has_the_networks_size():
    assert vary(True, 0, 1)[0].shape == (12, 12, 3)


def test_nothing_is_mirrored_where_that_is_not_allowed():
    assert not any(is_mirrored(pixels) for pixels in vary(False, 0))


def test_about_half_is_mirrored_where_that_is_allowed():
    assert 10 <= sum(is_mirrored(pixels) for pixels in vary(True, 0)) <= 30


def test_a_crop_holds_at_least_its_share_of_the_picture():
    # A crop of the whole area has at least 3/4 of the width or of the height: the span from dark to bright stays wide.
    spans = [int(pixels.max()) - int(pixels.min()) for pixels in vary(False, 0, min_crop_area=0.65)]
    assert min(spans) > 230 * 0.5


@pytest.mark.parametrize("augment", ["trivial", "rand"])
def test_an_augmentation_changes_pictures_and_keeps_their_form(augment):
    plain, augmented = vary(False, 3), vary(False, 3, augment=augment)
    assert {pixels.shape for pixels in augmented} == {(12, 12, 3)}
    assert sum((one != other).any() for one, other in zip(plain, augmented, strict=True)) > 10
    np.testing.assert_array_equal(augmented, vary(False, 3, augment=augment))


PIXELS = torch.stack([torch.full((4, 4, 3), value, dtype=torch.uint8) for value in (0, 100, 200)])
LABELS = torch.tensor([0, 1, 2])


def test_without_an_alpha_a_batch_stays_as_it_is():
    pixels, labels = make_mix(0.0, 0.0, 3)(PIXELS, LABELS)
    assert pixels is PIXELS
    assert labels is LABELS


def test_mixup_blends_pixels_and_labels_by_the_same_share():
    torch.manual_seed(0)
    pixels, shares = make_mix(1.0, 0.0, 3)(PIXELS, LABELS)
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    wanted = shares @ torch.tensor([0.0, 100.0, 200.0])
    torch.testing.assert_close(pixels, wanted[:, None, None, None].expand(3, 4, 4, 3))


def test_cutmix_pastes_a_part_whose_share_the_labels_state():
    torch.manual_seed(1)
    pixels, shares = make_mix(0.0, 1.0, 3)(PIXELS, LABELS)
    assert set(pixels.unique().tolist()) == {0.0, 100.0, 200.0}
    own = (pixels == PIXELS.float()).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(own, shares[torch.arange(3), LABELS])


def test_of_both_one_is_drawn_for_each_batch():
    torch.manual_seed(0)
    mix = make_mix(1.0, 1.0, 3)
    cut = [set(mix(PIXELS, LABELS)[0].unique().tolist()) <= {0.0, 100.0, 200.0} for _ in range(20)]
    assert 3 < sum(cut) < 17


def test_activations_are_not_mixed():
    activations = torch.ones(3, 5)
    assert make_mix(1.0, 0.0, 3)(activations, LABELS)[0] is activations


def test_class_weights_are_worked_by_hand():
    assert class_weights([0, 0, 0, 1], 2).tolist() == pytest.approx([4 / 2 / 3, 4 / 2 / 1])
