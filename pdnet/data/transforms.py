"""From a decoded frame to an input of the network, and the augmentation of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pdnet.data.io import BoolArray, UInt8Array

#: channel means and standard deviations of ImageNet, of RGB in 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Box = tuple[int, int, int, int]


def normalise(image: UInt8Array) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, zero mean and unit variance by ImageNet's statistics."""
    scaled = (image.astype(np.float32) - np.float32(255) * np.array(MEAN, np.float32)) / (
        np.float32(255) * np.array(STD, np.float32)
    )
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def resize_image(image: UInt8Array, size: int, box: Box | None = None) -> UInt8Array:
    """Resize (H, W, 3) uint8, or its `box` (left, top, right, bottom), to (size, size, 3), area-aware bilinear.

    Paper: 5.1, frames are directly resized to a square, whatever their shape.
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def resize_mask(mask: BoolArray, size: int, box: Box | None = None) -> UInt8Array:
    """Resize (H, W) bool to (size, size) uint8 in 0..255 with soft edges, as the released training does."""
    levels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(levels.resize((size, size), Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class Augmentation:
    """One draw of the augmentation; target and reference of a pair share it.

    Attributes:
        crop: shares of (left, top, right, bottom) cut off, each in [0, 1/8).
        flip: mirrored left to right.
        gains: factors of brightness, contrast and saturation; (1, 1, 1) leaves the colours alone.
    """

    crop: tuple[float, float, float, float]
    flip: bool
    gains: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, photometric: float = 0.0) -> Augmentation:
        """Draw crop, flip and colours.

        Paper: 5.1, randomly cropped and flipped. Paper silent: up to 1/8 of each side is cut (released).
        """
        cut_x, cut_y = rng.random(2) / 8
        at_x, at_y = rng.random(2)
        flip = bool(rng.random() < 0.5)
        spread = 0.6 * photometric * (2 * rng.random(3) - 1)
        gains = (1 + float(spread[0]), 1 + float(spread[1]), 1 + float(spread[2]))
        return cls((cut_x * at_x, cut_y * at_y, cut_x * (1 - at_x), cut_y * (1 - at_y)), flip, gains)

    def image(self, image: UInt8Array, size: int) -> UInt8Array:
        """Apply to (H, W, 3) uint8; (size, size, 3)."""
        out = resize_image(image, size, self._box(*image.shape[:2]))
        if self.gains != (1.0, 1.0, 1.0):
            brightness, contrast, saturation = (np.float32(gain) for gain in self.gains)
            x = out.astype(np.float32)
            grey = x.mean(axis=2, keepdims=True)
            x = grey + saturation * (x - grey)
            x = (grey.mean() + contrast * (x - grey.mean())) * brightness
            out = np.clip(np.rint(x), 0, 255).astype(np.uint8)
        return out[:, ::-1] if self.flip else out

    def mask(self, mask: BoolArray, size: int) -> UInt8Array:
        """Apply to (H, W) bool; (size, size) uint8 in 0..255."""
        out = resize_mask(mask, size, self._box(*mask.shape))
        return out[:, ::-1] if self.flip else out

    def _box(self, height: int, width: int) -> Box:
        """Whole pixels, at least one left a side."""
        left, top, right, bottom = self.crop
        x0, y0 = int(left * width), int(top * height)
        return x0, y0, max(width - int(right * width), x0 + 1), max(height - int(bottom * height), y0 + 1)
