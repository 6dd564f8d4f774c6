"""J and F, their statistics and the data set figure; nothing but NumPy."""

from __future__ import annotations

from pdnet.metrics.frame import FrameScores, contour_accuracy, frame_scores, region_similarity
from pdnet.metrics.sequence import RegionContour, Statistics, mean_of_sequences, statistics

__all__ = [
    "FrameScores",
    "RegionContour",
    "Statistics",
    "contour_accuracy",
    "frame_scores",
    "mean_of_sequences",
    "region_similarity",
    "statistics",
]
