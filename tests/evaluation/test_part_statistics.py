"""How the parts are counted, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pdnet.evaluation.evaluate import Frame, PartStatistics
from pdnet.inference.session import Prediction


def frame(part_prob: list[float], saliency: np.ndarray, mask: np.ndarray) -> Frame:
    """A frame with the same part probabilities everywhere."""
    prob = np.broadcast_to(np.array(part_prob, np.float32)[:, None, None], (len(part_prob), *saliency.shape))
    return Frame(SimpleNamespace(clip="talk/a", frame="00000"), mask, mask, 1.0, 1.0, Prediction(mask, saliency, prob))


def test_a_part_that_is_everywhere_second_has_a_share_but_no_pixels() -> None:
    statistics = PartStatistics(3, None)
    saliency, mask = np.ones((4, 4), np.float32), np.ones((16, 16), bool)
    statistics.add(frame([0.5, 0.3, 0.2], saliency, mask))
    statistics.add(frame([0.3, 0.4, 0.3], saliency, mask))
    summary = statistics.summary()
    assert summary is not None
    assert summary["share"] == pytest.approx([0.4, 0.35, 0.25])  # the mean of the two frames
    assert summary["pixels"] == pytest.approx([0.5, 0.5, 0.0])


def test_a_frame_without_a_portrait_counts_for_nothing() -> None:
    statistics = PartStatistics(2, None)
    empty = np.zeros((4, 4), np.float32)
    statistics.add(frame([0.5, 0.5], empty, np.zeros((16, 16), bool)))
    assert statistics.summary() is None
    statistics.add(frame([0.6, 0.4], empty + 0.5, np.zeros((16, 16), bool)))  # salient, but not above the threshold
    summary = statistics.summary()
    assert summary is not None
    assert summary["share"] == pytest.approx([0.6, 0.4])
    assert summary["pixels"] == [0.0, 0.0]
