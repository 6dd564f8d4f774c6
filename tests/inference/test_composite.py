"""Masks, backgrounds and parts, against slow arithmetic and by what has to hold of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pdnet.errors import ConfigError, DataError
from pdnet.inference import composite
from pdnet.inference.session import Prediction
from pdnet.overlays import part_colours

SHAPE = (70, 110)


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)


def predicted(probability: np.ndarray, part_prob: np.ndarray | None = None) -> Prediction:
    return Prediction(probability.astype(np.float32), None, part_prob)


def half() -> np.ndarray:
    """Portrait on the left, nothing on the right, and columns of every opacity between."""
    return np.broadcast_to(np.clip((80 - np.arange(SHAPE[1])) / 50, 0, 1), SHAPE).astype(np.float32)


def test_a_mask_is_portrait_from_one_half(frame):
    probability = np.full(SHAPE, np.nextafter(np.float32(0.5), np.float32(0)))
    probability[3:9, 5:50] = 0.5
    found = composite.mask(frame, predicted(probability))
    assert found.dtype == np.uint8
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[3:9, 5:50] = 255
    np.testing.assert_array_equal(found, wanted)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(1, 40))
def test_a_blend_is_the_mixture(seed, height, width):
    rng = np.random.default_rng(seed)
    portrait, background = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    alpha = rng.choice([0, 1, 0.5, rng.random()], (height, width)).astype(np.float32)
    found = composite.blend(portrait, background, alpha)
    wanted = alpha[..., None] * portrait.astype(np.float64) + (1 - alpha[..., None]) * background
    assert (found.shape, found.dtype) == (portrait.shape, np.uint8)
    assert np.abs(found - wanted).max() <= 1.5
    np.testing.assert_array_equal(found[alpha == 1], portrait[alpha == 1])
    np.testing.assert_array_equal(found[alpha == 0], background[alpha == 0])


def test_extremes_do_not_run_over():
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    for alpha in np.linspace(0, 1, 300, dtype=np.float32):
        share = np.full((2, 2), alpha)
        assert abs(int(composite.blend(white, black, share)[0, 0, 0]) - 255 * alpha) <= 1.5
        assert abs(int(composite.blend(black, white, share)[0, 0, 0]) - 255 * (1 - alpha)) <= 1.5


def test_a_colour(frame):
    found = composite.background_look("#00FF7f")(frame, predicted(half()))
    np.testing.assert_array_equal(found[:, :30], frame[:, :30])
    assert (found[:, 80:] == (0, 255, 127)).all()


def test_a_picture_covers_the_frame(frame, tmp_path):
    # a white square on black, high and narrow: enlarged until it covers the width, cut above and below
    picture = np.zeros((220, 55, 3), np.uint8)
    picture[100:120, 20:35] = 255
    Image.fromarray(picture).save(tmp_path / "wall.png")
    look = composite.background_look(str(tmp_path / "wall.png"))
    found = look(frame, predicted(np.zeros(SHAPE)))
    assert found.shape == frame.shape
    assert (found[20:50, 45:65] == 255).all()
    assert (found[:, :30] == 0).all()
    assert look(frame[:30, :40], predicted(np.zeros((30, 40)))).shape == (30, 40, 3)  # frames may change size


def test_transparency_keeps_the_portrait_and_nothing_of_the_rest(frame):
    found = composite.transparent(frame, predicted(half()))
    assert found.shape == (*SHAPE, 4)
    np.testing.assert_array_equal(found[..., 3], np.floor(half() * 255 + 0.5))
    np.testing.assert_array_equal(found[:, :79, :3], frame[:, :79])
    assert (found[:, 80:] == 0).all()


def test_a_blur_leaves_the_portrait_and_takes_no_colour_from_it():
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[:, 200:] = (0, 0, 200)  # the wall
    frame[:, :200] = (255, 0, 0)  # the portrait
    alpha = np.zeros((300, 400))
    alpha[:, :200] = 1
    found = composite.blur(frame, predicted(alpha))
    np.testing.assert_array_equal(found[:, :200], frame[:, :200])
    # a cell at the seam at which the blur is computed may hold both
    assert found[:, 208:, 0].max() <= 2
    assert found[:, 208:, 2].min() >= 198


@pytest.mark.parametrize("shape", [(64, 64), (97, 333), (480, 270), (1080, 607), (1, 7), (5, 300)])
def test_a_blur_is_a_gaussian(shape):
    height, width = shape
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), 0 * x + 77], axis=2).astype(np.uint8)
    found = composite.blurred(frame, np.ones(shape, np.float32))
    assert (found.shape, found.dtype) == (frame.shape, np.uint8)
    assert (np.abs(found[..., 2].astype(int) - 77) <= 1).all()
    # a slope stays where it is, away from the edges
    edge = round(4 * composite.BLUR * min(shape)) + 2
    inner = (slice(edge, -edge), slice(edge, -edge))
    if frame[inner].size:
        assert np.abs(found[inner].astype(int) - frame[inner]).max() <= 3


def test_the_width_of_a_blur():
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[:, 320:] = 255
    found = composite.blurred(frame, np.ones((480, 640), np.float32))[240, :, 0].astype(float)
    slope = np.diff(found)
    at = np.arange(639) + 0.5
    deviation = np.sqrt((slope * (at - (slope * at).sum() / slope.sum()) ** 2).sum() / slope.sum())
    assert deviation == pytest.approx(0.04 * 480, rel=0.1)


def test_where_no_background_is_the_blur_is_still_a_picture(frame):
    found = composite.blurred(frame, np.zeros(SHAPE, np.float32))
    np.testing.assert_allclose(found.mean(), frame.mean(), atol=3)


def test_parts_are_coloured_as_in_the_report(frame):
    part_prob = np.zeros((3, 7, 11), np.float32)
    part_prob[0, :, :4], part_prob[1, :, 4:8], part_prob[2, :, 8:] = 1, 1, 1
    alpha = np.zeros(SHAPE)
    alpha[10:60] = 1
    found = composite.parts(frame, predicted(alpha, part_prob)).astype(int)
    grey = np.asarray(Image.fromarray(frame).convert("L")).astype(float)
    for columns, colour in zip((slice(0, 30), slice(45, 70), slice(95, 110)), part_colours(3), strict=True):
        wanted = 0.3 * grey[10:60, columns, None] + 0.7 * np.array(colour)
        assert np.abs(found[10:60, columns] - wanted).max() <= 1
    assert found[:10].min() >= 165  # outside of the portrait all is pale
    with pytest.raises(DataError, match="show: the model gives no parts"):
        composite.parts(frame, predicted(alpha))


@pytest.mark.parametrize("word", ["#12", "#12345", "#1234567", "#00gg00", "#", "# 12345"])
def test_colours_of_another_form(word):
    with pytest.raises(ConfigError) as caught:
        composite.background_look(word)
    assert str(caught.value) == f"background: '{word}', expected a colour as #rrggbb, such as #00ff00"


def test_backgrounds_that_are_no_picture(tmp_path):
    for word in ("blurr", str(tmp_path / "missing.png"), str(tmp_path)):
        with pytest.raises(DataError) as caught:
            composite.background_look(word)
        assert str(caught.value).startswith(f"background: '{word}', expected blur, transparent, #rrggbb or the path")
    Path(tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"text\.png: not an image that can be read"):
        composite.background_look(str(tmp_path / "text.png"))
