"""J and F of one frame: how well a predicted mask covers the annotated region and follows its contour."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy.typing as npt

from pdnet.errors import DataError
from pdnet.metrics.bits import Bits, boundaries, count, crop_to_foreground, dilate_disk, pack


class FrameScores(NamedTuple):
    """J and F of one frame, both in [0, 1].

    Attributes:
        j: region similarity.
        f: contour accuracy.
    """

    j: float
    f: float


def region_similarity(prediction: npt.ArrayLike, annotation: npt.ArrayLike, void: npt.ArrayLike | None = None) -> float:
    """Region similarity J: intersection over union of the two masks, 1 where both are empty.

    Args:
        prediction: (H, W) bool or numbers; non-zero is foreground.
        annotation: (H, W), as `prediction`.
        void: (H, W), as `prediction`; its foreground is not counted.

    Returns:
        J in [0, 1].

    Raises:
        DataError: the sizes differ, or an argument is not a mask.
    """
    bits, _ = _pack_pair(prediction, annotation, void)
    return _region(bits)


def contour_accuracy(
    prediction: npt.ArrayLike,
    annotation: npt.ArrayLike,
    void: npt.ArrayLike | None = None,
    bound_th: float = 0.008,
) -> float:
    """Contour accuracy F = 2PR / (P + R) of the two masks' boundaries, matched within a tolerance.

    P is the share of the predicted boundary that has annotated boundary within the tolerance, R the share of the
    annotated boundary that has predicted boundary within it. Two masks without boundary (empty or full) score 1, one
    with and one without score 0. F is symmetric in the two masks.

    Args:
        prediction: (H, W) bool or numbers; non-zero is foreground.
        annotation: (H, W), as `prediction`.
        void: (H, W), as `prediction`; both masks count as background there.
        bound_th: the tolerance: below 1 a share of the image diagonal, rounded up to whole pixels; else pixels.

    Returns:
        F in [0, 1].

    Raises:
        DataError: the sizes differ, an argument is not a mask, or `bound_th` is neither a share nor whole pixels.
    """
    bits, width = _pack_pair(prediction, annotation, void)
    radius = _tolerance(bits.shape[1], width, bound_th)
    return _contour(*crop_to_foreground(bits, width), radius)


def frame_scores(
    prediction: npt.ArrayLike,
    annotation: npt.ArrayLike,
    void: npt.ArrayLike | None = None,
    bound_th: float = 0.008,
) -> FrameScores:
    """`region_similarity` and `contour_accuracy` of one frame, the masks packed once.

    Raises:
        DataError: as the two functions.
    """
    bits, width = _pack_pair(prediction, annotation, void)
    radius = _tolerance(bits.shape[1], width, bound_th)
    bits, width = crop_to_foreground(bits, width)
    return FrameScores(_region(bits), _contour(bits, width, radius))


def _pack_pair(prediction: npt.ArrayLike, annotation: npt.ArrayLike, void: npt.ArrayLike | None) -> tuple[Bits, int]:
    """(2, H, words) of prediction and annotation, void cleared in both, and the width."""
    if void is None:
        return pack((prediction, annotation))
    bits, width = pack((prediction, annotation, void))
    return bits[:2] & ~bits[2], width


def _region(bits: Bits) -> float:
    union = count(bits[0] | bits[1])
    return count(bits[0] & bits[1]) / union if union else 1.0


def _contour(bits: Bits, width: int, radius: int) -> float:
    boundary = boundaries(bits, width)
    n_prediction, n_annotation = count(boundary[0]), count(boundary[1])
    if not n_prediction and not n_annotation:
        return 1.0
    if not n_prediction or not n_annotation:
        return 0.0  # precision 1 and recall 0, or the other way round
    dilated = dilate_disk(boundary, radius)
    precision = count(boundary[0] & dilated[1]) / n_prediction
    recall = count(boundary[1] & dilated[0]) / n_annotation
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _tolerance(height: int, width: int, bound_th: float) -> int:
    """The tolerance in pixels, at least 1; `height + width` pixels reach everywhere."""
    if 0 < bound_th < 1:
        return math.ceil(bound_th * math.sqrt(height * height + width * width))
    if bound_th >= 1 and float(bound_th).is_integer():
        return min(int(bound_th), height + width)
    raise DataError(f"bound_th {bound_th}: expected a share of the diagonal below 1 or a whole number of pixels")
