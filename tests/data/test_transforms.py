"""Inputs of the network and the augmentation of training, checked on pictures whose pixels say where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdnet.data.transforms import Augmentation, normalise, resize_image, resize_mask

NONE = Augmentation((0.0, 0.0, 0.0, 0.0), False, (1.0, 1.0, 1.0))


def coordinates(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row, blue always 7."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def test_normalise_is_the_formula() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = normalise(image)
    assert found.dtype == torch.float32
    assert found.shape == (3, 5, 7)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected = (image[..., channel] / 255 - mean) / std
        np.testing.assert_allclose(found[channel].numpy(), expected, atol=2e-6)


def test_normalise_takes_mirrored_and_read_only_arrays() -> None:
    image = coordinates(4, 6)[:, ::-1]
    image.flags.writeable = False
    assert torch.equal(normalise(image), normalise(image.copy()))


def test_resize_is_straight_to_the_square() -> None:
    resized = resize_image(coordinates(200, 100), 50)
    assert resized.shape == (50, 50, 3)
    # A pixel of the result is the mean about its own middle: 2 columns and 4 rows of the original apart.
    np.testing.assert_allclose(resized[25, :, 0], 2 * np.arange(50) + 0.5, atol=1)
    np.testing.assert_allclose(resized[:, 25, 1], 4 * np.arange(50) + 1.5, atol=1)


def test_resize_of_a_box_sees_no_further_than_a_pixel_of_the_result_around_it() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:32, 18:52] = 200
    assert (resize_image(image, 16, (20, 10, 50, 30)) == 200).all()


def test_mask_edges_are_soft_and_areas_kept() -> None:
    mask = np.zeros((90, 90), bool)
    mask[:, :40] = True
    soft = resize_mask(mask, 30)
    assert soft.dtype == np.uint8
    assert (soft[:, :12] == 255).all()
    assert (soft[:, 15:] == 0).all()
    assert np.unique(soft).size > 2
    assert abs(soft.mean() / 255 - mask.mean()) < 0.01


@pytest.mark.parametrize("size", [64, 48])
def test_without_crop_flip_and_colour_it_is_the_plain_resize(size: int) -> None:
    image, mask = coordinates(64, 64), coordinates(64, 64)[..., 0] > 30
    assert np.array_equal(NONE.image(image, size), resize_image(image, size))
    assert np.array_equal(NONE.mask(mask, size), resize_mask(mask, size))
    if size == 64:
        assert np.array_equal(NONE.image(image, size), image)
        assert np.array_equal(NONE.mask(mask, size) > 0, mask)


def test_crop_takes_its_shares_off_each_side() -> None:
    cut = Augmentation((0.1, 0.05, 0.02, 0.0), False, (1.0, 1.0, 1.0))
    image = cut.image(coordinates(200, 100), 100)
    assert image[0, :, 0].min() == 10  # left: 10 of 100 columns
    assert image[0, :, 0].max() == 97  # right: 2
    assert image[:, 0, 1].min() == pytest.approx(10, abs=1)  # top: 10 of 200 rows
    assert image[:, 0, 1].max() == pytest.approx(199, abs=1)  # bottom: none


def test_flip_mirrors_left_to_right_only() -> None:
    flip = Augmentation((0.0, 0.0, 0.0, 0.0), True, (1.0, 1.0, 1.0))
    image, mask = coordinates(32, 32), coordinates(32, 32)[..., 0] < 5
    assert np.array_equal(flip.image(image, 32), image[:, ::-1])
    assert np.array_equal(flip.mask(mask, 32) > 0, mask[:, ::-1])


@pytest.mark.parametrize("draw", range(20))
def test_mask_moves_with_its_image(draw: int) -> None:
    augmentation = Augmentation.draw(np.random.default_rng(draw))
    image = coordinates(180, 240)
    mask = (image[..., 0] > 90) & (image[..., 1] < 100)
    moved, soft = augmentation.image(image, 96).astype(int), augmentation.mask(mask, 96)
    inside, outside = soft == 255, soft == 0
    assert inside.any()
    assert outside.any()
    assert (moved[inside][:, 0] >= 90).all()
    assert (moved[inside][:, 1] <= 100).all()
    assert ((moved[outside][:, 0] <= 91) | (moved[outside][:, 1] >= 99)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 2)])
def test_tiny_images_keep_at_least_a_pixel(shape: tuple[int, int]) -> None:
    largest = Augmentation((0.124, 0.124, 0.0, 0.0), True, (1.0, 1.0, 1.0))
    assert largest.image(np.full((*shape, 3), 9, np.uint8), 32).min() == 9
    assert largest.mask(np.ones(shape, bool), 32).min() == 255


def test_draws_follow_the_generator_and_stay_within_the_recipe() -> None:
    rng = np.random.default_rng(3)
    draws = [Augmentation.draw(rng) for _ in range(2000)]
    again = np.random.default_rng(3)
    assert draws[:5] == [Augmentation.draw(again) for _ in range(5)]
    cut = np.array([draw.crop for draw in draws])
    width, height = cut[:, 0] + cut[:, 2], cut[:, 1] + cut[:, 3]
    assert cut.min() >= 0
    for share in (width, height):
        assert 0.123 < share.max() < 1 / 8
        assert share.mean() == pytest.approx(1 / 16, abs=0.003)
    assert (cut[:, 0] / width).mean() == pytest.approx(0.5, abs=0.03)  # anywhere, not in the middle
    assert (cut[:, 0] / width).std() == pytest.approx(12**-0.5, abs=0.02)
    assert np.mean([draw.flip for draw in draws]) == pytest.approx(0.5, abs=0.04)
    assert {draw.gains for draw in draws} == {(1.0, 1.0, 1.0)}


def test_colours_change_only_when_asked_and_crops_do_not_depend_on_it() -> None:
    plain = [Augmentation.draw(np.random.default_rng(seed)) for seed in range(200)]
    colourful = [Augmentation.draw(np.random.default_rng(seed), 0.5) for seed in range(200)]
    assert [(one.crop, one.flip) for one in plain] == [(one.crop, one.flip) for one in colourful]
    gains = np.array([one.gains for one in colourful])
    assert 0.7 <= gains.min() < 0.72
    assert 1.28 < gains.max() <= 1.3


def test_gains_are_brightness_contrast_and_saturation() -> None:
    image = np.random.default_rng(1).integers(60, 160, (32, 32, 3), dtype=np.uint8)
    still = (0.0, 0.0, 0.0, 0.0)

    def apply(*gains: float) -> np.ndarray:
        out = Augmentation(still, False, (gains[0], gains[1], gains[2])).image(image, 32)
        assert out.dtype == np.uint8
        return out.astype(float)

    plain = image.astype(float)
    np.testing.assert_allclose(apply(1.2, 1, 1), 1.2 * plain, atol=0.6)
    np.testing.assert_allclose(apply(1, 0.5, 1), plain.mean() + 0.5 * (plain - plain.mean()), atol=0.6)
    grey = apply(1, 1, 0)
    assert np.ptp(grey, axis=-1).max() == 0
    np.testing.assert_allclose(grey[..., 0], plain.mean(axis=-1), atol=0.6)
    assert apply(9, 1, 1).max() == 255
