"""From scores of frames to the figures of a sequence, and from sequences to those of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pdnet.errors import DataError

_BINS = 4


class Statistics(NamedTuple):
    """The figures of one measure, J or F.

    Attributes:
        mean: mean score.
        recall: share of frames that score above 0.5.
        decay: mean of the first quarter of the frames less that of the last; negative where scores rise.
    """

    mean: float
    recall: float
    decay: float


class RegionContour(NamedTuple):
    """The figures of both measures, of one sequence or of a data set."""

    j: Statistics
    f: Statistics

    @property
    def jf_mean(self) -> float:
        """J&F mean: the mean of the two means."""
        return (self.j.mean + self.f.mean) / 2


def statistics(scores: npt.ArrayLike) -> Statistics:
    """Mean, recall and decay of one sequence.

    A NaN score is left out of mean and decay; for recall it counts as a frame that is not above 0.5. A quarter of
    only NaN gives NaN. Neighbouring quarters share their edge frame. The edges are ordinary integers: the Python code
    of DAVIS casts them to 8 bits, which breaks its decay from 256 frames on.

    Args:
        scores: (n,) scores in order of frame, n >= 1; a single frame has decay 0.

    Raises:
        DataError: there is no score, or `scores` is not one-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"a sequence needs a one-dimensional list of at least one score, found shape {values.shape}")
    # Edge i is floor(1 + i (n - 1) / 4 + 0.5) counted from 1: round half up.
    edges = [(i * (values.size - 1) + _BINS // 2) // _BINS for i in range(_BINS + 1)]
    first, last = values[edges[0] : edges[1] + 1], values[edges[-2] : edges[-1] + 1]
    return Statistics(_nan_mean(values), float(np.mean(values > 0.5)), _nan_mean(first) - _nan_mean(last))


def mean_of_sequences(sequences: Iterable[RegionContour]) -> RegionContour:
    """The data set figure: the plain mean of every figure over sequences, however long each is.

    Raises:
        DataError: there is no sequence.
    """
    table = np.array([(*sequence.j, *sequence.f) for sequence in sequences], dtype=np.float64)
    if not table.size:
        raise DataError("a data set needs at least one sequence")
    j_mean, j_recall, j_decay, f_mean, f_recall, f_decay = map(float, table.mean(axis=0))
    return RegionContour(Statistics(j_mean, j_recall, j_decay), Statistics(f_mean, f_recall, f_decay))


def _nan_mean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
