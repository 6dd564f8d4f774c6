"""How much a mean over clips is to be trusted: percentile bootstrap intervals. NumPy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pdnet.errors import DataError

_STREAM = 0xB007  # keeps these draws apart from others of the same seed


class Interval(NamedTuple):
    """A mean and where it would lie, with other clips of the same kind; all in the unit of the values."""

    mean: float
    low: float
    high: float


def interval(values: npt.ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of a mean over clips: clips are what varies, so clips are resampled, never frames.

    The same values give the same interval. One clip gives a point: it says nothing about other clips. With fewer than
    some twenty clips the interval is too narrow (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (n,) one figure a clip, n >= 1.
        resamples: how many sets of n clips are drawn with replacement.
        level: share of these sets' means that the interval holds, the rest in equal halves below and above.
        seed: of the draws.

    Raises:
        DataError: there are no clips.
    """
    clips = np.asarray(values, np.float64)
    if clips.ndim != 1 or clips.size == 0:
        raise DataError(f"an interval over clips: found values of shape {clips.shape}, expected one for each clip")
    rng = np.random.default_rng((seed, _STREAM))
    means = [clips[rng.integers(clips.size, size=clips.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(clips.mean()), float(low), float(high))


def paired_difference(
    candidate: npt.ArrayLike,
    champion: npt.ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`interval` of candidate minus champion over the same clips, in the same order.

    Pairing takes out what both find hard: a clip's own difficulty, which varies more than two models do.

    Raises:
        DataError: there are no clips, or they are not equally many.
    """
    first, second = np.asarray(candidate, np.float64), np.asarray(champion, np.float64)
    if first.shape != second.shape:
        raise DataError(f"a paired difference: found {first.size} and {second.size} clips, expected the same clips")
    return interval(first - second, resamples=resamples, level=level, seed=seed)
