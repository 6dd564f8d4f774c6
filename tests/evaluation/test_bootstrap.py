"""Intervals over clips: against a slow version, by hand, and how often they hold the truth."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from pdnet.errors import DataError
from pdnet.evaluation.bootstrap import Interval, interval, paired_difference


def every_resample(values: list[float], level: float) -> tuple[float, float]:
    """The interval of all n^n equally likely sets of n clips: what the bootstrap draws from."""
    means = sorted(statistics.fmean(chosen) for chosen in itertools.product(values, repeat=len(values)))

    def quantile(share: float) -> float:
        position = share * (len(means) - 1)
        below = int(position)
        above = min(below + 1, len(means) - 1)
        return means[below] + (position - below) * (means[above] - means[below])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("values", [[0.9, 0.7, 0.4, 0.85], [0.0, 0.1, 0.3, 0.2, 0.8], [1.0, -1.0, 0.5, 0.6, 0.0, 0.2]])
def test_it_draws_from_every_set_of_clips_alike(values: list[float], level: float) -> None:
    found = interval(values, resamples=20_000, level=level)
    low, high = every_resample(values, level)
    spread = max(values) - min(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.low == pytest.approx(low, abs=0.03 * spread)
    assert found.high == pytest.approx(high, abs=0.03 * spread)


def test_two_clips_by_hand() -> None:
    # Sets of {0, 1}: 0, 0.5, 0.5, 1 with a quarter, a half, a quarter.
    assert interval([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5)
    assert interval([0.0, 1.0], level=0.6) == Interval(0.5, 0.0, 1.0)


def test_one_clip_is_a_point() -> None:
    assert interval([0.3]) == Interval(0.3, 0.3, 0.3)


def test_equal_differences_leave_no_width_however_hard_the_clips() -> None:
    champion = np.array([0.25, 0.5, 0.75, 0.125])
    found = paired_difference(champion + 0.0625, champion)
    assert found == Interval(0.0625, 0.0625, 0.0625)
    unpaired = interval(champion)
    assert unpaired.high - unpaired.low > 0.2


def test_a_paired_difference_is_that_of_the_same_clips() -> None:
    candidate, champion = [0.9, 0.8, 0.7], [0.5, 0.9, 0.6]
    assert paired_difference(candidate, champion) == interval(np.subtract(candidate, champion))
    swapped = paired_difference(champion, candidate)
    assert swapped.mean == pytest.approx(-paired_difference(candidate, champion).mean)


def test_the_same_values_give_the_same_interval_and_another_seed_another() -> None:
    values = np.linspace(0, 1, 9) ** 2
    assert interval(values) == interval(list(values))
    assert interval(values, seed=1) != interval(values)
    assert np.array_equal(values, np.linspace(0, 1, 9) ** 2)


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        found = interval(rng.normal(0.8, 0.05, size=40), resamples=400, level=0.9)
        held += found.low <= 0.8 <= found.high
    assert 0.85 <= held / 400 <= 0.94  # a little less than 0.9: it is known to be narrow for few clips


def test_a_wider_level_is_a_wider_interval() -> None:
    values = np.linspace(0, 1, 20)
    narrow, wide = interval(values, level=0.8), interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_no_clips_or_other_clips_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(0,\), expected one for each clip"):
        interval([])
    with pytest.raises(DataError, match="found 2 and 1 clips"):
        paired_difference([1, 2], [1])
