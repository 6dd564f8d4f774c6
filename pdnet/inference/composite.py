"""What is made of a frame and its segmentation: a mask, another background, a view of the parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from pdnet.data.io import UInt8Array, open_image, to_rgb
from pdnet.errors import ConfigError, DataError
from pdnet.inference.session import Prediction
from pdnet.overlays import part_colours

#: Makes a picture of a frame, (H, W, 3) uint8 RGB: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, uint8.
Look = Callable[[UInt8Array, Prediction], UInt8Array]
FloatArray = npt.NDArray[np.float32]

#: Standard deviation of the blur, as a share of the frame's shorter side: faces and writing are gone, places are not.
BLUR = 0.04
_BLURRED_SIDE = 64  # pixels of the shorter side at which a blur is computed; nothing finer is left of it
_BAND = 32  # rows that are blended at a time: what is made on the way stays in the processor's cache
_TINT = 0.7  # of a part's colour over the grey of the frame


def mask(frame: UInt8Array, prediction: Prediction) -> UInt8Array:
    """(H, W) in {0, 255}: portrait where the probability is at least one half."""
    del frame
    return (prediction.probability >= 0.5).astype(np.uint8) * np.uint8(255)


def transparent(frame: UInt8Array, prediction: Prediction) -> UInt8Array:
    """(H, W, 4): the frame with the probability as its opacity, colours not premultiplied.

    What cannot be seen is black, so that nobody uncovers a background that was taken away.
    """
    alpha = _levels(prediction.probability)
    return np.dstack([frame * (alpha > 0)[..., None], alpha])


def blur(frame: UInt8Array, prediction: Prediction) -> UInt8Array:
    """The frame before its own background, blurred without the portrait: no halo of it is left around it."""
    return blend(frame, blurred(frame, 1 - prediction.probability), prediction.probability)


def parts(frame: UInt8Array, prediction: Prediction) -> UInt8Array:
    """The portrait in the colours of its likeliest parts, which are those of the report; the rest pale.

    Raises:
        DataError: the model gives no parts.
    """
    if prediction.part_prob is None:
        raise DataError("show: the model gives no parts; expected one with IPDA, or another backend")
    maps = torch.from_numpy(prediction.part_prob)[None]
    # The maps are enlarged, not their answer: edges between parts are smooth.
    enlarged = F.interpolate(maps, size=frame.shape[:2], mode="bilinear", align_corners=True)
    likeliest = enlarged[0].max(dim=0).indices.numpy()
    grey = np.asarray(Image.fromarray(frame).convert("L"))
    tints = [(1 - _TINT) * np.arange(256)[:, None] + _TINT * np.array(colour) for colour in part_colours(maps.shape[1])]
    coloured = np.take(np.concatenate(tints).round().astype(np.uint8), likeliest * 256 + grey, axis=0)
    pale = np.take((165 + 0.35 * np.arange(256)).astype(np.uint8), frame)
    return blend(coloured, pale, prediction.probability)


def before_picture(picture: Image.Image) -> Look:
    """The portrait before a picture, which is enlarged or reduced to cover the frame and cut at its edges."""
    sized: dict[tuple[int, int], UInt8Array] = {}  # the last size alone

    def look(frame: UInt8Array, prediction: Prediction) -> UInt8Array:
        size = (frame.shape[1], frame.shape[0])
        if size not in sized:
            sized.clear()
            sized[size] = np.asarray(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))
        return blend(frame, sized[size], prediction.probability)

    return look


def background_look(background: str) -> Look:
    """The look that a word of the command line stands for.

    Args:
        background: `blur`, `transparent`, `#rrggbb`, or the path of an image.

    Raises:
        ConfigError: it is a colour of another form.
        DataError: it is the path of no image.
    """
    if background == "blur":
        return blur
    if background == "transparent":
        return transparent
    if background.startswith("#"):
        if re.fullmatch("#[0-9a-fA-F]{6}", background) is None:
            raise ConfigError(f"background: '{background}', expected a colour as #rrggbb, such as #00ff00")
        red, green, blue = bytes.fromhex(background[1:])
        return before_picture(Image.new("RGB", (1, 1), (red, green, blue)))
    path = Path(background)
    if not path.is_file():
        raise DataError(f"background: '{background}', expected blur, transparent, #rrggbb or the path of an image")
    return before_picture(to_rgb(open_image(path)))


def blend(portrait: UInt8Array, background: UInt8Array, alpha: FloatArray) -> UInt8Array:
    """Mix two pictures by the portrait's opacity, in whole numbers: within one level of the exact mixture.

    Args:
        portrait: (H, W, 3).
        background: (H, W, 3).
        alpha: (H, W) in 0..1.

    Returns:
        (H, W, 3) uint8.
    """
    result = np.empty_like(portrait)
    for top in range(0, len(portrait), _BAND):
        band = slice(top, top + _BAND)
        # A weight for each channel: faster than a broadcast over three.
        weight = np.repeat((alpha[band] * np.float32(128) + np.float32(0.5)).astype(np.int16), 3, axis=1)
        mixed = np.subtract(portrait[band], background[band], dtype=np.int16)
        mixed *= weight.reshape(mixed.shape)  # at most 255 * 128, which just fits
        mixed += 64
        mixed >>= 7
        mixed += background[band]
        result[band] = mixed
    return result


def blurred(frame: UInt8Array, weight: FloatArray) -> UInt8Array:
    """Blur a frame by a Gaussian of `BLUR`, each pixel counting by its weight.

    Args:
        frame: (H, W, 3).
        weight: (H, W) in 0..1.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = weight.shape
    step = max(1, min(height, width) // _BLURRED_SIDE)
    small = np.array(Image.fromarray(frame).reduce(step), np.float32)
    # Not 0: where no background is near, the frame's own colours fill in.
    counts = np.array(Image.fromarray(_levels(weight)).reduce(step), np.float32)[..., None] + np.float32(0.5)
    sums = torch.from_numpy(np.concatenate([small * counts, counts], axis=2)).permute(2, 0, 1)[:, None]
    kernel = _gaussian(BLUR * min(height, width) / step)
    # Beyond the edge nothing counts, so that the edge itself needs no care.
    sums = F.conv2d(
        F.conv2d(sums, kernel[None, None, None], padding="same"), kernel[None, None, :, None], padding="same"
    )
    coarse = (sums[:3, 0] / sums[3:, 0]).round_().clamp_(0, 255).to(torch.uint8)[None]
    whole = (coarse.shape[2] * step, coarse.shape[3] * step)  # of which the last cells may lie half outside
    large = F.interpolate(coarse.contiguous(memory_format=torch.channels_last), size=whole, mode="bilinear")
    return large[0].permute(1, 2, 0).numpy()[:height, :width]


def _gaussian(deviation: float) -> torch.Tensor:
    reach = max(1, round(3 * deviation))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(deviation, 1e-3)) ** 2)
    return kernel / kernel.sum()


def _levels(alpha: FloatArray) -> UInt8Array:
    """0..1 as 0..255."""
    return (alpha * np.float32(255) + np.float32(0.5)).astype(np.uint8)
