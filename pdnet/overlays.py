"""Pictures of what a model saw: a frame with its prediction and mistakes, a frame with its part map."""

from __future__ import annotations

import base64
import colorsys
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pdnet.data.io import BoolArray, UInt8Array
from pdnet.errors import DataError

Colour = tuple[int, int, int]

#: portrait found: a light tint under a white contour
HIT_COLOUR: Colour = (64, 196, 170)
#: background taken for portrait; orange and blue are told apart in every common form of colour blindness
FALSE_POSITIVE_COLOUR: Colour = (255, 150, 0)
#: portrait missed; striped as well, for prints without colour
FALSE_NEGATIVE_COLOUR: Colour = (30, 70, 235)

_PARTS: tuple[Colour, ...] = (
    (68, 119, 170),
    (238, 102, 119),
    (221, 170, 51),
    (34, 136, 51),
    (170, 51, 119),
    (102, 204, 238),
    (102, 68, 34),
    (170, 221, 85),
)


def part_colours(parts: int) -> list[Colour]:
    """K distinct colours; the first eight are fixed, so part k looks the same in every report."""
    hues = range(len(_PARTS), parts)
    more = (colorsys.hsv_to_rgb(0.618034 * index % 1, 0.55 + 0.4 * (index % 2), 0.85) for index in hues)
    mixed = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more]
    return [*_PARTS[:parts], *mixed]


def mistake_overlay(image: UInt8Array, prediction: BoolArray, annotation: BoolArray) -> UInt8Array:
    """Show a prediction on its frame: found portrait tinted, its contour, and every wrong pixel marked.

    Args:
        image: (H, W, 3) RGB.
        prediction: (H, W) bool.
        annotation: (H, W) bool.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the three differ in size.
    """
    _check_sizes(image, prediction=prediction, annotation=annotation)
    height, width = prediction.shape
    unit = max(1, round(max(height, width) / 400))  # a pixel of the small picture on the page
    pale = 0.25 * image + 0.75 * image.mean(axis=2, keepdims=True)  # a blue striped shirt must not look like a mistake
    canvas = np.where(prediction[..., None] | annotation[..., None], pale, 0.6 * pale + 0.4 * 255)
    canvas = _tint(canvas, prediction & annotation, HIT_COLOUR, 0.22)
    canvas = _tint(canvas, prediction & ~annotation, FALSE_POSITIVE_COLOUR, 0.75)
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // (3 * unit)) % 2 == 0
    missed = annotation & ~prediction
    canvas = _tint(canvas, missed & stripes, FALSE_NEGATIVE_COLOUR, 0.85)
    canvas = _tint(canvas, missed & ~stripes, FALSE_NEGATIVE_COLOUR, 0.4)
    canvas = _tint(canvas, _contour(prediction, unit), (255, 255, 255), 0.85)
    return np.asarray(np.round(canvas), dtype=np.uint8)


def part_overlay(image: UInt8Array, labels: UInt8Array, prediction: BoolArray, *, parts: int) -> UInt8Array:
    """Show a part map on its frame, everything outside the predicted portrait dimmed.

    The map is coarse (one label for some 16 x 16 pixels): its edges are smoothed and the predicted mask cuts it out.
    Portrait pixels without a label take the nearest one. Paper: 5.4, figure 8.

    Args:
        image: (H, W, 3) RGB.
        labels: (h, w), k + 1 for part k, 0 for none.
        prediction: (H, W) bool.
        parts: K.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: image and prediction differ in size, or a label is above K.
    """
    _check_sizes(image, prediction=prediction)
    if labels.max(initial=0) > parts:
        raise DataError(f"a part map holds the label {labels.max()}, expected 0 to {parts}")
    grey = image.mean(axis=2, keepdims=True)
    # Grey beneath the colours, so that clothing does not change a part's hue.
    canvas = np.where(prediction[..., None], grey, 0.15 * image + 0.2 * grey + 0.65 * 255)
    if labels.any():
        likeliest = _enlarged(labels, prediction.shape, parts)
        for part, colour in enumerate(part_colours(parts)):
            canvas = _tint(canvas, prediction & (likeliest == part), colour, 0.7)
    return np.asarray(np.round(canvas), dtype=np.uint8)


def data_uri(picture: UInt8Array, *, box: tuple[int, int], quality: int = 82) -> str:
    """A picture as a JPEG data URI, reduced to fit `box` (width, height) in pixels.

    Args:
        picture: (H, W, 3) RGB.
        box: largest width and height.
        quality: of JPEG, 1 to 95.
    """
    small = Image.fromarray(picture)
    small.thumbnail(box, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _tint(
    canvas: npt.NDArray[np.floating], where: BoolArray, colour: Colour, strength: float
) -> npt.NDArray[np.floating]:
    canvas[where] = (1 - strength) * canvas[where] + strength * np.array(colour)
    return canvas


def _contour(mask: BoolArray, thickness: int) -> BoolArray:
    """The innermost rim of a mask, some `thickness` pixels wide."""
    levels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    inner = np.asarray(levels.filter(ImageFilter.MinFilter(2 * thickness + 1))) > 0
    return mask & ~inner


def _enlarged(labels: UInt8Array, shape: tuple[int, ...], parts: int) -> npt.NDArray[np.intp]:
    """(h, w) labels, gaps filled with the nearest one, as (H, W) part indices with smooth edges."""
    rows, columns = np.nonzero(labels)
    empty_rows, empty_columns = np.nonzero(labels == 0)
    filled = labels.copy()
    for row, column in zip(empty_rows, empty_columns, strict=True):
        nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
        filled[row, column] = labels[rows[nearest], columns[nearest]]
    size = (shape[1], shape[0])
    votes = [
        np.asarray(Image.fromarray((filled == part + 1).astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        for part in range(parts)
    ]
    return np.asarray(np.argmax(np.stack(votes), axis=0), dtype=np.intp)


def _check_sizes(image: UInt8Array, **masks: BoolArray) -> None:
    for name, mask in masks.items():
        if mask.shape != image.shape[:2]:
            found, expected = ("x".join(map(str, reversed(shape))) for shape in (mask.shape, image.shape[:2]))
            raise DataError(f"the {name} is {found}, expected {expected}, the size of its frame")
